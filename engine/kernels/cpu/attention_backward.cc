#include <algorithm>
#include <atomic>
#include <cstring>

#include "engine/base/check.h"
#include "engine/kernels/cpu/attention.h"
#include "engine/kernels/cpu/small_product.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {
namespace {

constexpr int64_t kRowTile = 96;   // (token, head) rows whose products with one key block are made together
constexpr int64_t kKeyBlock = 64;  // keys of one block

struct Backward {
  const AttentionShape& shape;
  const Tensor &d_out, &q, &k, &v, &out, &lse, &d_q, &d_k, &d_v;
};

// One sequence and key/value head. Scratch, FP32: keys [len, E], their transpose by key blocks [E, kKeyBlock], values
// transposed likewise, dK and dV [len, E], and the row tile's q, dO, dQ [kRowTile, E], P and dS [kRowTile, kKeyBlock].
class Item {
 public:
  Item(const Backward& call, int64_t begin, int64_t length, int64_t kv_head, float* scratch)
      : call_(call),
        begin_(begin),
        length_(length),
        kv_head_(kv_head),
        e_(call.shape.head_dim),
        group_(call.shape.num_heads / call.shape.num_kv_heads) {
    const int64_t padded = Padded(length);
    keys_ = scratch;
    keys_t_ = keys_ + padded * e_;
    values_t_ = keys_t_ + padded * e_;
    d_keys_ = values_t_ + padded * e_;
    d_values_ = d_keys_ + padded * e_;
    q_ = d_values_ + padded * e_;
    d_o_ = q_ + kRowTile * e_;
    d_q_ = d_o_ + kRowTile * e_;
    p_ = d_q_ + kRowTile * e_;
    d_s_ = p_ + kRowTile * kKeyBlock;
  }

  static int64_t Padded(int64_t length) { return (length + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }
  static int64_t ScratchFloats(int64_t length, int64_t e) {
    return 5 * Padded(length) * e + kRowTile * (3 * e + 2 * kKeyBlock) + 64;
  }

  void Run() {
    LoadKeysAndValues();
    const int64_t rows = length_ * group_;
    for (int64_t row = 0; row < rows; row += kRowTile) RunTile(row, std::min(kRowTile, rows - row));
    for (int64_t t = 0; t < length_; ++t) {
      StoreHead(call_.d_k, t, kv_head_, d_keys_ + t * e_);
      StoreHead(call_.d_v, t, kv_head_, d_values_ + t * e_);
    }
  }

 private:
  void LoadHead(const Tensor& tensor, int64_t token, int64_t head, float* to) const {
    ConvertToFloat(tensor.dtype, Offset(tensor.dtype, static_cast<const void*>(tensor.Row(begin_ + token)), head * e_),
                   to, static_cast<size_t>(e_));
  }

  void StoreHead(const Tensor& tensor, int64_t token, int64_t head, const float* from) const {
    ConvertFromFloat(tensor.dtype, from, Offset(tensor.dtype, tensor.Row(begin_ + token), head * e_),
                     static_cast<size_t>(e_));
  }

  void LoadKeysAndValues() {
    const int64_t padded = Padded(length_);
    std::memset(keys_, 0, static_cast<size_t>(5 * padded * e_) * sizeof(float));
    float* value = q_;  // the row tile is not in use yet
    for (int64_t t = 0; t < length_; ++t) {
      float* key = keys_ + t * e_;
      LoadHead(call_.k, t, kv_head_, key);
      LoadHead(call_.v, t, kv_head_, value);
      const int64_t block = t / kKeyBlock * kKeyBlock * e_ + t % kKeyBlock;
      for (int64_t i = 0; i < e_; ++i) {
        keys_t_[block + i * kKeyBlock] = key[i];
        values_t_[block + i * kKeyBlock] = value[i];
      }
    }
  }

  void RunTile(int64_t row_begin, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = (row_begin + r) / group_;
      const int64_t head = kv_head_ * group_ + (row_begin + r) % group_;
      LoadHead(call_.q, token, head, q_ + r * e_);
      LoadHead(call_.d_out, token, head, d_o_ + r * e_);
      LoadHead(call_.out, token, head, d_q_ + r * e_);  // only to form D; cleared below
      __m256 dot = _mm256_setzero_ps();
      for (int64_t i = 0; i < e_; i += kLanes) {
        dot = _mm256_fmadd_ps(LoadFloats(d_o_ + r * e_ + i, e_ - i), LoadFloats(d_q_ + r * e_ + i, e_ - i), dot);
      }
      delta_[r] = SumLanes(dot);
      lse_[r] = static_cast<const float*>(call_.lse.Row(begin_ + token))[head];
    }
    std::memset(d_q_, 0, static_cast<size_t>(rows * e_) * sizeof(float));
    const int64_t last = (row_begin + rows - 1) / group_;
    for (int64_t key = 0; key <= last; key += kKeyBlock) RunBlock(row_begin, rows, key);
    for (int64_t r = 0; r < rows; ++r) {
      StoreHead(call_.d_q, (row_begin + r) / group_, kv_head_ * group_ + (row_begin + r) % group_, d_q_ + r * e_);
    }
  }

