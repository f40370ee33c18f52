// What this device can do at best, measured in the same run as everything that is compared with it.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_LIMITS_H_
#define LOCKSTEP_TESTS_GPU_BENCH_LIMITS_H_

#include <memory>

#include "engine/cuda/arena.h"
#include "engine/kernels/cuda/gemm.h"
#include "engine/model/model.h"
#include "tests/gpu/bench/bench_options.h"

namespace lockstep::cuda {

struct DeviceLimits {
  double copy = 0;    // bytes/s, read and written ones, of cudaMemcpyAsync on the device
  double read = 0;    // bytes/s of a kernel that reads alone
  double matrix = 0;  // FLOP/s of a square product in the dtype by cuBLASLt; of the matched kernel where there is none
  // The larger one, so that no fraction is flattered.
  double bandwidth() const { return copy > read ? copy : read; }
};

// native may be null: there is no cuBLASLt.
absl::StatusOr<DeviceLimits> MeasureLimits(const BenchOptions& options, DeviceGemm* native, DeviceGemm& matched,
                                           const Stream& stream, Tables& tables);

// Numbers of a model that the limits of its steps are made of.
struct ModelSize {
  double matrix_parameters = 0;  // in products of every token; a tied embedding once, one that is only gathered not
  double weight_bytes = 0;       // that a decode step reads
  double kv_bytes = 0;           // of one token in all layers, keys and values
  double parameters = 0;         // all
};
ModelSize SizeOf(const ModelConfig& config, DType dtype);

// Bytes that a decode step must read and write once: weights, the keys and values of `context` tokens a sequence, and
// the new token's. FLOP: 2 a parameter and token, 4 L H E context in attention.
double DecodeBytes(const ModelConfig& config, DType dtype, double batch, double context);
double DecodeFlop(const ModelConfig& config, DType dtype, double batch, double context);
// 6 a parameter and token, and 6 L H E length^2 a sequence in causal attention (forward 2, backward 4); what is
// computed again in the backward pass does not count.
double TrainingFlop(const ModelConfig& config, DType dtype, double sequences, double length);

// Gives every parameter of a device arena random values of the usual sizes.
absl::Status FillParameters(const ArenaLayout& layout, void* arena, DType dtype, const Stream& stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_LIMITS_H_
