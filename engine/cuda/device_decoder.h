// The decoder on the device: the list of operations of engine/model/decoder.h over the launchers of
// engine/kernels/cuda. One function runs a layer for the paged and the packed forward, which differ in the attention
// call alone: under matched numerics mu == pi, device against device, is a property of that function and of the
// kernels. FP32 has the CPU's bits where the kernels have them.
//
// Everything is put on the stream that the decoder was made with. ForwardPaged and Logits neither allocate nor wait: a
// graph may capture them. Not thread safe.
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_DECODER_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_DECODER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/device.h"
#include "engine/cuda/device_kv.h"
#include "engine/cuda/device_weights.h"
#include "engine/kernels/cuda/gemm.h"
#include "engine/model/decoder.h"
#include "engine/model/low_rank.h"

namespace lockstep::cuda {

// Rows of an inference step, on the device. Rows [0, decode_rows) are of different sequences, the only ones of theirs.
struct PagedInputs {
  int64_t rows = 0;         // T
  int64_t decode_rows = 0;  // AttentionPaged's: chooses time, and under matched numerics no bit
  int64_t outputs = 0;      // R
  int64_t table_stride = 0;
  int64_t max_position = 0;               // bounds positions
  const int32_t* tokens = nullptr;        // [T] below V
  const int32_t* positions = nullptr;     // [T] below max_position_embeddings
  const int32_t* slots = nullptr;         // [T] page * 16 + position % 16; -1: a padded row
  const int32_t* row_sequence = nullptr;  // [T] row of block_table; -1: a padded row
  const int32_t* block_table = nullptr;   // [sequences, table_stride] pages
  const int32_t* output_rows = nullptr;   // [R] rows whose final hidden state is wanted; null: all, R = T
};

// What ForwardPaged is called with, at most.
struct PagedLimits {
  int64_t rows = 0;
  int64_t decode_rows = 0;
  int64_t max_position = 0;
};

// Gradients of low-rank updates alone, added to: LowRankGradients of engine/model/decoder.h with device arenas.
struct DeviceLowRankGradients {
  const LowRankLayout* layout = nullptr;
  const float* adapters = nullptr;  // [layout->total_size]
  float* gradients = nullptr;       // [layout->total_size]
};

class DeviceDecoder {
 public:
  // gemm and stream outlive the decoder. Errors of CheckShape.
  // RESOURCE_EXHAUSTED: scratch for `limits` (PagedBytes) does not fit.
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> Create(const ModelConfig& config, DType dtype,
                                                               Numerics numerics, const PagedLimits& limits,
                                                               DeviceGemm* gemm, const Stream* stream);
  ~DeviceDecoder();

  const ModelConfig& config() const;
  DType dtype() const;
  const Stream& stream() const;

  // final_hidden [R, D] on the device, final norm applied. routing (may be null): device memory for the experts of the
  // tokens, [T] rows of engine/model/routing.h.
  absl::Status ForwardPaged(const DeviceWeights& weights, const PagedInputs& inputs, const DeviceKv& cache,
                            const Tensor& final_hidden, uint8_t* routing = nullptr);
  // logits FP32 [R, V] on the device.
  absl::Status Logits(const DeviceWeights& weights, const Tensor& final_hidden, const Tensor& logits);

  // Decoder::ForwardPacked with everything but the weights on the host; waits for its results. Scratch grows to the
  // largest batch seen.
  absl::Status ForwardPacked(const DeviceWeights& weights, const PackedBatch& batch, float temperature, bool recompute,
                             float* log_prob, float* entropy, RoutingTrace* trace = nullptr);
  // Decoder::Backward of the last ForwardPacked. coefficient [R] is host memory, free again when the call returns;
  // gradients: a device arena of ArenaLayout, added to. Does not wait.
  absl::Status Backward(const DeviceWeights& weights, const PackedBatch& batch, const float* coefficient,
                        float* gradients);
  absl::Status Backward(const DeviceWeights& weights, const PackedBatch& batch, const float* coefficient,
                        const DeviceLowRankGradients& gradients);

  // INVALID_ARGUMENT: a shape that the device's attention does not take.
  static absl::Status CheckShape(const ModelConfig& config);
  // Device memory that Create takes, of a shape that passes.
  static size_t PagedBytes(const ModelConfig& config, DType dtype, Numerics numerics, const PagedLimits& limits);
  // Device memory that ForwardPacked and Backward hold at most for `tokens` packed tokens, all of them loss rows, each
  // a sequence. low_rank: the adapters' rank, 0 for all parameters. Weights and gradients come on top.
  static size_t TrainingBytes(const ModelConfig& config, DType dtype, int64_t tokens, bool recompute,
                              int64_t low_rank = 0);

 private:
  struct Impl;
  explicit DeviceDecoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_DECODER_H_
