#include <cstring>

#include "engine/base/check.h"
#include "engine/model/decoder.h"

namespace lockstep {
namespace {

// Keys of one page in one layer: [G][E][kPageTokens]; values, [G][kPageTokens][E], have as many bytes.
size_t HalfPageBytes(const ModelConfig& config, DType dtype) {
  return config.num_kv_heads * config.head_dim * kPageTokens * DTypeSize(dtype);
}

}  // namespace

KvStorage::KvStorage(const ModelConfig& config, DType dtype, int64_t num_pages)
    : dtype_(dtype),
      num_pages_(num_pages),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      layer_bytes_(HalfPageBytes(config, dtype) * num_pages) {
  for (int64_t i = 0; i < config.num_layers; ++i) layers_.emplace_back(2 * layer_bytes_);
}

KvPages KvStorage::layer(int64_t layer) const {
  char* data = const_cast<char*>(layers_[layer].As<char>());
  return {.dtype = dtype_, .keys = data, .values = data + layer_bytes_, .num_pages = num_pages_};
}

size_t KvStorage::BytesPerPage(const ModelConfig& config, DType dtype) {
  return 2 * config.num_layers * HalfPageBytes(config, dtype);
}

void KvStorage::CopyPage(int32_t from, int32_t to, int64_t tokens) {
  LOCKSTEP_CHECK(from >= 0 && from < num_pages_ && to >= 0 && to < num_pages_, "KV page out of range");
  LOCKSTEP_CHECK(tokens >= 0 && tokens <= kPageTokens, "more tokens than a page holds");
  const int64_t size = static_cast<int64_t>(DTypeSize(dtype_));
  const int64_t page_bytes = num_kv_heads_ * head_dim_ * kPageTokens * size;
  for (Buffer& layer : layers_) {
    char* keys = layer.As<char>();
    char* values = keys + layer_bytes_;
    for (int64_t row = 0; row < num_kv_heads_ * head_dim_; ++row) {  // [G E][16]: a prefix of each row
      const int64_t offset = row * kPageTokens * size;
      std::memcpy(keys + to * page_bytes + offset, keys + from * page_bytes + offset, tokens * size);
    }
    for (int64_t head = 0; head < num_kv_heads_; ++head) {  // [G][16][E]: the first rows of each head
      const int64_t offset = head * kPageTokens * head_dim_ * size;
      std::memcpy(values + to * page_bytes + offset, values + from * page_bytes + offset, tokens * head_dim_ * size);
    }
  }
}

}  // namespace lockstep
