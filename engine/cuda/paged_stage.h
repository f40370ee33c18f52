// A paged batch of the host (engine/model/decoder.h) on its way to the device.
#ifndef LOCKSTEP_ENGINE_CUDA_PAGED_STAGE_H_
#define LOCKSTEP_ENGINE_CUDA_PAGED_STAGE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/input_block.h"
#include "engine/model/decoder.h"

namespace lockstep::cuda {

class PagedStage {
 public:
  // Of the largest batch that Reserve makes room for; each row may be a sequence.
  struct Limits {
    int64_t rows = 0;
    int64_t outputs = 0;
    int64_t sequence_pages = 0;
  };
  static size_t Bytes(const Limits& limits);
  // So that no Put within the limits allocates.
  absl::Status Reserve(const Limits& limits);
  // Copies the batch in one piece. The sequences' rows follow each other and are all rows; output_rows may name a row
  // more than once. Leading sequences of one row are the decode rows. What it returns is valid until the next call.
  // Grows to the largest batch seen, which a device waits for, then does not allocate.
  absl::StatusOr<PagedInputs> Put(const ModelConfig& config, const PagedBatch& batch, const Stream& stream);

 private:
  InputBlock block_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_PAGED_STAGE_H_
