// Decode and training of Qwen2.5-0.5B's shape with random FP16 weights, as fractions of what this machine can do.
//
//   bazel run -c opt //engine/model:bench -- [--benchmark_filter=Decode]
//
// Decode reads every weight once a step, so at batch 1 its limit is the read bandwidth; at batch 32 and in training it
// is the FMA peak. Both limits are measured in the same process, before the first benchmark. FLOP of a training step
// are 6 P T for T tokens and P matrix parameters (lm_head included) and the attention products; what the backward pass
// computes again (logits, norms, with recompute whole layers) is cost, not work.
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "engine/kernels/cpu/machine_limits.h"
#include "engine/model/decoder.h"
#include "engine/model/shapes.h"
#include "engine/model/timed_ops.h"

namespace lockstep {
namespace {

constexpr int64_t kContext = 256;  // tokens in the cache when a decode step begins
constexpr int64_t kTrainSequence = 256;

int Threads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

uint32_t Mix(uint32_t value) {
  value = (value ^ (value >> 16)) * 0x85EBCA6Bu;
  value = (value ^ (value >> 13)) * 0xC2B2AE35u;
  return value ^ (value >> 16);
}

const cpu::MachineLimits& Limits() {
  static const cpu::MachineLimits limits = [] {
    ThreadPool pool(Threads());
    return cpu::MeasureMachineLimits(pool);
  }();
  return limits;
}

// Uniform weights of the spread that a trained model has; a table is read at shifting offsets, since a generator call
// for each of 494 M values takes longer than the benchmark.
const Weights& BenchWeights() {
  static const std::unique_ptr<Weights> weights = [] {
    auto made = std::make_unique<Weights>(Qwen25Shape05B(), DType::kF16);
    constexpr int64_t kTable = 1 << 22, kRows = 64;
    std::vector<float> table(kTable);
    for (int64_t i = 0; i < kTable; ++i) table[i] = (static_cast<float>(Mix(i) >> 8) / (1 << 24) - 0.5f) * 0.07f;
    uint32_t block = 0;
    for (int param = 0; param < static_cast<int>(made->layout.params.size()); ++param) {
      const ParamSpec& spec = made->layout.params[param];
      for (int64_t row = 0; row < spec.rows; row += kRows) {
        const int64_t rows = std::min(kRows, spec.rows - row);
        const int64_t offset = Mix(block++) % (kTable - rows * spec.cols);
        made->SetParamRows(param, row, Tensor(table.data() + offset, DType::kF32, rows, spec.cols));
      }
    }
    return made;
  }();
  return *weights;
}

// Parameters of matrices that a token passes through: the tied embedding counts once, as lm_head.
double MatrixParams(const Weights& weights) {
  double params = 0;
  for (const ParamSpec& spec : weights.layout.params) {
    if (spec.kind != ParamSpec::Kind::kVector) params += static_cast<double>(spec.size());
  }
  return params;
}

double PeakRssGiB() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

// LOCKSTEP_BENCH_PROFILE=1: where the time went, to stderr.
void PrintProfile(const TimedOps& ops) {
  if (std::getenv("LOCKSTEP_BENCH_PROFILE") == nullptr) return;
  for (const auto& [name, entry] : ops.entries()) {
    std::fprintf(stderr, "%-34s %7ld calls %9.2f ms", name.c_str(), static_cast<long>(entry.calls),
                 entry.seconds * 1e3);
    std::fprintf(stderr, entry.flop > 0 ? " %7.1f GFLOP/s\n" : "\n", entry.flop / entry.seconds / 1e9);
  }
}

void Decode(benchmark::State& state) {
  const int64_t batch_size = state.range(0);
  const Numerics numerics = state.range(1) == 0 ? Numerics::kMatched : Numerics::kNative;
  const Weights& weights = BenchWeights();
  const ModelConfig& config = weights.config;
  const cpu::MachineLimits& limits = Limits();
  TimedOps ops(MakeCpuOps(numerics, Threads()));
  Decoder decoder(config, DType::kF16, &ops);

  const int64_t pages_each = kContext / kPageTokens + 1;
  KvStorage cache(config, DType::kF16, batch_size * pages_each);
  std::vector<std::vector<int32_t>> pages(batch_size);
  PagedBatch step;
  for (int64_t i = 0; i < batch_size; ++i) {
    for (int64_t j = 0; j < pages_each; ++j) pages[i].push_back(static_cast<int32_t>(j * batch_size + i));
    step.sequences.push_back({.row_begin = i, .row_count = 1, .position_begin = kContext, .pages = pages[i]});
    step.tokens.push_back(static_cast<int32_t>(Mix(i) % config.vocab_size));
    step.positions.push_back(kContext);
    step.output_rows.push_back(static_cast<int32_t>(i));
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const KvPages kv = cache.layer(layer);
    const int64_t elements = kv.num_pages * kPageTokens * config.num_kv_heads * config.head_dim;
    for (int64_t i = 0; i < elements; ++i) {
      const float value = static_cast<float>(Mix(i + layer) >> 8) / (1 << 23) - 1.0f;
      static_cast<uint16_t*>(kv.keys)[i] = FloatToHalf(value);
      static_cast<uint16_t*>(kv.values)[i] = FloatToHalf(-value);
    }
  }
  Buffer hidden_buffer(batch_size * config.hidden_size * sizeof(uint16_t));
  const Tensor hidden(hidden_buffer.data(), DType::kF16, batch_size, config.hidden_size);
  std::vector<float> logits(batch_size * config.vocab_size);
  const Tensor logits_view(logits.data(), DType::kF32, batch_size, config.vocab_size);
  const auto run_step = [&] {
    decoder.ForwardPaged(weights, step, cache, hidden);
    decoder.Logits(weights, hidden, logits_view);
    benchmark::DoNotOptimize(logits.data());
  };
  run_step();
  ops.Reset();
  double best_seconds = 1e9;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    run_step();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best_seconds = std::min(best_seconds, seconds.count());
  }

