// The whole engine (scheduler, KV pages, decoder, sampler, chunks) on a model of 75 M parameters in FP16.
//
//   bazel run -c opt //rollout_server:bench
//
// tokens/s is of generated tokens, prefill included. overhead = share of the time of a step that is not in the decoder
// (ForwardPaged and Logits): scheduling, paging, log-sum-exp, sampling, chunks. Its limit is 0.
// bytes/token = weights read in a step / rows of the step: what bounds decoding at small batches.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "engine/kernels/ops.h"
#include "rollout_server/batch_engine.h"
#include "rollout_server/cpu_backend.h"

namespace lockstep {
namespace {

constexpr int64_t kPrompt = 64;
constexpr uint32_t kNewTokens = 64;

ModelConfig MidConfig() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 32000;
  config.hidden_size = 768;
  config.num_layers = 8;
  config.num_heads = 12;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  config.intermediate_size = 2048;
  config.max_position_embeddings = 2048;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

std::shared_ptr<const Weights> MidWeights() {
  static const std::shared_ptr<const Weights> weights = [] {
    auto made = std::make_shared<Weights>(MidConfig(), DType::kF16);
    std::vector<float> arena(static_cast<size_t>(made->layout.total_size));
    InitializeArena(made->config, 1, 0.05f, arena.data());
    made->SetFromArena(arena.data());
    return made;
  }();
  return weights;
}

class CountingSink final : public ResultSink {
 public:
  void Push(v1::GenerateResponse response) override { messages += response.has_chunk() ? 1 : 0; }
  bool Full() const override { return false; }
  void Fail(const std::string&) override {}
  int64_t messages = 0;
};

v1::Group MidGroup(uint64_t group_id, int64_t prompt, uint32_t num_samples) {
  v1::Group group;
  group.set_group_id(group_id);
  group.set_num_samples(num_samples);
  for (int64_t i = 0; i < prompt; ++i) group.add_prompt_token_ids(static_cast<int32_t>((i * 7919 + 13) % 32000));
  group.mutable_sampling()->set_temperature(1);
  group.mutable_sampling()->set_top_p(1);
  group.mutable_sampling()->set_max_tokens(kNewTokens);
  return group;
}

// Runs groups of num_samples to their end, again and again; the counters are of the engine's own clock.
void RunGroups(benchmark::State& state, int64_t groups, uint32_t num_samples, int64_t prompt, float top_p) {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, threads);
  MetricsRegistry registry("rollout");
  RolloutMetrics metrics(&registry);
  BatchEngine engine({.limits = {.max_decode_rows = 64, .prefill_chunk_tokens = 256}},
                     MakeCpuBackend(MidConfig(), DType::kF16, 4096, ops.get()), MidWeights(), &metrics);
  auto sink = std::make_shared<CountingSink>();
  uint64_t group_id = 0;
  for (auto _ : state) {
    for (int64_t g = 0; g < groups; ++g) {
      v1::Group group = MidGroup(++group_id, prompt, num_samples);
      group.mutable_sampling()->set_top_p(top_p);
      engine.Submit(std::move(group), sink);
    }
    while (engine.Step()) {
    }
  }
  const EngineStats stats = engine.stats();
  if (stats.pages_used != 0 || stats.generated_tokens != group_id * num_samples * kNewTokens) {
    state.SkipWithError("the engine lost tokens or pages");
    return;
  }
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(stats.generated_tokens), benchmark::Counter::kIsRate);
  state.counters["overhead"] = 1 - stats.decoder_seconds / stats.step_seconds;
  state.counters["ms/step"] = 1e3 * stats.step_seconds / static_cast<double>(stats.steps);
  state.counters["MB/token"] =
      1e-6 * static_cast<double>(MidWeights()->bytes() * stats.steps) / static_cast<double>(stats.generated_tokens);
  state.counters["tokens/message"] = static_cast<double>(stats.generated_tokens) / static_cast<double>(sink->messages);
}

void BM_Decode(benchmark::State& state) { RunGroups(state, state.range(0), 1, kPrompt, 1.0f); }
BENCHMARK(BM_Decode)->ArgName("batch")->Arg(1)->Arg(8)->Arg(32)->Unit(benchmark::kMillisecond)->UseRealTime();

// 16 samples of one prompt of 512 tokens: one prefill, shared.
void BM_GroupSharesItsPrompt(benchmark::State& state) { RunGroups(state, 1, 16, 512, 1.0f); }
BENCHMARK(BM_GroupSharesItsPrompt)->Unit(benchmark::kMillisecond)->UseRealTime();

// The same work as 16 groups of one sample: 16 prefills.
void BM_GroupWithoutSharing(benchmark::State& state) { RunGroups(state, 16, 1, 512, 1.0f); }
BENCHMARK(BM_GroupWithoutSharing)->Unit(benchmark::kMillisecond)->UseRealTime();

void BM_DecodeTopP(benchmark::State& state) { RunGroups(state, state.range(0), 1, kPrompt, 0.9f); }
BENCHMARK(BM_DecodeTopP)->ArgName("batch")->Arg(32)->Unit(benchmark::kMillisecond)->UseRealTime();

// The sampler alone, on one row of a vocabulary: the row's preparation and one draw.
void BM_SampleRow(benchmark::State& state) {
  const int64_t vocab_size = state.range(0);
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  for (int64_t v = 0; v < vocab_size; ++v)
    logits[static_cast<size_t>(v)] = static_cast<float>((v * 7919) % 1000) * 0.01f;
  Sampler sampler;
  uint32_t token_index = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(AllFinite(logits.data(), vocab_size));
    sampler.SetRow(logits.data(), vocab_size, {}, ops->LogSumExp(logits.data(), vocab_size, 1.0f));
    benchmark::DoNotOptimize(sampler.Sample({1, 2, 3, token_index++}));
  }
  state.SetBytesProcessed(state.iterations() * vocab_size * static_cast<int64_t>(sizeof(float)));
}
BENCHMARK(BM_SampleRow)->ArgName("vocab")->Arg(4096)->Arg(32000)->Arg(151936)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lockstep

BENCHMARK_MAIN();
