#include "tests/gpu/bench/bench_train.h"

#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/philox.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_optimizer.h"
#include "engine/kernels/ops.h"

namespace lockstep::cuda {
namespace {

constexpr float kLossScale = 1024;

// Sequences of one length, end to end; every token that has a next one is trained on.
PackedBatch MakeBatch(const BenchOptions& options, const ModelConfig& config) {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  const auto vocabulary = static_cast<uint32_t>(config.vocab_size);
  for (int64_t t = 0; t < options.train_tokens; ++t) {
    batch.tokens.push_back(static_cast<int32_t>(Philox4x32(7, static_cast<uint64_t>(t), 0)[0] % vocabulary));
    const int64_t next = t + 1;
    if (next % options.train_length == 0 || next == options.train_tokens) {
      batch.cu_seqlens.push_back(static_cast<int32_t>(next));
    }
  }
  for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
    for (int32_t t = batch.cu_seqlens[s]; t + 1 < batch.cu_seqlens[s + 1]; ++t) {
      batch.loss_rows.push_back(t);
      batch.targets.push_back(batch.tokens[static_cast<size_t>(t) + 1]);
    }
  }
  return batch;
}

// A learner's state on the device.
struct State {
  DeviceWeights weights;
  DeviceOptimizer optimizer;
};

absl::StatusOr<State> MakeState(const BenchOptions& options, const ModelConfig& config, const Stream& stream) {
  auto weights = DeviceWeights::Allocate(config, options.dtype, stream);
  if (!weights.ok()) return weights.status();
  const ArenaLayout& layout = weights->layout();
  auto optimizer = DeviceOptimizer::Create(layout.size, DecayRanges(layout), stream);
  if (!optimizer.ok()) return optimizer.status();
  absl::Status status = FillParameters(layout, optimizer->master(), DType::kF32, stream);
  if (status.ok()) status = weights->LoadFromMaster(optimizer->master(), stream);
  if (!status.ok()) return status;
  return State{*std::move(weights), *std::move(optimizer)};
}

struct Times {
  double step = 0, forward = 0, optimizer = 0;
};

class Step {
 public:
  Step(const BenchOptions& options, State& state, DeviceDecoder& decoder, const PackedBatch& batch, bool recompute)
      : options_(options),
        state_(state),
        decoder_(decoder),
        batch_(batch),
        recompute_(recompute),
        log_prob_(batch.targets.size()),
        coefficient_(batch.targets.size(), -kLossScale / static_cast<float>(batch.targets.size())) {}

  absl::StatusOr<Times> Measure() {
    const Stream& stream = decoder_.stream();
    Times times;
    const auto measure = [&](double* seconds, absl::FunctionRef<absl::Status()> body) {
      const auto median = MedianSeconds(stream, options_.repeats, body);
      if (median.ok()) *seconds = *median;
      return median.status();
    };
    absl::Status status = measure(&times.step, [&]() -> absl::Status {
      absl::Status done =
          CudaStatus(cudaMemsetAsync(state_.optimizer.gradient(), 0,
                                     static_cast<size_t>(state_.optimizer.size()) * sizeof(float), stream.get()),
                     "zeroing the gradient");
      if (done.ok()) done = Forward();
      if (done.ok()) {
        done = decoder_.Backward(state_.weights, batch_, coefficient_.data(), state_.optimizer.gradient());
      }
      return done.ok() ? Update() : done;
    });
    if (status.ok()) {
      const auto control = state_.optimizer.ReadControl(stream);
      status = control.status();
      if (status.ok() && (control->finite == 0 || !(control->norm > 0))) {
        status = absl::InternalError("the gradient is not finite, or zero: the figure would be of skipped updates");
      }
    }
    if (status.ok()) status = measure(&times.forward, [&] { return Forward(); });
    if (status.ok()) status = measure(&times.optimizer, [&] { return Update(); });
    if (!status.ok()) return status;
    return times;
  }

 private:
  absl::Status Forward() {
    return decoder_.ForwardPacked(state_.weights, batch_, 1, recompute_, log_prob_.data(), nullptr);
  }
  absl::Status Update() {
    absl::Status status = state_.optimizer.Norm(static_cast<double>(kLossScale), 1, decoder_.stream());
    if (!status.ok()) return status;
    return state_.optimizer.Step({.lr = 1e-6f}, options_.dtype, state_.weights.arena(), decoder_.stream());
  }

  const BenchOptions& options_;
  State& state_;
  DeviceDecoder& decoder_;
  const PackedBatch& batch_;
  const bool recompute_;
  std::vector<float> log_prob_, coefficient_;
};

}  // namespace

absl::Status BenchTrain(const BenchOptions& options, const std::string& shape, const DeviceLimits& limits,
                        DeviceGemm* native, DeviceGemm& matched, const Stream& stream, Tables& tables) {
  const auto config = ShapeOf(options, shape);
  if (!config.ok()) return config.status();
  const PackedBatch batch = MakeBatch(options, *config);
  auto state = MakeState(options, *config, stream);
  tables.Begin(absl::StrCat("Training step of ", shape, ", ", std::string(DTypeName(options.dtype)), ", ",
                            options.train_tokens, " packed tokens, sequences of ", options.train_length),
               {"numerics", "step", "tokens/s", "TFLOP/s", "of the matrix rate", "forward", "backward", "optimizer",
                "optimizer's share of the bandwidth", "recompute", "time against native"});
  if (!state.ok()) {
    tables.NoRow("no model", state.status());
    return absl::OkStatus();
  }
  const auto memory = ReadDeviceMemory();
  if (!memory.ok()) return memory.status();
  const bool recompute =
      DeviceDecoder::TrainingBytes(*config, options.dtype, options.train_tokens, false) > memory->free_bytes / 10 * 9;
  const double sequences = static_cast<double>(options.train_tokens) / static_cast<double>(options.train_length);
  const double flop = TrainingFlop(*config, options.dtype, sequences, static_cast<double>(options.train_length));
  const double optimizer_bytes = 34 * SizeOf(*config, options.dtype).parameters;
  double native_seconds = 0;
  for (DeviceGemm* const gemm : {native, &matched}) {
    if (gemm == nullptr) continue;
    const bool is_native = gemm == native;
    const char* const name = is_native ? "native" : "matched";
    const PagedLimits paged = {.rows = 1, .decode_rows = 1, .max_position = 1};  // nothing is decoded here
    auto decoder = DeviceDecoder::Create(*config, options.dtype, is_native ? Numerics::kNative : Numerics::kMatched,
                                         paged, gemm, &stream);
    if (!decoder.ok()) {
      tables.NoRow(name, decoder.status());
      continue;
    }
    const auto times = Step(options, *state, **decoder, batch, recompute).Measure();
    if (!times.ok()) {
      tables.NoRow(name, times.status());
      continue;
    }
    if (is_native) native_seconds = times->step;
    const auto milliseconds = [](double seconds) { return absl::StrCat(Number(seconds * 1e3, 2), " ms"); };
    tables.Row({name, milliseconds(times->step), Number(static_cast<double>(options.train_tokens) / times->step, 0),
                Number(flop / times->step * 1e-12, 1), Percent(flop / times->step / limits.matrix),
                milliseconds(times->forward), milliseconds(times->step - times->forward - times->optimizer),
                milliseconds(times->optimizer), Percent(optimizer_bytes / times->optimizer / limits.bandwidth()),
                recompute ? "yes" : "no",
                is_native || native_seconds == 0 ? "" : Number(times->step / native_seconds, 3)});
  }
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