  const double params = MatrixParams(weights), batch = static_cast<double>(batch_size);
  const double kv_bytes = 4.0 * config.num_layers * config.num_kv_heads * config.head_dim * kContext * batch;
  const double bytes = 2 * params + kv_bytes;
  const double attention_flop = 4.0 * config.num_layers * config.num_heads * config.head_dim * kContext * batch;
  const double flop = 2 * params * batch + attention_flop;
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["tokens_per_s"] = benchmark::Counter(batch, rate);
  state.counters["GB_per_s"] = benchmark::Counter(bytes / 1e9, rate);
  state.counters["of_read_bandwidth"] = benchmark::Counter(bytes / limits.read_bytes_per_second, rate);
  state.counters["GFLOP_per_s"] = benchmark::Counter(flop / 1e9, rate);
  state.counters["of_fma_peak"] = benchmark::Counter(flop / limits.fma_flops_per_second, rate);
  // The limits are the best of many short slices; on a shared machine the best step is what compares with them.
  state.counters["best_of_read_bandwidth"] = bytes / best_seconds / limits.read_bytes_per_second;
  state.counters["best_of_fma_peak"] = flop / best_seconds / limits.fma_flops_per_second;
  state.counters["gemms_of_fma_peak"] = ops.Gemms().flop / ops.Gemms().seconds / limits.fma_flops_per_second;
  state.counters["peak_rss_GiB"] = PeakRssGiB();
  PrintProfile(ops);
}

void Train(benchmark::State& state) {
  const Numerics numerics = state.range(0) == 0 ? Numerics::kMatched : Numerics::kNative;
  const bool recompute = state.range(1) != 0, backward = state.range(2) != 0;
  const int64_t train_tokens = state.range(3);
  const Weights& weights = BenchWeights();
  const ModelConfig& config = weights.config;
  const cpu::MachineLimits& limits = Limits();
  TimedOps ops(MakeCpuOps(numerics, Threads()));
  Decoder decoder(config, DType::kF16, &ops);
  PackedBatch batch;
  for (int64_t i = 0; i <= train_tokens; i += kTrainSequence) batch.cu_seqlens.push_back(static_cast<int32_t>(i));
  for (int64_t i = 0; i < train_tokens; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(Mix(i) % config.vocab_size));
    batch.loss_rows.push_back(static_cast<int32_t>(i));
    batch.targets.push_back(static_cast<int32_t>(Mix(i + 1) % config.vocab_size));
  }
  std::vector<float> log_prob(train_tokens), entropy(train_tokens), coefficient(train_tokens, 1.0f);
  Buffer gradients(backward ? weights.layout.total_size * sizeof(float) : 0);
  for (auto _ : state) {
    decoder.ForwardPacked(weights, batch, 1.0f, recompute, log_prob.data(), entropy.data());
    if (!backward) continue;
    decoder.Backward(weights, batch, 1.0f, coefficient.data(), gradients.As<float>());
  }
  const double passes = backward ? 3 : 1, tokens = static_cast<double>(train_tokens);
  // Causal: a query sees half of the sequence on average; QK^T and PV are 2 FLOP each an element.
  const double attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * tokens * kTrainSequence / 2;
  const double flop = passes * (2 * MatrixParams(weights) * tokens + attention);
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["tokens_per_s"] = benchmark::Counter(tokens, rate);
  state.counters["GFLOP_per_s"] = benchmark::Counter(flop / 1e9, rate);
  state.counters["of_fma_peak"] = benchmark::Counter(flop / limits.fma_flops_per_second, rate);
  state.counters["gemms_of_fma_peak"] = ops.Gemms().flop / ops.Gemms().seconds / limits.fma_flops_per_second;
  state.counters["peak_rss_GiB"] = PeakRssGiB();
  PrintProfile(ops);
}

BENCHMARK(Decode)
    ->ArgNames({"batch", "native"})
    ->ArgsProduct({{1, 2, 4, 8, 32}, {0, 1}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(Train)
    ->ArgNames({"native", "recompute", "backward", "tokens"})
    ->Args({0, 0, 0, 512})
    ->Args({0, 0, 1, 512})
    ->Args({0, 0, 1, 2048})
    ->Args({1, 0, 1, 2048})
    ->Args({0, 1, 1, 2048})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1)
    ->UseRealTime();

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const lockstep::cpu::MachineLimits& limits = lockstep::Limits();
  std::printf("%d threads: read %.1f GB/s, FMA %.1f GFLOP/s\n", lockstep::Threads(), limits.read_bytes_per_second / 1e9,
              limits.fma_flops_per_second / 1e9);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
