#include "engine/model/paged_logits.h"

#include <algorithm>

namespace lockstep {
namespace {

void GrowTo(Buffer& buffer, int64_t bytes) {
  if (buffer.bytes() < static_cast<size_t>(bytes)) buffer = Buffer(static_cast<size_t>(bytes));
}

}  // namespace

void PagedLogits::Forward(Decoder& decoder, const Weights& weights, const PagedBatch& batch, const KvStorage& cache,
                          std::string* routing) {
  const int64_t width = weights.config.hidden_size;
  rows_ = static_cast<int64_t>(batch.output_rows.size());
  next_ = 0;
  GrowTo(hidden_, std::max<int64_t>(rows_, 1) * width * static_cast<int64_t>(DTypeSize(weights.dtype)));
  decoder.ForwardPaged(weights, batch, cache, Tensor(hidden_.data(), weights.dtype, rows_, width), routing);
}

bool PagedLogits::Next(Decoder& decoder, const Weights& weights, Chunk* chunk) {
  if (next_ >= rows_) return false;
  const int64_t vocab_size = weights.config.vocab_size;
  chunk->first = next_;
  chunk->count = std::min(kRows, rows_ - next_);
  GrowTo(logits_, chunk->count * vocab_size * static_cast<int64_t>(sizeof(float)));
  chunk->logits = Tensor(logits_.data(), DType::kF32, chunk->count, vocab_size);
  const Tensor hidden(hidden_.data(), weights.dtype, rows_, weights.config.hidden_size);
  decoder.Logits(weights, hidden.Rows(chunk->first, chunk->count), chunk->logits);
  next_ += chunk->count;
  return true;
}

}  // namespace lockstep
