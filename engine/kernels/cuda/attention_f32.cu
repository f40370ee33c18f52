// Attention in FP32, forward and backward, as the CPU's matched operations compute it (engine/kernels/cpu/attention.cc,
// attention_backward.cc): a block of threads has one row, or one key, and a thread one score, then one element of E.
#include "engine/kernels/cuda/attention_launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;
static_assert(kThreads == kAttentionBlock);

// Keys and values of one sequence and kv head. Element e of a key is kKeyStep e away from its first.
struct PackedSource {
  static constexpr int kKeyStep = 1;
  const float* keys;  // of position 0
  const float* values;
  int64_t key_stride, value_stride;
  __device__ const float* Key(int position) const { return keys + position * key_stride; }
  __device__ const float* Value(int position) const { return values + position * value_stride; }
};

struct PagedSource {
  static constexpr int kKeyStep = static_cast<int>(kPageTokens);
  const int32_t* pages;
  const float* keys;  // of page 0, this kv head
  const float* values;
  int64_t page_stride;
  int head_dim;
  __device__ const float* Key(int position) const {
    return keys + pages[position / kPageTokens] * page_stride + position % kPageTokens;
  }
  __device__ const float* Value(int position) const {
    return values + pages[position / kPageTokens] * page_stride + position % kPageTokens * head_dim;
  }
};

// One fma chain over ascending e.
template <int kStep>
__device__ float Dot(const float* a, const float* b, int head_dim) {
  float sum = 0;
#pragma unroll 4
  for (int e = 0; e < head_dim; ++e) sum = fmaf(a[e], b[e * kStep], sum);
  return sum;
}

// Row of q and out of E elements, positions 0 .. `position`. lse: null where it is not wanted.
template <typename Source>
__device__ void AttendRow(const Source& source, const float* q, int position, int head_dim, float scale, float* out,
                          float* lse) {
  __shared__ float query[kAttentionBlock], weights[kAttentionBlock], maxima[kThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < head_dim) query[thread] = q[thread];
  __syncthreads();
  SoftmaxState state;
  float o = 0;
  for (int begin = 0; begin <= position; begin += kThreads) {
    const int key = begin + thread;
    const float score = key <= position ? Dot<Source::kKeyStep>(query, source.Key(key), head_dim) * scale : kNoScore;
    const float factor = Extend<MatchedExponential>(state, BlockMax<kThreads>(score, maxima));
    weights[thread] = Exp(score - state.max);
    __syncthreads();
    float lane = 0;
    for (int i = thread % static_cast<int>(kVirtualLanes); i < kThreads; i += kVirtualLanes) lane += weights[i];
    state.sum += SumLanes(lane, LaneGroupMask());
    if (thread < head_dim) {
      o *= factor;
      const int count = position + 1 - begin < kThreads ? position + 1 - begin : kThreads;
      for (int j = 0; j < count; ++j) o = fmaf(weights[j], source.Value(begin + j)[thread], o);
    }
    __syncthreads();
  }
  if (thread < head_dim) out[thread] = o * (1.0f / state.sum);
  if (thread == 0 && lse != nullptr) *lse = state.max + Log(state.sum);
}

struct Heads {
  int64_t num_heads, num_kv_heads;
  int head_dim;
  float scale;
};

struct PagedArgs {
  Heads heads;
  Rows<const float> q;
  Rows<float> out;
  PagedView view;
};

// Block x: a row and a query head.
__global__ void AttentionPagedF32Kernel(PagedArgs a) {
  const int64_t token = blockIdx.x / a.heads.num_heads, head = blockIdx.x % a.heads.num_heads;
  const int64_t kv_head = head / (a.heads.num_heads / a.heads.num_kv_heads);
  const int e = a.heads.head_dim;
  const int32_t sequence = a.view.row_sequence[token];
  float* out = a.out.data + token * a.out.stride + head * e;
  if (sequence < 0) {
    if (threadIdx.x < static_cast<unsigned>(e)) out[threadIdx.x] = 0;
    return;
  }
  const int64_t block = e * kPageTokens;
  const PagedSource source = {a.view.block_table + sequence * a.view.table_stride,
                              static_cast<const float*>(a.view.key_pages) + kv_head * block,
                              static_cast<const float*>(a.view.value_pages) + kv_head * block,
                              a.heads.num_kv_heads * block, e};
  AttendRow(source, a.q.data + token * a.q.stride + head * e, a.view.positions[token], e, a.heads.scale, out, nullptr);
}

