#include "engine/cuda/device_kv.h"

#include <utility>

#include "engine/base/check.h"
#include "engine/kernels/contract.h"

namespace lockstep::cuda {
namespace {

// Keys of one page in one layer; values have as many bytes.
int64_t HalfPageBytes(const ModelConfig& config, DType dtype) {
  return config.num_kv_heads * config.head_dim * kPageTokens * static_cast<int64_t>(DTypeSize(dtype));
}

}  // namespace

size_t DeviceKv::BytesPerPage(const ModelConfig& config, DType dtype) {
  return static_cast<size_t>(2 * config.num_layers * HalfPageBytes(config, dtype));
}

absl::StatusOr<DeviceKv> DeviceKv::Allocate(const ModelConfig& config, DType dtype, int64_t num_pages,
                                            const Stream& stream) {
  DeviceKv cache;
  auto memory = DeviceBuffer::Allocate(BytesPerPage(config, dtype) * static_cast<size_t>(num_pages), "the KV cache");
  if (!memory.ok()) return memory.status();
  cache.memory_ = *std::move(memory);
  const int64_t half = HalfPageBytes(config, dtype) * num_pages;
  cache.layers_ = {.dtype = dtype,
                   .num_kv_heads = config.num_kv_heads,
                   .head_dim = config.head_dim,
                   .num_pages = num_pages,
                   .num_layers = config.num_layers,
                   .layer_stride = 2 * half,
                   .keys = cache.memory_.data(),
                   .values = cache.memory_.As<char>() + half};
  // What a page holds beyond its tokens is multiplied by 0: it must be finite.
  if (absl::Status status = cache.memory_.Zero(stream); !status.ok()) return status;
  return cache;
}

absl::Status DeviceKv::CopyPage(int32_t from, int32_t to, int64_t tokens, const Stream& stream) const {
  LOCKSTEP_CHECK(from >= 0 && from < num_pages() && to >= 0 && to < num_pages(), "KV page out of range");
  return CudaStatus(CopyKvPage(layers_, from, to, tokens, stream.get()), "copying a KV page");
}

}  // namespace lockstep::cuda
