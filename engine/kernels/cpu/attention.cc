#include "engine/kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/base/check.h"
#include "engine/kernels/cpu/small_product.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {
namespace {

constexpr int64_t kTileTokens = 16;  // query tokens that share one pass over the keys
constexpr int64_t kTileRows = 12;    // rows that go over the keys together: two register tiles, or one group of 7
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

struct Item {
  int64_t sequence;
  int64_t kv_head;
  int64_t token_begin;  // within the sequence's rows of this call
  int64_t token_count;
};

std::vector<Item> MakeItems(std::span<const PagedSequence> sequences, int64_t kv_heads) {
  std::vector<Item> items;
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (int64_t t = 0; t < sequences[s].row_count; t += kTileTokens) {
      for (int64_t g = 0; g < kv_heads; ++g) {
        items.push_back({static_cast<int64_t>(s), g, t, std::min(kTileTokens, sequences[s].row_count - t)});
      }
    }
  }
  return items;
}

// What differs between the matched and the native kernel.
struct Variant {
  int64_t block = kAttentionBlock;
  bool scale_query = false;
};

// Everything of one call that does not change from row to row.
struct Call {
  const AttentionShape& shape;
  const Tensor& q;
  const KvPages& cache;
  const Tensor& out;
  const Tensor* lse;  // null: not wanted
  Variant variant;
};

const void* KeyPage(const Call& call, int32_t page, int64_t kv_head) {
  const int64_t block = call.shape.head_dim * kPageTokens;
  return Offset(call.cache.dtype, static_cast<const void*>(call.cache.keys),
                (page * call.shape.num_kv_heads + kv_head) * block);
}

const void* ValuePage(const Call& call, int32_t page, int64_t kv_head) {
  const int64_t block = call.shape.head_dim * kPageTokens;
  return Offset(call.cache.dtype, static_cast<const void*>(call.cache.values),
                (page * call.shape.num_kv_heads + kv_head) * block);
}

// scores [count] -> weights exp(s - m'), in place; keys at and beyond `valid` get 0. Updates m and l; returns exp(m -
// m').
float SoftmaxStep(float* scores, int64_t count, int64_t valid, float scale, float& running_max, float& running_sum) {
  const __m256 factor = _mm256_set1_ps(scale);
  __m256 largest = _mm256_set1_ps(kNegativeInfinity);
  for (int64_t j = 0; j < count; j += kLanes) {
    __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scores + j), factor);
    if (j + kLanes > valid) {
      s = _mm256_blendv_ps(_mm256_set1_ps(kNegativeInfinity), s, _mm256_castsi256_ps(LaneMask(valid - j)));
    }
    _mm256_storeu_ps(scores + j, s);
    largest = _mm256_max_ps(s, largest);
  }
  const float next_max = std::max(running_max, MaxLanes(largest));
  const float alpha = ExpScalar(running_max - next_max);
  const __m256 center = _mm256_set1_ps(next_max);
  __m256 sum = _mm256_setzero_ps();
  for (int64_t j = 0; j < count; j += kLanes) {
    const __m256 p = Exp(_mm256_sub_ps(_mm256_loadu_ps(scores + j), center));
    _mm256_storeu_ps(scores + j, p);
    sum = _mm256_add_ps(sum, p);
  }
  running_sum = running_sum * alpha + SumLanes(sum);
  running_max = next_max;
  return alpha;
}

// At most kTileRows rows of one item: rows are (token, head of the group), token-major.
class RowTile {
 public:
  RowTile(const Call& call, const PagedSequence& sequence, int64_t kv_head, float* scratch)
      : call_(call),
        sequence_(sequence),
        kv_head_(kv_head),
        q_(scratch),
        o_(q_ + kTileRows * call.shape.head_dim),
        scores_(o_ + kTileRows * call.shape.head_dim) {}

  static int64_t ScratchFloats(int64_t head_dim) { return kTileRows * (2 * head_dim + kAttentionBlock) + 64; }

