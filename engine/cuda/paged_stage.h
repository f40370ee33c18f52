// A paged batch of the host (engine/model/decoder.h) on its way to the device.
#ifndef LOCKSTEP_ENGINE_CUDA_PAGED_STAGE_H_
#define LOCKSTEP_ENGINE_CUDA_PAGED_STAGE_H_

#include "absl/status/statusor.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/input_block.h"
#include "engine/model/decoder.h"

namespace lockstep::cuda {

class PagedStage {
 public:
  // Copies the batch in one piece. The sequences' rows follow each other and are all rows; output_rows may name a row
  // more than once. Leading sequences of one row are the decode rows. What it returns is valid until the next call.
  // Grows to the largest batch seen, then does not allocate.
  absl::StatusOr<PagedInputs> Put(const ModelConfig& config, const PagedBatch& batch, const Stream& stream);

 private:
  InputBlock block_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_PAGED_STAGE_H_
