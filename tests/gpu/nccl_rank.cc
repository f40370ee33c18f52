// The learner's collectives over the real NCCL, in a group of one rank: the library loads, a communicator comes up and
// ends, and every call leaves the data as it must be. Several ranks need several GPUs.
// Exit 0: one line says so. 1: it does not. 77: no device, or no NCCL, in one line.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "learner/collectives_nccl.h"
#include "proto/channel.h"
#include "tests/gpu/check_device.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr int64_t kCount = (kStagedPiece + (int64_t{1} << 20)) / 4;  // more than one staged piece

absl::Status Wrong(const char* what) {
  return absl::InternalError(absl::StrCat(what, " changed the data of one rank"));
}

absl::Status OnTheHost(Collectives& ranks, const std::vector<float>& values) {
  std::vector<float> data = values;
  absl::Status status = ranks.AllReduceSum(data.data(), kCount, kTimeout);
  if (status.ok() && data != values) return Wrong("AllReduceSum");
  double largest = 3.5;
  if (status.ok()) status = ranks.AllReduceMax(&largest, 1, kTimeout);
  if (status.ok() && largest != 3.5) return Wrong("AllReduceMax");
  std::string text = "rank 0's bytes";
  if (status.ok()) status = ranks.Broadcast(&text, kTimeout);
  if (status.ok() && text != "rank 0's bytes") return Wrong("Broadcast");
  if (!status.ok()) return status;
  for (const bool value : {true, false}) {
    const auto agreed = ranks.AllAgree(value, kTimeout);
    if (!agreed.ok()) return agreed.status();
    if (*agreed != value) return Wrong("AllAgree");
  }
  return ranks.Barrier(kTimeout);
}

absl::Status OnTheDevice(Collectives& ranks, DeviceRuntime& runtime, const std::vector<float>& values) {
  const uint64_t bytes = kCount * sizeof(float);
  const auto memory = runtime.Allocate(bytes);
  if (!memory.ok()) return memory.status();
  const auto stream = runtime.MakeStream();
  if (!stream.ok()) return stream.status();
  std::vector<float> back(values.size());
  absl::Status status = CopyNow(runtime, *stream, *memory, values.data(), bytes);
  if (status.ok()) status = ranks.AllReduceSum(static_cast<float*>(*memory), kCount, kTimeout);
  if (status.ok()) status = ranks.Broadcast(static_cast<float*>(*memory), kCount, kTimeout);
  if (status.ok()) status = CopyNow(runtime, *stream, back.data(), *memory, bytes);
  if (status.ok() && back != values) status = Wrong("AllReduceSum or Broadcast on the device");
  runtime.FreeStream(*stream);
  runtime.Free(*memory);
  return status;
}

absl::Status Run() {
  const auto device = MakeCheckDevice(/*with_nccl=*/true);
  if (!device.ok()) return device.status();
  RendezvousService service(std::make_shared<RendezvousTable>());
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const auto listening = StartServer(builder, "127.0.0.1", 0);
  if (!listening.ok()) return listening.status();
  absl::Status status;
  {
    const absl::Time begin = absl::Now();
    const auto ranks = MakeNcclCollectives(
        {.rank = 0, .world_size = 1, .device = *device, .rank0_address = listening->address, .prefix = "one"});
    if (!ranks.ok()) return ranks.status();
    const absl::Duration joined = absl::Now() - begin;
    std::vector<float> values(static_cast<size_t>(kCount));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 977) * 0.25f - 100;
    status = OnTheHost(**ranks, values);
    if (status.ok()) status = OnTheDevice(**ranks, *(*device)->runtime, values);
    if (status.ok()) {
      std::printf("NCCL %s on %s: a group of one rank joined in %s, and its collectives are right\n",
                  (*device)->nccl->version().c_str(), (*device)->runtime->bus_id().c_str(),
                  absl::FormatDuration(absl::Trunc(joined, absl::Milliseconds(1))).c_str());
    }
  }
  listening->server->Shutdown(std::chrono::system_clock::now());
  return status;
}

}  // namespace
}  // namespace lockstep

int main() { return lockstep::ExitCode("one rank of NCCL", lockstep::Run()); }