  // prefetch: the item's first tile brings its keys and values from memory, the others find them in a cache. A page is
  // shorter than what the hardware prefetcher needs to catch on, and the next one lies elsewhere.
  void Run(int64_t row_begin, int64_t row_count, bool prefetch) {
    const int64_t e = call_.shape.head_dim;
    rows_ = row_count;
    int64_t last = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      Place(row_begin + r, r);
      last = std::max(last, position_[r]);
    }
    std::fill(o_, o_ + rows_ * e, 0.0f);
    for (int64_t begin = 0; begin <= last; begin += call_.variant.block) Block(begin, last, prefetch);
    for (int64_t r = 0; r < rows_; ++r) Finish(r);
  }

 private:
  void Place(int64_t row, int64_t r) {
    const int64_t group = call_.shape.num_heads / call_.shape.num_kv_heads;
    const int64_t e = call_.shape.head_dim;
    const int64_t token = row / group;
    head_[r] = kv_head_ * group + row % group;
    tensor_row_[r] = sequence_.row_begin + token;
    position_[r] = sequence_.position_begin + token;
    max_[r] = kNegativeInfinity;
    sum_[r] = 0;
    float* to = q_ + r * e;
    ConvertToFloat(call_.q.dtype, Offset(call_.q.dtype, call_.q.Row(tensor_row_[r]), head_[r] * e), to,
                   static_cast<size_t>(e));
    if (call_.variant.scale_query) {
      for (int64_t i = 0; i < e; ++i) to[i] *= call_.shape.scale;
    }
  }

  void Block(int64_t begin, int64_t last, bool prefetch) {
    const int64_t e = call_.shape.head_dim;
    const int64_t page_bytes = e * kPageTokens * static_cast<int64_t>(DTypeSize(call_.cache.dtype));
    const int64_t keys = std::min(call_.variant.block, last + 1 - begin);
    const int64_t pages = (keys + kPageTokens - 1) / kPageTokens;
    const int64_t count = pages * kPageTokens;
    const int64_t first_page = begin / kPageTokens;
    for (int64_t p = 0; p < pages; ++p) {
      const void* page = KeyPage(call_, sequence_.pages[static_cast<size_t>(first_page + p)], kv_head_);
      Prefetcher ahead;
      if (prefetch) {
        ahead.Add(ValuePage(call_, sequence_.pages[static_cast<size_t>(first_page + p)], kv_head_), page_bytes);
        if (begin == 0 && p + 1 < pages) {
          ahead.Add(KeyPage(call_, sequence_.pages[static_cast<size_t>(p + 1)], kv_head_), page_bytes);
        }
      }
      SmallProduct({q_, e, 1}, {call_.cache.dtype, page, kPageTokens}, rows_, kPageTokens, e, false,
                   scores_ + p * kPageTokens, kAttentionBlock, ahead);
    }
    const float scale = call_.variant.scale_query ? 1.0f : call_.shape.scale;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t valid = std::clamp<int64_t>(position_[r] + 1 - begin, 0, keys);
      const __m256 alpha =
          _mm256_set1_ps(SoftmaxStep(scores_ + r * kAttentionBlock, count, valid, scale, max_[r], sum_[r]));
      for (int64_t i = 0; i < e; i += kLanes) {
        float* o = o_ + r * e + i;
        StoreFloats(o, _mm256_mul_ps(LoadFloats(o, e - i), alpha), e - i);
      }
    }
    for (int64_t p = 0; p < pages; ++p) {
      const void* page = ValuePage(call_, sequence_.pages[static_cast<size_t>(first_page + p)], kv_head_);
      // Rows of one token end at the same key. A page that all rows see whole is one product; in the last pages each
      // token takes its own keys and no more: a weight of 0 does not hide a later value that is not finite.
      const int64_t page_begin = begin + p * kPageTokens;
      const int64_t next = page_begin + call_.variant.block;  // the same page of the next block
      Prefetcher ahead;
      if (prefetch && next <= last) {
        ahead.Add(KeyPage(call_, sequence_.pages[static_cast<size_t>(next / kPageTokens)], kv_head_), page_bytes);
      }
      int64_t row = 0;
      while (row < rows_) {
        const int64_t depth = std::clamp<int64_t>(position_[row] + 1 - page_begin, 0, kPageTokens);
        int64_t end = row + 1;
        while (end < rows_ && std::clamp<int64_t>(position_[end] + 1 - page_begin, 0, kPageTokens) == depth) ++end;
        if (depth > 0) {
          SmallProduct({scores_ + row * kAttentionBlock + p * kPageTokens, kAttentionBlock, 1},
                       {call_.cache.dtype, page, e}, end - row, e, depth, true, o_ + row * e, e, ahead);
          ahead = {};
        }
        row = end;
      }
    }
  }

  void Finish(int64_t r) {
    const int64_t e = call_.shape.head_dim;
    const __m256 inverse = _mm256_set1_ps(1.0f / sum_[r]);
    void* to = Offset(call_.out.dtype, call_.out.Row(tensor_row_[r]), head_[r] * e);
    for (int64_t i = 0; i < e; i += kLanes) {
      Store(call_.out.dtype, Offset(call_.out.dtype, to, i), _mm256_mul_ps(LoadFloats(o_ + r * e + i, e - i), inverse),
            e - i);
    }
    if (call_.lse != nullptr) {
      static_cast<float*>(call_.lse->Row(tensor_row_[r]))[head_[r]] = max_[r] + LogScalar(sum_[r]);
    }
  }

  const Call& call_;
  const PagedSequence& sequence_;
  const int64_t kv_head_;
  float* const q_;       // [rows, E]
  float* const o_;       // [rows, E]
  float* const scores_;  // [rows, kAttentionBlock]
  int64_t rows_ = 0;
  int64_t tensor_row_[kTileRows], head_[kTileRows], position_[kTileRows];
  float max_[kTileRows], sum_[kTileRows];
};

