// One end of weight_sync as a process of its own, for the fault tests. Says on stdout, a line each: its address, and
// what happened to it.
//
//   test_node receiver             "address HOST:PORT", then "flip EPOCH VERSION DIGEST" at each commit
//   test_node sender EPOCH VERSION SEED ADDRESS...    publishes once: "published" or "failed: STATUS"
//
// LOCKSTEP_TEST_TRANSPORT is its transport, "gloo" where it is not set; the others are those of TestTransport.
// LOCKSTEP_FAILPOINTS makes its faults. It ends when its stdin is closed.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "weight_sync/sync_test_support.h"

namespace lockstep {
namespace {

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void WaitForParent() {
  while (std::getchar() != EOF) {
  }
}

int RunReceiver() {
  WeightReceiverOptions options;
  options.config = SmallModel();
  EmulatedEnd emulated;
  options.transports = emulated.transports;
  if (TestOnDevice()) {
    options.device_shadow = [&](const BucketPlan& plan, WeightId id) {
      return MakeImageShadow(emulated.device(), options.config, plan, id);
    };
  }
  const auto service = MakeWeightReceiver(
      options, [](std::shared_ptr<const WeightSet> set, const std::string&) -> absl::StatusOr<double> {
        const std::shared_ptr<const Weights> weights = OnHost(set);
        Say(absl::StrCat("flip ", weights->epoch, " ", weights->version, " ", DigestHex(WeightsDigest(*weights))));
        return 0.0;
      });
  grpc::ServerBuilder builder;
  builder.RegisterService(service.get());
  absl::StatusOr<ListeningServer> listening = StartServer(builder, "127.0.0.1", 0);
  LOCKSTEP_CHECK(listening.ok(), "the node's server must start");
  Say("address " + listening->address);
  WaitForParent();
  listening->server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

int RunSender(int argc, char** argv) {
  LearnerEnd learner(SmallModel());
  const std::vector<float> arena = RandomArena(SmallModel(), std::strtoull(argv[4], nullptr, 10));
  const auto report = learner->Publish(std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10),
                                       arena.data(), std::vector<std::string>(argv + 5, argv + argc));
  Say(report.ok() ? "published" : "failed: " + report.status().ToString());
  WaitForParent();
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  if (const char* transport = std::getenv("LOCKSTEP_TEST_TRANSPORT")) lockstep::TestTransport() = transport;
  const std::string role = argc > 1 ? argv[1] : "";
  if (role == "receiver") return lockstep::RunReceiver();
  if (role == "sender" && argc > 5) return lockstep::RunSender(argc, argv);
  std::fprintf(stderr, "error: usage: test_node receiver | sender EPOCH VERSION SEED ADDRESS...\n");
  return 2;
}
