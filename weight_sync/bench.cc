// What an update costs. Everything is measured in the same run, so that the parts can be compared:
//   memcpy          the bound of one copy in memory (bytes of the set per second)
//   round           FP32 arena to FP16 with digests, all cores: what the learner pays before an update
//   install         what one receiver does with the bytes: pack, read back, digest
//   gloo            gloo::broadcast of the same bytes in the same buckets to two members: the bound of the transport
//   update          Publish to two receivers, begin to last commit: rounding, Gloo, digests, packing, three rounds of
//                   calls. transfer_GB/s is its transfer phase alone; pause_us the time between the flip's two reads
// The two receivers are threads of this process; on a machine with few cores they compete with the sender.
#include <benchmark/benchmark.h>
#include <gloo/broadcast.h>

#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "weight_sync/gloo_group.h"
#include "weight_sync/host_shadow.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/sync_test_support.h"
#include "weight_sync/weight_snapshot.h"

namespace lockstep {
namespace {

constexpr uint64_t kBucketBytes = 32 << 20;
constexpr int kReceivers = 2;

// 128 Mi parameters: 256 MiB in FP16.
ModelConfig BenchModel() {
  ModelConfig config = SmallModel();
  config.vocab_size = 32768;
  config.hidden_size = 1024;
  config.num_heads = 16;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  config.intermediate_size = 4096;
  config.num_layers = 4;
  return config;
}

const std::vector<float>& Arena() {
  static const std::vector<float>* const arena = new std::vector<float>(RandomArena(BenchModel(), 1));
  return *arena;
}

void Report(benchmark::State& state, double bytes, double seconds) {
  state.counters["GB/s"] = bytes * static_cast<double>(state.iterations()) / seconds / 1e9;
  state.counters["MiB"] = bytes / (1 << 20);
}

void BM_Memcpy(benchmark::State& state) {
  const size_t bytes = Arena().size() * 2;
  Buffer from(bytes), to(bytes);
  double seconds = 0;
  for (auto _ : state) {
    const absl::Time begun = absl::Now();
    std::memcpy(to.data(), from.data(), bytes);
    benchmark::DoNotOptimize(to.As<char>()[bytes / 2]);
    seconds += absl::ToDoubleSeconds(absl::Now() - begun);
  }
  Report(state, static_cast<double>(bytes), seconds);
}

void BM_Round(benchmark::State& state) {
  const ModelConfig config = BenchModel();
  const ParamLayout layout(config);
  double seconds = 0;
  for (auto _ : state) {
    const absl::Time begun = absl::Now();
    const auto snapshot = MakeSnapshot(config, layout, DType::kF16, kBucketBytes, {1, 1}, Arena().data());
    LOCKSTEP_CHECK(snapshot.ok(), "snapshot");
    seconds += absl::ToDoubleSeconds(absl::Now() - begun);
  }
  Report(state, static_cast<double>(Arena().size() * 2), seconds);
}

// What a receiver does with the bytes: pack into the shadow, read back, digest; one thread.
void BM_Install(benchmark::State& state) {
  const ModelConfig config = BenchModel();
  auto plan = MakeBucketPlan(ParamLayout(config), DType::kF16, kBucketBytes);
  LOCKSTEP_CHECK(plan.ok(), "plan");
  double seconds = 0;
  for (auto _ : state) {
    const std::unique_ptr<Shadow> shadow = MakeHostShadow(config, *plan, {1, 1});
    const absl::Time begun = absl::Now();
    const absl::Status filled = shadow->Fill([](uint64_t, void*, uint64_t) { return absl::OkStatus(); });
    LOCKSTEP_CHECK(filled.ok(), "fill");
    seconds += absl::ToDoubleSeconds(absl::Now() - begun);
  }
  Report(state, static_cast<double>(Arena().size() * 2), seconds);
}

void BM_GlooBroadcast(benchmark::State& state) {
  const size_t bytes = Arena().size() * 2;
  auto table = std::make_shared<RendezvousTable>();
  const int rounds = static_cast<int>(state.max_iterations);
  double seconds = 0;
  const auto member = [&](int rank, const std::function<bool(int)>& more, double* elapsed) {
    const auto store = MakeLocalRendezvousStore(table, {.prefix = absl::StrCat("bench/", rounds)});
    GlooGroupOptions options;
    options.rank = rank;
    options.size = kReceivers + 1;
    const auto context = ConnectGlooGroup(options, *store);
    LOCKSTEP_CHECK(context.ok(), "the group must form");
    Buffer data(bytes);
    uint32_t tag = 0;
    for (int round = 0; more(round); ++round) {
      const absl::Time begun = absl::Now();
      for (size_t at = 0; at < bytes; at += kBucketBytes) {
        gloo::BroadcastOptions broadcast(*context);
        broadcast.setOutput(data.As<char>() + at, std::min<size_t>(kBucketBytes, bytes - at));
        broadcast.setRoot(0);
        broadcast.setTag(tag++);
        gloo::broadcast(broadcast);
      }
      *elapsed += absl::ToDoubleSeconds(absl::Now() - begun);
    }
  };
  std::vector<std::thread> threads;
  double slowest[kReceivers] = {};
  for (int rank = 1; rank <= kReceivers; ++rank) {
    threads.emplace_back([&, rank] {
      member(
          rank, [rounds](int round) { return round < rounds; }, &slowest[rank - 1]);
    });
  }
  double root = 0;
  member(
      0, [&](int) { return state.KeepRunning(); }, &root);
  for (std::thread& thread : threads) thread.join();
  seconds = std::max(root, *std::max_element(slowest, slowest + kReceivers));
  table->ErasePrefix("bench/");
  Report(state, static_cast<double>(bytes), seconds);
}

void BM_Update(benchmark::State& state) {
  const ModelConfig config = BenchModel();
  LearnerEnd learner(config, DType::kF16, kBucketBytes, 120);
  RolloutEnd a(config), b(config);
  double seconds = 0, transfer_seconds = 0;
  uint64_t version = 0;
  for (auto _ : state) {
    const auto report = learner->Publish(1, ++version, Arena().data(), {a.address(), b.address()});
    LOCKSTEP_CHECK(report.ok() && report->servers[0].status.ok() && report->servers[1].status.ok(), "update");
    seconds += report->seconds;
    transfer_seconds += report->transfer_seconds;
  }
  const double bytes = static_cast<double>(Arena().size() * 2);
  Report(state, bytes, seconds);
  state.counters["transfer_GB/s"] = bytes * static_cast<double>(state.iterations()) / transfer_seconds / 1e9;
}

// One pointer swap under the store's lock, while readers take counted references.
void BM_Flip(benchmark::State& state) {
  WeightStore store;
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) benchmark::DoNotOptimize(store.current());
  });
  uint64_t version = 0;
  double seconds = 0;
  for (auto _ : state) {
    auto weights = std::make_shared<Weights>(SmallModel(), DType::kF16);
    weights->version = ++version;
    const std::shared_ptr<const WeightSet> previous = store.current();  // freeing it is not part of the pause
    const absl::Time begun = absl::Now();
    LOCKSTEP_CHECK(store.Publish(std::move(weights)).ok(), "flip");
    seconds += absl::ToDoubleSeconds(absl::Now() - begun);
  }
  stop = true;
  reader.join();
  state.counters["pause_us"] = seconds / static_cast<double>(state.iterations()) * 1e6;
}

BENCHMARK(BM_Memcpy)->Unit(benchmark::kMillisecond)->Iterations(5);
BENCHMARK(BM_Round)->Unit(benchmark::kMillisecond)->Iterations(3);
BENCHMARK(BM_Install)->Unit(benchmark::kMillisecond)->Iterations(3);
BENCHMARK(BM_GlooBroadcast)->Unit(benchmark::kMillisecond)->Iterations(4)->UseRealTime();
BENCHMARK(BM_Update)->Unit(benchmark::kMillisecond)->Iterations(4)->UseRealTime();
BENCHMARK(BM_Flip)->Iterations(200);

}  // namespace
}  // namespace lockstep

BENCHMARK_MAIN();
