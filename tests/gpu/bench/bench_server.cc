#include "tests/gpu/bench/bench_server.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/metrics.h"
#include "engine/base/philox.h"
#include "engine/base/steady_seconds.h"
#include "rollout_server/batch_engine.h"
#include "rollout_server/cuda_backend.h"
#include "tests/gpu/bench/native_gemm.h"

namespace lockstep::cuda {
namespace {

class NullSink final : public ResultSink {
 public:
  void Push(v1::GenerateResponse) override {}
  bool Full() const override { return false; }
  void Fail(const std::string&) override {}
};

// How far a batch is run.
struct Plan {
  int64_t chunk = 0;    // prompt tokens of a step
  int64_t prompt = 0;   // of each sequence, so that half way through the measured steps the mean context is that of the
                        // steps alone
  int64_t warm_up = 0;  // steps behind the last prompt
  int64_t measured = 0;  // steps behind those
  int64_t longest = 0;   // tokens of a sequence in the end
};

Plan PlanOf(const BenchOptions& options, int64_t batch) {
  Plan plan;
  plan.chunk = 2 * options.context;
  plan.warm_up = 2 + options.repeats.warm_up;
  plan.measured = 4 * options.decode_steps;
  // The first sequence decodes while the others' prompts are computed.
  const int64_t prefill = (batch * options.context + plan.chunk - 1) / plan.chunk;
  const int64_t ahead = prefill / 2 + plan.warm_up + (plan.measured - options.decode_steps) / 2;
  plan.prompt = std::max<int64_t>(1, options.context - ahead);
  plan.longest = plan.prompt + prefill + plan.warm_up + plan.measured + 2;
  return plan;
}

int64_t LargestBatch(const BenchOptions& options) {
  return *std::max_element(options.batches.begin(), options.batches.end());
}

// Matrices of one block of random rows, again and again; vectors of ones.
std::shared_ptr<const Weights> RandomWeights(const ModelConfig& config, DType dtype) {
  auto weights = std::make_shared<Weights>(config, dtype);
  constexpr int64_t kRows = 64;
  for (size_t param = 0; param < weights->layout.params.size(); ++param) {
    const ParamSpec& spec = weights->layout.params[param];
    std::vector<float> block(static_cast<size_t>(std::min(kRows, spec.rows) * spec.cols), 1.0f);
    if (spec.kind != ParamSpec::Kind::kVector) {
      for (size_t i = 0; i < block.size(); ++i) {
        const uint32_t word = Philox4x32(/*key=*/param, i, 0)[0];
        block[i] = (static_cast<float>(word) / 4294967296.0f - 0.5f) * 0.1f;
      }
    }
    for (int64_t row = 0; row < spec.rows; row += kRows) {
      const int64_t rows = std::min(kRows, spec.rows - row);
      weights->SetParamRows(static_cast<int>(param), row, Tensor(block.data(), DType::kF32, rows, spec.cols));
    }
  }
  return weights;
}

v1::Group GroupOf(uint64_t id, const ModelConfig& config, const Plan& plan) {
  v1::Group group;
  group.set_group_id(id);
  group.set_num_samples(1);
  for (int64_t i = 0; i < plan.prompt; ++i) {
    const auto token = (static_cast<int64_t>(id) * 7919 + i * 104'729) % config.vocab_size;
    group.add_prompt_token_ids(static_cast<int32_t>(token));
  }
  group.mutable_sampling()->set_temperature(1);
  group.mutable_sampling()->set_top_p(1);
  group.mutable_sampling()->set_max_tokens(static_cast<uint32_t>(plan.longest - plan.prompt));
  return group;
}

struct Measured {
  double seconds = 0;  // of one step
  double ahead = 0;    // share of the steps
  double waited = 0;   // share of the time
};

absl::StatusOr<Measured> Measure(const BenchOptions& options, const ModelConfig& config, int64_t batch,
                                 const RolloutMetrics& metrics, BatchEngine& engine) {
  const Plan plan = PlanOf(options, batch);
  const auto sink = std::make_shared<NullSink>();
  static uint64_t groups = 0;
  for (int64_t i = 0; i < batch; ++i) engine.Submit(GroupOf(++groups, config, plan), sink);
  // The steps of a set of rows that does not change, once all of them decode.
  const auto run = [&engine](int64_t steps) {
    for (int64_t i = 0; i < steps && engine.status().ok(); ++i) engine.Step();
  };
  const double prompts = metrics.prompt_tokens.value() + static_cast<double>(batch * plan.prompt);
  while (metrics.prompt_tokens.value() < prompts && engine.Step()) {
  }
  run(plan.warm_up);
  const EngineStats before = engine.stats();
  const double begin = SteadySeconds();
  run(plan.measured);
  const double seconds = SteadySeconds() - begin;
  const EngineStats after = engine.stats();
  engine.Close(sink.get());
  run(1);  // which may be in flight
  if (!engine.status().ok()) return engine.status();
  const auto steps = static_cast<double>(after.steps - before.steps);
  if (after.generated_tokens - before.generated_tokens != static_cast<uint64_t>(batch * plan.measured)) {
    return absl::ResourceExhaustedError("the KV cache does not hold the batch: not every sequence had each step");
  }
  return Measured{seconds / steps, static_cast<double>(after.steps_ahead - before.steps_ahead) / steps,
                  (after.decoder_seconds - before.decoder_seconds) / seconds};
}

absl::StatusOr<std::unique_ptr<StepBackend>> MakeBackend(const BenchOptions& options, const ModelConfig& config,
                                                         bool native) {
  DeviceBackendOptions backend;
  backend.config = config;
  backend.dtype = options.dtype;
  backend.numerics = native ? Numerics::kNative : Numerics::kMatched;
  backend.max_decode_rows = LargestBatch(options);
  for (const int64_t batch : options.batches) {
    const Plan plan = PlanOf(options, batch);
    backend.prefill_chunk_tokens = plan.chunk;
    backend.max_sequence_tokens = std::max(backend.max_sequence_tokens, plan.longest);
  }
  OwnedGemm gemm;
  if (native) {
    auto made = MakeBenchNativeGemm();
    if (!made.ok()) return made.status();
    gemm.gemm = *std::move(made);
  } else {
    gemm.gemm = MakeMatchedGemm();
  }
  return MakeCudaStepBackend(backend, std::move(gemm));
}

}  // namespace

absl::Status BenchServer(const BenchOptions& options, const std::string& shape, const StepSecondsTable& alone,
                         bool has_native, Tables& tables) {
  auto config = ShapeOf(options, shape);
  if (!config.ok()) return config.status();
  config->eos_token_ids.clear();
  tables.Begin(
      absl::StrCat("The rollout server's loop: decode of ", shape, ", ", std::string(DTypeName(options.dtype)),
                   ", context ", options.context),
      {"numerics", "batch", "step", "tokens/s", "the step alone", "time against it", "launched ahead", "host waits"});
  const int64_t longest = PlanOf(options, LargestBatch(options)).longest;
  if (longest > config->max_position_embeddings) {
    tables.NoRow("no model",
                 absl::InvalidArgumentError(absl::StrCat("sequences of ", longest, " tokens are more than the model's ",
                                                         config->max_position_embeddings)));
    return absl::OkStatus();
  }
  const auto weights = RandomWeights(*config, options.dtype);
  for (const bool native : {true, false}) {
    if (native && !has_native) continue;
    const char* const name = native ? "native" : "matched";
    auto backend = MakeBackend(options, *config, native);
    if (backend.ok()) {
      if (absl::Status status = (*backend)->Prepare(weights); !status.ok()) backend = status;
    }
    if (!backend.ok()) {
      tables.NoRow(name, backend.status());
      continue;
    }
    MetricsRegistry registry("rollout");
    RolloutMetrics metrics(&registry);
    BatchEngine engine(
        {.limits = {.max_decode_rows = LargestBatch(options), .prefill_chunk_tokens = PlanOf(options, 1).chunk}},
        *std::move(backend), weights, &metrics);
    for (const int64_t batch : options.batches) {
      const auto measured = Measure(options, *config, batch, metrics, engine);
      if (!measured.ok()) {
        tables.NoRow(absl::StrCat(name, ", batch ", batch), measured.status());
        continue;
      }
      const auto found = alone.find({native, batch});
      const bool known = found != alone.end();
      tables.Row({name, absl::StrCat(batch), absl::StrCat(Number(measured->seconds * 1e3, 3), " ms"),
                  Number(static_cast<double>(batch) / measured->seconds, 0),
                  known ? absl::StrCat(Number(found->second * 1e3, 3), " ms") : "",
                  known ? Number(measured->seconds / found->second, 3) : "", Percent(measured->ahead),
                  Percent(measured->waited)});
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
