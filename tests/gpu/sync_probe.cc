// What moves weights and gradients, on the real NCCL and driver, with one GPU: NCCL's library is loaded and has every
// function; a group of one rank broadcasts, reduces and is aborted; a second process gets buckets over CUDA IPC.
// Exit 0: all of it worked. 77: there is no device to use, in one line. 1: it failed.
//   sync_probe           sync_probe ipc-receiver ADDRESS is the second process
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "learner/collectives_nccl.h"
#include "proto/channel.h"
#include "weight_sync/nccl_group.h"
#include "weight_sync/transport_ipc.h"

extern char** environ;

namespace lockstep {
namespace {

constexpr int kNoDevice = 77;
constexpr uint64_t kBuckets = 5, kBucketBytes = (uint64_t{8} << 20) + 3;
constexpr absl::Duration kTimeout = absl::Seconds(60);

int Fail(const std::string& what, const absl::Status& status) {
  std::fprintf(stderr, "%s failed: %s\n", what.c_str(), status.ToString().c_str());
  return 1;
}

char ByteOf(uint64_t bucket, uint64_t at) { return static_cast<char>(bucket * 13 + at * 7 + at / 251); }

// A group of one: every operation is the identity, but goes through the communicator and the stream.
int OneRank(const std::shared_ptr<CommDevice>& device, const std::string& address) {
  {
    auto alone = MakeNcclCollectives(
        {.rank = 0, .world_size = 1, .device = device, .rank0_address = address, .prefix = "one-rank"});
    if (!alone.ok()) return Fail("a NCCL group of one rank", alone.status());
    std::vector<float> values(1'000'003, 1.5f);
    absl::Status status = (*alone)->AllReduceSum(values.data(), static_cast<int64_t>(values.size()), kTimeout);
    if (!status.ok()) return Fail("all-reduce", status);
    for (const float value : values) {
      if (value != 1.5f) return Fail("all-reduce", absl::DataLossError("it changed a value"));
    }
    std::string text = "broadcast";
    status = (*alone)->Broadcast(&text, kTimeout);
    if (!status.ok() || text != "broadcast") return Fail("broadcast", status);
    if (status = (*alone)->Barrier(kTimeout); !status.ok()) return Fail("barrier", status);
  }  // ends in peace
  NcclGroup group(device);
  NcclGroupOptions options;
  options.table = MakeGrpcGroupTable(MakeChannel(address), "aborted");
  options.deadline = absl::Now() + kTimeout;
  if (const absl::Status status = group.Join(options); !status.ok()) return Fail("a second group", status);
  group.Close();  // ncclCommAbort
  if (device->stuck) return Fail("ncclCommAbort", absl::DeadlineExceededError("it did not come back"));
  return 0;
}

int Receive(const std::string& address) {
  const auto runtime = MakeCudaRuntime(0);
  if (!runtime.ok()) return Fail("the second process", runtime.status());
  const auto device = std::make_shared<CommDevice>(*runtime, nullptr);
  const auto transport = MakeIpcTransport(device, MakeGrpcGroupTable(MakeChannel(address), "ipc"));
  absl::Status status = transport->Join({.rank = 1, .size = 2, .route_to = ""}, absl::Now() + kTimeout);
  const absl::StatusOr<void*> shadow = (*runtime)->Allocate(kBucketBytes);
  if (!shadow.ok()) return Fail("memory", shadow.status());
  const absl::StatusOr<void*> stream = (*runtime)->MakeStream();
  if (!stream.ok()) return Fail("a stream", stream.status());
  for (uint64_t bucket = 0; bucket < kBuckets; ++bucket) {
    if (status.ok()) status = transport->Receive(bucket, *shadow, kBucketBytes, absl::Now() + kTimeout);
    if (!status.ok()) return Fail("receiving over IPC", status);
    std::vector<char> bytes(kBucketBytes);
    status = (*runtime)->Copy(bytes.data(), *shadow, kBucketBytes, *stream);
    while (status.ok() && !(*runtime)->StreamDone(*stream).value_or(true)) absl::SleepFor(absl::Milliseconds(1));
    for (uint64_t at = 0; at < kBucketBytes; ++at) {
      if (bytes[at] != ByteOf(bucket, at)) return Fail("receiving over IPC", absl::DataLossError("other bytes"));
    }
  }
  // The sender reads the receiver's last word before it ends.
  status = MakeGrpcGroupTable(MakeChannel(address), "ipc")->Set("checked", "", absl::Now() + kTimeout);
  return status.ok() ? 0 : Fail("the last word", status);
}

int Send(const std::shared_ptr<CommDevice>& device, const std::shared_ptr<RendezvousTable>& table,
         const std::string& self, const std::string& address) {
  std::vector<std::string> words = {self, "ipc-receiver", address};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  if (posix_spawn(&child, self.c_str(), nullptr, nullptr, argv.data(), environ) != 0) {
    return Fail("starting a second process", absl::InternalError(self));
  }
  const auto keys = MakeLocalGroupTable(table, "ipc");
  const auto transport = MakeIpcTransport(device, keys);
  absl::Status status = transport->Join({.rank = 0, .size = 2, .route_to = ""}, absl::Now() + kTimeout);
  for (uint64_t bucket = 0; bucket < kBuckets && status.ok(); ++bucket) {
    std::vector<char> bytes(kBucketBytes);
    for (uint64_t at = 0; at < kBucketBytes; ++at) bytes[at] = ByteOf(bucket, at);
    status = transport->Send(bucket, bytes.data(), kBucketBytes, absl::Now() + kTimeout);
  }
  if (status.ok()) status = keys->Get("checked", absl::Now() + kTimeout, nullptr).status();
  if (!status.ok()) kill(child, SIGKILL);
  int ended = 0;
  waitpid(child, &ended, 0);
  if (!status.ok()) return Fail("sending over IPC", status);
  return WIFEXITED(ended) && WEXITSTATUS(ended) == 0 ? 0 : Fail("the second process", absl::InternalError("see above"));
}

int Probe(const std::string& self) {
  const auto nccl = LoadNccl();
  if (!nccl.ok()) return Fail("loading NCCL", nccl.status());
  const auto runtime = MakeCudaRuntime(0);
  if (!runtime.ok()) {
    std::printf("NCCL %s has every function; %s\n", (*nccl)->version().c_str(),
                std::string(runtime.status().message()).c_str());
    return kNoDevice;
  }
  const auto table = std::make_shared<RendezvousTable>();
  RendezvousService service(table);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const auto listening = StartServer(builder, "127.0.0.1", 0);
  if (!listening.ok()) return Fail("a server", listening.status());
  const auto device = std::make_shared<CommDevice>(*runtime, *nccl);
  int result = OneRank(device, listening->address);
  if (result == 0) result = Send(device, table, self, listening->address);
  if (result != 0) return result;
  std::printf("GPU %s, NCCL %s: a group of one broadcast, reduced and was aborted; %d buckets came over IPC\n",
              (*runtime)->bus_id().c_str(), (*nccl)->version().c_str(), static_cast<int>(kBuckets));
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "ipc-receiver") return lockstep::Receive(argv[2]);
  return lockstep::Probe(argv[0]);
}