  void RunBlock(int64_t row_begin, int64_t rows, int64_t key) {
    SmallProduct({q_, e_, 1}, {DType::kF32, keys_t_ + key * e_, kKeyBlock}, rows, kKeyBlock, e_, false, p_, kKeyBlock);
    SmallProduct({d_o_, e_, 1}, {DType::kF32, values_t_ + key * e_, kKeyBlock}, rows, kKeyBlock, e_, false, d_s_,
                 kKeyBlock);
    const __m256 scale = _mm256_set1_ps(call_.shape.scale);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t valid = std::clamp<int64_t>((row_begin + r) / group_ + 1 - key, 0, kKeyBlock);
      const __m256 lse = _mm256_set1_ps(lse_[r]);
      const __m256 delta = _mm256_set1_ps(delta_[r]);
      for (int64_t j = 0; j < kKeyBlock; j += kLanes) {
        float* p = p_ + r * kKeyBlock + j;
        float* d_s = d_s_ + r * kKeyBlock + j;
        __m256 weight = Exp(_mm256_sub_ps(_mm256_mul_ps(_mm256_loadu_ps(p), scale), lse));
        weight = _mm256_and_ps(weight, _mm256_castsi256_ps(LaneMask(valid - j)));
        _mm256_storeu_ps(p, weight);
        __m256 gradient = _mm256_mul_ps(_mm256_mul_ps(weight, _mm256_sub_ps(_mm256_loadu_ps(d_s), delta)), scale);
        _mm256_storeu_ps(d_s, _mm256_and_ps(gradient, _mm256_castsi256_ps(LaneMask(valid - j))));
      }
    }
    SmallProduct({d_s_, kKeyBlock, 1}, {DType::kF32, keys_ + key * e_, e_}, rows, e_, kKeyBlock, true, d_q_, e_);
    SmallProduct({d_s_, 1, kKeyBlock}, {DType::kF32, q_, e_}, kKeyBlock, e_, rows, true, d_keys_ + key * e_, e_);
    SmallProduct({p_, 1, kKeyBlock}, {DType::kF32, d_o_, e_}, kKeyBlock, e_, rows, true, d_values_ + key * e_, e_);
  }

  const Backward& call_;
  const int64_t begin_, length_, kv_head_, e_, group_;
  float *keys_, *keys_t_, *values_t_, *d_keys_, *d_values_;
  float *q_, *d_o_, *d_q_, *p_, *d_s_;
  float delta_[kRowTile], lse_[kRowTile];
};

}  // namespace

void AttentionPackedBackward(CpuContext& context, const AttentionShape& shape, const Tensor& d_out, const Tensor& q,
                             const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                             std::span<const int32_t> cu_seqlens, const Tensor& d_q, const Tensor& d_k,
                             const Tensor& d_v) {
  if (cu_seqlens.size() < 2) return;
  const Backward call{shape, d_out, q, k, v, out, lse, d_q, d_k, d_v};
  const int64_t sequences = static_cast<int64_t>(cu_seqlens.size()) - 1;
  int64_t longest = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    longest = std::max<int64_t>(longest, cu_seqlens[static_cast<size_t>(s) + 1] - cu_seqlens[static_cast<size_t>(s)]);
  }
  const size_t floats = static_cast<size_t>(Item::ScratchFloats(longest, std::max<int64_t>(shape.head_dim, 1)));
  float* scratch = context.attention.Get<float>(floats * static_cast<size_t>(context.pool.threads()));
  std::atomic<int64_t> next{0};
  context.pool.Run([&](int thread, int) {
    float* own = scratch + floats * static_cast<size_t>(thread);
    const int64_t items = sequences * shape.num_kv_heads;
    for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) {
      const size_t s = static_cast<size_t>(i / shape.num_kv_heads);
      const int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
      if (length > 0) Item(call, cu_seqlens[s], length, i % shape.num_kv_heads, own).Run();
    }
  });
}

}  // namespace lockstep::cpu
