// Decode and training steps of models with random weights beside what this device can do at best, as Markdown tables.
// Exit 0: every row was measured. 1: some could not be, and say why. 2: a wrong argument. 77: there is no device.
//   bench [--dtype=fp16|bf16] [--shapes=qwen2.5-1.5b,qwen2.5-0.5b] [--batches=1,8,64,256] [--context=1024]
//         [--train_tokens=8192] [--train_length=1024] [--tiny] [--out=FILE]
#include <cuda_runtime.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/gpu/bench/bench_decode.h"
#include "tests/gpu/bench/bench_server.h"
#include "tests/gpu/bench/bench_train.h"
#include "tests/gpu/bench/native_gemm.h"

namespace lockstep::cuda {
namespace {

constexpr int kNoDevice = 77;

absl::Status Run(const BenchOptions& options, Tables& tables) {
  const auto stream = Stream::Create();
  if (!stream.ok()) return stream.status();
  const auto matched = MakeMatchedGemm();
  const auto native = MakeBenchNativeGemm();
  if (!native.ok()) tables.Text(absl::StrCat("No native figures: ", native.status().message()));
  DeviceGemm* const native_or_null = native.ok() ? native->get() : nullptr;
  const auto limits = MeasureLimits(options, native_or_null, *matched, *stream, tables);
  if (!limits.ok()) return limits.status();
  tables.Text(
      "A decode step draws a token from each row (temperature 1). Its limit by bytes is the time in which weights, "
      "keys "
      "and values pass once at the larger of the bandwidths above; its limit by FLOP counts 2 a parameter and token "
      "and "
      "attention at the larger matrix rate. The server's loop is the rollout server's engine over its GPU backend: "
      "the time of a step that it takes beside the step alone, the share of steps launched while the one before ran, "
      "and the share of the time for which the host waited for the device. A training step counts 6 FLOP a parameter "
      "and token and 6 L H E length^2 a "
      "sequence in causal attention, and nothing for what is computed twice; its time has the host's waits in it. Of "
      "the optimizer 34 bytes a parameter are counted: the norm reads the gradient a second time.");
  for (const std::string& shape : options.shapes) {
    StepSecondsTable steps;
    absl::Status status = BenchDecode(options, shape, *limits, native_or_null, *matched, *stream, tables, &steps);
    if (status.ok()) status = BenchServer(options, shape, steps, native.ok(), tables);
    if (status.ok()) status = BenchTrain(options, shape, *limits, native_or_null, *matched, *stream, tables);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const auto parsed = ParseOptions(argc, argv);
  if (!parsed.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(parsed.status().message()).c_str());
    return 2;
  }
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    std::printf("no CUDA device: %s\n", found == cudaSuccess ? "none found" : cudaGetErrorString(found));
    return kNoDevice;
  }
  Tables tables;
  absl::Status status = parsed->out.empty() ? absl::OkStatus() : tables.Open(parsed->out);
  if (status.ok()) status = Run(parsed->bench, tables);
  if (!status.ok()) {
    std::fprintf(stderr, "the benchmark failed: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return tables.missing() > 0 ? 1 : 0;
}

}  // namespace
}  // namespace lockstep::cuda

int main(int argc, char** argv) { return lockstep::cuda::Main(argc, argv); }