void RunAttention(CpuContext& context, const Call& call, std::span<const PagedSequence> sequences) {
  const std::vector<Item> items = MakeItems(sequences, call.shape.num_kv_heads);
  const int64_t group = call.shape.num_heads / call.shape.num_kv_heads;
  const size_t floats = static_cast<size_t>(RowTile::ScratchFloats(call.shape.head_dim));
  float* scratch = context.attention.Get<float>(floats * static_cast<size_t>(context.pool.threads()));
  std::atomic<size_t> next{0};
  // Items write disjoint rows, so which thread takes which does not show in the result. The longest come last in a
  // sequence: take them first.
  context.pool.Run([&](int thread, int) {
    float* own = scratch + floats * static_cast<size_t>(thread);
    for (size_t taken = next.fetch_add(1); taken < items.size(); taken = next.fetch_add(1)) {
      const Item& item = items[items.size() - 1 - taken];
      RowTile tile(call, sequences[static_cast<size_t>(item.sequence)], item.kv_head, own);
      const int64_t rows = item.token_count * group;
      const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = rows * b / blocks;
        tile.Run(item.token_begin * group + begin, rows * (b + 1) / blocks - begin, b == 0);
      }
    }
  });
}

template <typename T>
void WriteKeys(const T* from, int64_t e, int64_t slot, T* page) {
  for (int64_t i = 0; i < e; ++i) page[i * kPageTokens + slot] = from[i];
}

}  // namespace

void WriteKv(CpuContext& context, const AttentionShape& shape, const Tensor& k, const Tensor& v,
             std::span<const PagedSequence> sequences, const KvPages& cache) {
  LOCKSTEP_CHECK(k.dtype == cache.dtype && v.dtype == cache.dtype, "keys and values have the cache's dtype");
  const int64_t e = shape.head_dim;
  const size_t element = DTypeSize(cache.dtype);
  context.pool.Run([&](int thread, int threads) {
    const auto [head_begin, head_end] = StaticSplit(shape.num_kv_heads, 1, thread, threads);
    for (const PagedSequence& sequence : sequences) {
      for (int64_t t = 0; t < sequence.row_count; ++t) {
        const int64_t position = sequence.position_begin + t;
        const int32_t page = sequence.pages[static_cast<size_t>(position / kPageTokens)];
        const int64_t slot = position % kPageTokens;
        for (int64_t g = head_begin; g < head_end; ++g) {
          const int64_t block = (page * shape.num_kv_heads + g) * e * kPageTokens;
          const void* key = Offset(k.dtype, static_cast<const void*>(k.Row(sequence.row_begin + t)), g * e);
          const void* value = Offset(v.dtype, static_cast<const void*>(v.Row(sequence.row_begin + t)), g * e);
          void* key_page = Offset(cache.dtype, cache.keys, block);
          if (element == 4) {
            WriteKeys(static_cast<const float*>(key), e, slot, static_cast<float*>(key_page));
          } else {
            WriteKeys(static_cast<const uint16_t*>(key), e, slot, static_cast<uint16_t*>(key_page));
          }
          std::memcpy(Offset(cache.dtype, cache.values, block + slot * e), value, static_cast<size_t>(e) * element);
        }
      }
    }
  });
}

void AttentionPaged(CpuContext& context, const AttentionShape& shape, const Tensor& q,
                    std::span<const PagedSequence> sequences, const KvPages& cache, const Tensor& out) {
  RunAttention(context, {shape, q, cache, out, nullptr, Variant{}}, sequences);
}

void AttentionPacked(CpuContext& context, const AttentionShape& shape, const Tensor& q, const Tensor& k,
                     const Tensor& v, std::span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse) {
  if (cu_seqlens.size() < 2) return;
  std::vector<PagedSequence> sequences;
  std::vector<int32_t> page_ids;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    for (int64_t p = 0; p < (length + kPageTokens - 1) / kPageTokens; ++p) {
      page_ids.push_back(static_cast<int32_t>(page_ids.size()));
    }
  }
  size_t first_page = 0;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    const size_t pages = static_cast<size_t>((length + kPageTokens - 1) / kPageTokens);
    sequences.push_back({cu_seqlens[s], length, 0, std::span<const int32_t>(page_ids).subspan(first_page, pages)});
    first_page += pages;
  }
  const size_t side =
      page_ids.size() * static_cast<size_t>(shape.num_kv_heads * shape.head_dim * kPageTokens) * DTypeSize(k.dtype);
  char* pages = context.attention_kv.Get<char>(2 * side + 64);
  const KvPages cache{k.dtype, pages, pages + side, static_cast<int64_t>(page_ids.size())};
  WriteKv(context, shape, k, v, sequences, cache);
  Variant variant;
  if (context.numerics == Numerics::kNative) variant = {kNativePackedBlock, true};
  RunAttention(context, {shape, q, cache, out, lse.data == nullptr ? nullptr : &lse, variant}, sequences);
}

}  // namespace lockstep::cpu