struct PackedArgs {
  Heads heads;
  Rows<const float> q, k, v;
  const int32_t* cu_seqlens;
  Rows<float> out, lse;
};

// Block x: a token and a query head; y: a sequence.
__global__ void AttentionPackedF32Kernel(PackedArgs a) {
  const int64_t token = blockIdx.x / a.heads.num_heads, head = blockIdx.x % a.heads.num_heads;
  const int64_t kv_head = head / (a.heads.num_heads / a.heads.num_kv_heads);
  const int64_t begin = a.cu_seqlens[blockIdx.y], row = begin + token;
  if (row >= a.cu_seqlens[blockIdx.y + 1]) return;
  const int e = a.heads.head_dim;
  const PackedSource source = {a.k.data + begin * a.k.stride + kv_head * e, a.v.data + begin * a.v.stride + kv_head * e,
                               a.k.stride, a.v.stride};
  float* lse = a.lse.data == nullptr ? nullptr : a.lse.data + row * a.lse.stride + head;
  AttendRow(source, a.q.data + row * a.q.stride + head * e, static_cast<int>(token), e, a.heads.scale,
            a.out.data + row * a.out.stride + head * e, lse);
}

// ---- backward

struct BackwardArgs {
  Heads heads;
  Rows<const float> d_out, q, k, v, lse;
  const float* delta;
  const int32_t* cu_seqlens;
  Rows<float> d_q, d_k, d_v;
};

struct Weight {
  float p;         // exp(score - lse)
  float gradient;  // of the score before scale
};
__device__ Weight WeightOf(float product, float d_weight, float lse, float delta, float scale) {
  const float p = Exp(product * scale - lse);
  return {p, p * (d_weight - delta) * scale};
}

// Block x: a token and a query head; y: a sequence. Keys ascending, 128 of them at a time.
__global__ void AttentionQueryGradientF32Kernel(BackwardArgs a) {
  __shared__ float query[kThreads], d_output[kThreads], gradients[kThreads];
  const int64_t token = blockIdx.x / a.heads.num_heads, head = blockIdx.x % a.heads.num_heads;
  const int64_t kv_head = head / (a.heads.num_heads / a.heads.num_kv_heads);
  const int64_t begin = a.cu_seqlens[blockIdx.y], row = begin + token;
  if (row >= a.cu_seqlens[blockIdx.y + 1]) return;
  const int e = a.heads.head_dim, thread = static_cast<int>(threadIdx.x);
  if (thread < e) {
    query[thread] = a.q.data[row * a.q.stride + head * e + thread];
    d_output[thread] = a.d_out.data[row * a.d_out.stride + head * e + thread];
  }
  __syncthreads();
  const float lse = a.lse.data[row * a.lse.stride + head], delta = a.delta[row * a.heads.num_heads + head];
  const float* keys = a.k.data + begin * a.k.stride + kv_head * e;
  const float* values = a.v.data + begin * a.v.stride + kv_head * e;
  float sum = 0;
  for (int64_t first = 0; first <= token; first += kThreads) {
    const int64_t key = first + thread;
    gradients[thread] = key > token
                            ? 0.0f
                            : WeightOf(Dot<1>(query, keys + key * a.k.stride, e),
                                       Dot<1>(d_output, values + key * a.v.stride, e), lse, delta, a.heads.scale)
                                  .gradient;
    __syncthreads();
    const int count = static_cast<int>(token + 1 - first < kThreads ? token + 1 - first : kThreads);
    if (thread < e) {
      for (int j = 0; j < count; ++j) sum = fmaf(gradients[j], keys[(first + j) * a.k.stride + thread], sum);
    }
    __syncthreads();
  }
  if (thread < e) a.d_q.data[row * a.d_q.stride + head * e + thread] = sum;
}

