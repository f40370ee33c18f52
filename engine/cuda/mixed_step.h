// A step of any mixture of prefill chunks and decode rows, and a draw from each row that is wanted: what a decode
// engine runs whenever there is something to prefill. Steps of decode rows alone: DecodeStep.
#ifndef LOCKSTEP_ENGINE_CUDA_MIXED_STEP_H_
#define LOCKSTEP_ENGINE_CUDA_MIXED_STEP_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/drawing.h"
#include "engine/cuda/paged_stage.h"

namespace lockstep::cuda {

class MixedStep {
 public:
  // For at most `outputs` wanted rows a step, whose logits are made `logit_rows` at a time; 0: in the scratch of
  // somebody on the same stream, as many rows at a time as that has. decoder, cache and scratch outlive it. Device
  // memory: Bytes(); steps of more than `rows` rows or `sequence_pages` pages a sequence allocate what their inputs
  // need beyond that.
  struct Limits {
    int64_t outputs = 256;
    int64_t logit_rows = 64;
    int64_t rows = 0;
    int64_t sequence_pages = 0;
  };
  static absl::StatusOr<MixedStep> Create(DeviceDecoder* decoder, const DeviceKv* cache, const Limits& limits,
                                          const DrawScratch* scratch = nullptr);
  static size_t Bytes(const ModelConfig& config, DType dtype, const Limits& limits);

  struct Draws {
    std::vector<int32_t> tokens;   // [R]
    std::vector<float> log_probs;  // [R]
  };
  // sampling [R]: one draw a wanted row; several samples of one prompt name its last row several times. routing (may be
  // null) takes the experts of all rows. Waits for the results.
  absl::StatusOr<Draws> Run(const DeviceWeights& weights, const PagedBatch& batch,
                            std::span<const SamplingRow> sampling, std::string* routing = nullptr);

 private:
  MixedStep() = default;
  absl::Status ReserveRecord(size_t bytes);

  DeviceDecoder* decoder_ = nullptr;
  const DeviceKv* cache_ = nullptr;
  Limits limits_;
  DeviceBuffer memory_;
  Tensor hidden_;  // [outputs, D]
  DrawScratch scratch_;
  PagedStage stage_;
  InputBlock sampling_;
  DeviceBuffer record_;  // [T, row_bytes]: made when routing is first wanted, of limits_.rows at least
  PinnedBuffer host_record_;
  DeviceBuffer results_;  // tokens, then log-probs
  PinnedBuffer host_results_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_MIXED_STEP_H_
