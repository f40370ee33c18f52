// The logits of a paged forward pass, a few rows at a time: what a rollout engine and everything that repeats its
// passes share, with the scratch that it takes.
#ifndef LOCKSTEP_ENGINE_MODEL_PAGED_LOGITS_H_
#define LOCKSTEP_ENGINE_MODEL_PAGED_LOGITS_H_

#include <cstdint>
#include <string>

#include "engine/model/decoder.h"

namespace lockstep {

//   logits.Forward(decoder, weights, batch, cache);
//   for (PagedLogits::Chunk chunk; logits.Next(decoder, weights, &chunk);) ...
// Not thread safe. Scratch grows to the largest batch seen, then no call allocates.
class PagedLogits {
 public:
  // Rows of vocabulary-sized logits that exist at a time.
  static constexpr int64_t kRows = 64;

  // Rows [first, first + count) of the batch's output rows.
  struct Chunk {
    int64_t first = 0;
    int64_t count = 0;
    Tensor logits;  // [count, V] FP32, valid until the next call
    const float* row(int64_t i) const { return static_cast<const float*>(logits.Row(i)); }
  };

  // routing (may be null): see Decoder::ForwardPaged.
  void Forward(Decoder& decoder, const Weights& weights, const PagedBatch& batch, const KvStorage& cache,
               std::string* routing = nullptr);
  // The next rows of the last Forward, ascending; false: there are no more.
  bool Next(Decoder& decoder, const Weights& weights, Chunk* chunk);

 private:
  Buffer hidden_;  // [output rows, D]
  Buffer logits_;  // [kRows, V] FP32
  int64_t rows_ = 0;
  int64_t next_ = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_PAGED_LOGITS_H_