// Block x: a key and its head; y: a sequence. The rows that see it, ascending: tokens, and of each the group's heads.
__global__ void AttentionKeyGradientF32Kernel(BackwardArgs a) {
  __shared__ float key[kThreads], value[kThreads], weights[kThreads], gradients[kThreads];
  const int64_t position = blockIdx.x / a.heads.num_kv_heads, kv_head = blockIdx.x % a.heads.num_kv_heads;
  const int64_t begin = a.cu_seqlens[blockIdx.y], length = a.cu_seqlens[blockIdx.y + 1] - begin;
  if (position >= length) return;
  const int64_t group = a.heads.num_heads / a.heads.num_kv_heads;
  const int e = a.heads.head_dim, thread = static_cast<int>(threadIdx.x);
  if (thread < e) {
    key[thread] = a.k.data[(begin + position) * a.k.stride + kv_head * e + thread];
    value[thread] = a.v.data[(begin + position) * a.v.stride + kv_head * e + thread];
  }
  __syncthreads();
  float d_key = 0, d_value = 0;
  for (int64_t first = position * group; first < length * group; first += kThreads) {
    const int64_t left = length * group - first;
    if (thread < left) {
      const int64_t row = begin + (first + thread) / group, head = kv_head * group + (first + thread) % group;
      const Weight weight =
          WeightOf(Dot<1>(a.q.data + row * a.q.stride + head * e, key, e),
                   Dot<1>(a.d_out.data + row * a.d_out.stride + head * e, value, e),
                   a.lse.data[row * a.lse.stride + head], a.delta[row * a.heads.num_heads + head], a.heads.scale);
      weights[thread] = weight.p;
      gradients[thread] = weight.gradient;
    }
    __syncthreads();
    const int count = static_cast<int>(left < kThreads ? left : kThreads);
    if (thread < e) {
      for (int i = 0; i < count; ++i) {
        const int64_t row = begin + (first + i) / group, column = (kv_head * group + (first + i) % group) * e + thread;
        d_key = fmaf(gradients[i], a.q.data[row * a.q.stride + column], d_key);
        d_value = fmaf(weights[i], a.d_out.data[row * a.d_out.stride + column], d_value);
      }
    }
    __syncthreads();
  }
  if (thread >= e) return;
  a.d_k.data[(begin + position) * a.d_k.stride + kv_head * e + thread] = d_key;
  a.d_v.data[(begin + position) * a.d_v.stride + kv_head * e + thread] = d_value;
}

Heads HeadsOf(const AttentionShape& shape) {
  return {shape.num_heads, shape.num_kv_heads, static_cast<int>(shape.head_dim), shape.scale};
}

}  // namespace

cudaError_t AttentionPagedF32(const AttentionShape& shape, const Tensor& q, const PagedView& view, const Tensor& out,
                              cudaStream_t stream) {
  const PagedArgs args = {HeadsOf(shape), RowsOf<const float>(q), RowsOf<float>(out), view};
  return Launch(AttentionPagedF32Kernel, q.rows * shape.num_heads, 1, kThreads, stream, args);
}

cudaError_t AttentionPackedF32(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                               const int32_t* cu_seqlens, int64_t num_sequences, int64_t max_length, const Tensor& out,
                               const Tensor& lse, cudaStream_t stream) {
  const PackedArgs args = {HeadsOf(shape), RowsOf<const float>(q), RowsOf<const float>(k), RowsOf<const float>(v),
                           cu_seqlens,     RowsOf<float>(out),     RowsOf<float>(lse)};
  return Launch(AttentionPackedF32Kernel, max_length * shape.num_heads, num_sequences, kThreads, stream, args);
}

cudaError_t AttentionPackedBackwardF32(const AttentionShape& shape, const Tensor& d_out, const Tensor& q,
                                       const Tensor& k, const Tensor& v, const Tensor& lse, const float* delta,
                                       const int32_t* cu_seqlens, int64_t num_sequences, int64_t max_length,
                                       const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, cudaStream_t stream) {
  const BackwardArgs args = {HeadsOf(shape),
                             RowsOf<const float>(d_out),
                             RowsOf<const float>(q),
                             RowsOf<const float>(k),
                             RowsOf<const float>(v),
                             RowsOf<const float>(lse),
                             delta,
                             cu_seqlens,
                             RowsOf<float>(d_q),
                             RowsOf<float>(d_k),
                             RowsOf<float>(d_v)};
  const cudaError_t error =
      Launch(AttentionQueryGradientF32Kernel, max_length * shape.num_heads, num_sequences, kThreads, stream, args);
  if (error != cudaSuccess) return error;
  return Launch(AttentionKeyGradientF32Kernel, max_length * shape.num_kv_heads, num_sequences, kThreads, stream, args);
}

}  // namespace lockstep::cuda
