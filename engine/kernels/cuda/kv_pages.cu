// Copy-on-write of a page. Elements are moved as words of their size; a thread has one of a key and one of a value.
#include "engine/kernels/contract.h"
#include "engine/kernels/cuda/kv_pages.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;

struct PageCopy {
  char* keys;
  char* values;
  int64_t layer_stride;
  int64_t num_kv_heads, head_dim, tokens;
  int64_t from, to;  // elements
};

template <typename Word>
__global__ void CopyKvPageKernel(PageCopy a) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, layer = blockIdx.y;
  if (at >= a.num_kv_heads * a.head_dim * a.tokens) return;
  Word* keys = reinterpret_cast<Word*>(a.keys + layer * a.layer_stride);
  const int64_t key = at / a.tokens * kPageTokens + at % a.tokens;  // [G E][16]: a prefix of each row
  keys[a.to + key] = keys[a.from + key];
  Word* values = reinterpret_cast<Word*>(a.values + layer * a.layer_stride);
  const int64_t prefix = a.tokens * a.head_dim;  // [G][16][E]: the first rows of each head
  const int64_t value = at / prefix * kPageTokens * a.head_dim + at % prefix;
  values[a.to + value] = values[a.from + value];
}

}  // namespace

cudaError_t CopyKvPage(const KvLayers& layers, int32_t from, int32_t to, int64_t tokens, cudaStream_t stream) {
  LOCKSTEP_CHECK(from >= 0 && from < layers.num_pages && to >= 0 && to < layers.num_pages, "KV page out of range");
  LOCKSTEP_CHECK(tokens >= 0 && tokens <= kPageTokens, "more tokens than a page holds");
  if (from == to) return cudaSuccess;
  const int64_t page = layers.num_kv_heads * layers.head_dim * kPageTokens;
  const PageCopy args = {static_cast<char*>(layers.keys),
                         static_cast<char*>(layers.values),
                         layers.layer_stride,
                         layers.num_kv_heads,
                         layers.head_dim,
                         tokens,
                         from * page,
                         to * page};
  const int64_t blocks = CeilDiv(layers.num_kv_heads * layers.head_dim * tokens, kThreads);
  return DTypeSize(layers.dtype) == 4
             ? Launch(CopyKvPageKernel<uint32_t>, blocks, layers.num_layers, kThreads, stream, args)
             : Launch(CopyKvPageKernel<uint16_t>, blocks, layers.num_layers, kThreads, stream, args);
}

}  // namespace lockstep::cuda
