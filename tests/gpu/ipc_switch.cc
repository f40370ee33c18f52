// Weights from one process to another on the same GPU: a sender and a receiver as the learner and a rollout server have
// them (transport_ipc.h, their group's table over gRPC), and beside them the least that could do: one copy from memory
// that the receiver has opened. The receiver compares every byte of the last update.
//   ipc_switch [BYTES [BUCKET_MIB...]]      3,000,000,000 bytes in buckets of 2 and of 64 MiB
// Exit 0: a Markdown table. 1: wrong bytes, or it failed. 77: there is no device, in one line.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "proto/channel.h"
#include "tests/gpu/ipc_device.h"
#include "weight_sync/device_wait.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/transport_ipc.h"

namespace lockstep {
namespace {

constexpr int kNoDevice = 77;
constexpr int kUpdates = 7;  // the first ones open handles and make slots; the median is reported
constexpr absl::Duration kTimeout = absl::Seconds(120);

struct Job {
  uint64_t bytes = 3'000'000'000;
  uint64_t bucket = uint64_t{64} << 20;
  uint64_t buckets() const { return (bytes + bucket - 1) / bucket; }
  uint64_t size(uint64_t i) const { return std::min(bucket, bytes - i * bucket); }
};

// Random bytes, at another offset for each bucket, so that no bucket equals another.
class Pattern {
 public:
  explicit Pattern(const Job& job) : bytes_(job.bucket + job.buckets() * kStride) {
    std::mt19937_64 random(5);
    for (size_t i = 0; i + 8 <= bytes_.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&bytes_[i], &word, 8);
    }
  }
  const char* Of(uint64_t bucket) const { return bytes_.data() + bucket * kStride; }

 private:
  static constexpr uint64_t kStride = 64;
  std::vector<char> bytes_;
};

// Device memory of the whole set of weights, and a stream for what is done to it here.
struct Memory {
  std::shared_ptr<CommDevice> device;
  char* data = nullptr;
  void* stream = nullptr;
};
absl::StatusOr<Memory> MakeMemory(uint64_t bytes) {
  auto device = MakeIpcDevice();
  if (!device.ok()) return device.status();
  const auto data = (*device)->runtime->Allocate(bytes);
  if (!data.ok()) return data.status();
  const auto stream = (*device)->runtime->MakeStream();
  if (!stream.ok()) return stream.status();
  return Memory{*std::move(device), static_cast<char*>(*data), *stream};
}

// Copies and waits; either side on the device or on the host.
absl::Status CopyNow(DeviceRuntime& runtime, void* stream, void* to, const void* from, uint64_t bytes) {
  const absl::Status status = runtime.Copy(to, from, bytes, stream);
  if (!status.ok()) return status;
  const std::atomic<bool> never{false};
  return WaitForDevice("a copy", absl::Now() + kTimeout, never, [&] { return runtime.StreamDone(stream); });
}

std::string Prefix(int update) { return absl::StrCat("update-", update); }

// The receiver, a process of its own: prints "RAW seconds", then "SWITCH seconds of the transport" for each update.
absl::Status Receive(const Job& job, const std::string& address) {
  const auto channel = MakeChannel(address);
  const auto memory = MakeMemory(job.bytes);
  if (!memory.ok()) return memory.status();
  DeviceRuntime& runtime = *memory->device->runtime;
  const auto handle = MakeGrpcGroupTable(channel, "raw")->Get("memory", absl::Now() + kTimeout, nullptr);
  if (!handle.ok()) return handle.status();
  const auto opened = runtime.OpenMemory(*handle);
  if (!opened.ok()) return opened.status();
  for (int update = 0; update < kUpdates; ++update) {
    const absl::Time begin = absl::Now();
    const absl::Status status = CopyNow(runtime, memory->stream, memory->data, *opened, job.bytes);
    if (!status.ok()) return status;
    std::printf("RAW %.9f\n", absl::ToDoubleSeconds(absl::Now() - begin));
  }
  runtime.CloseMemory(*opened);
  for (int update = 0; update < kUpdates; ++update) {
    const auto transport = MakeIpcTransport(memory->device, MakeGrpcGroupTable(channel, Prefix(update)));
    absl::Status status = transport->Join({.rank = 1, .size = 2, .route_to = address}, absl::Now() + kTimeout);
    const absl::Time begin = absl::Now();
    for (uint64_t i = 0; status.ok() && i < job.buckets(); ++i) {
      status = transport->Receive(i, memory->data + i * job.bucket, job.size(i), absl::Now() + kTimeout);
    }
    if (!status.ok()) return status;
    std::printf("SWITCH %.9f\n", absl::ToDoubleSeconds(absl::Now() - begin));
    transport->Close();
  }
  const Pattern pattern(job);
  std::vector<char> back(job.bucket);
  for (uint64_t i = 0; i < job.buckets(); ++i) {
    const absl::Status status =
        CopyNow(runtime, memory->stream, back.data(), memory->data + i * job.bucket, job.size(i));
    if (!status.ok()) return status;
    if (std::memcmp(back.data(), pattern.Of(i), job.size(i)) != 0) {
      return absl::DataLossError(absl::StrCat("bucket ", i, " has other bytes than were sent"));
    }
  }
  std::puts("RIGHT");
  return absl::OkStatus();
}

// Starts the receiver; its stdout.
std::FILE* StartReceiver(const std::string& self, const Job& job, const std::string& address, pid_t* child) {
  int ends[2];
  if (pipe(ends) != 0) return nullptr;
  const std::string bytes = absl::StrCat(job.bytes), bucket = absl::StrCat(job.bucket);
  *child = fork();
  if (*child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl(self.c_str(), self.c_str(), "receiver", address.c_str(), bytes.c_str(), bucket.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  if (*child < 0) {
    close(ends[0]);
    return nullptr;
  }
  return fdopen(ends[0], "r");
}

absl::Status SendAll(const Job& job, const Memory& memory, const std::shared_ptr<RendezvousTable>& table,
                     const std::string& address) {
  DeviceRuntime& runtime = *memory.device->runtime;
  const Pattern pattern(job);
  for (uint64_t i = 0; i < job.buckets(); ++i) {
    const absl::Status status =
        CopyNow(runtime, memory.stream, memory.data + i * job.bucket, pattern.Of(i), job.size(i));
    if (!status.ok()) return status;
  }
  const auto handle = runtime.ExportMemory(memory.data);
  if (!handle.ok()) return handle.status();
  absl::Status status = MakeLocalGroupTable(table, "raw")->Set("memory", *handle, absl::Now() + kTimeout);
  for (int update = 0; status.ok() && update < kUpdates; ++update) {
    const auto group = MakeLocalGroupTable(table, Prefix(update));
    const auto transport = MakeIpcTransport(memory.device, group);
    status = transport->Join({.rank = 0, .size = 2, .route_to = address}, absl::Now() + kTimeout);
    for (uint64_t i = 0; status.ok() && i < job.buckets(); ++i) {
      status = transport->Send(i, memory.data + i * job.bucket, job.size(i), absl::Now() + kTimeout);
    }
    // The slots are the pool's again once the transport is closed: not before the receiver has its last bucket.
    for (uint64_t i = job.buckets() - std::min<uint64_t>(2, job.buckets()); status.ok() && i < job.buckets(); ++i) {
      status = group->Get(absl::StrCat("taken/", i, "/1"), absl::Now() + kTimeout, nullptr).status();
    }
    transport->Close();
  }
  return status;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Reads what the receiver says until it ends.
struct Said {
  std::vector<double> raw, switches;
  bool right = false;
};
Said Listen(std::FILE* from) {
  Said said;
  char line[256];
  while (std::fgets(line, sizeof(line), from) != nullptr) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \n"), absl::SkipEmpty());
    double seconds = 0;
    if (words.size() == 2 && absl::SimpleAtod(words[1], &seconds)) {
      (words[0] == "RAW" ? said.raw : said.switches).push_back(seconds);
    }
    said.right = said.right || (words.size() == 1 && words[0] == "RIGHT");
  }
  return said;
}

absl::Status Measure(const std::string& self, const Job& job) {
  const auto memory = MakeMemory(job.bytes);
  if (!memory.ok()) return memory.status();
  const auto table = std::make_shared<RendezvousTable>();
  RendezvousService service(table);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const auto listening = StartServer(builder, "127.0.0.1", 0);
  if (!listening.ok()) return listening.status();
  pid_t child = 0;
  std::FILE* const from = StartReceiver(self, job, listening->address, &child);
  if (from == nullptr) return absl::InternalError("the receiver cannot be started");
  const absl::Status sent = SendAll(job, *memory, table, listening->address);
  if (!sent.ok()) table->Close();
  const Said said = Listen(from);
  std::fclose(from);
  int code = 0;
  waitpid(child, &code, 0);
  listening->server->Shutdown(std::chrono::system_clock::now());
  memory->device->runtime->FreeStream(memory->stream);
  memory->device->runtime->Free(memory->data);
  if (!sent.ok()) return sent;
  if (code != 0 || !said.right || said.raw.size() != kUpdates || said.switches.size() != kUpdates) {
    return absl::InternalError("the receiver failed; it says why above");
  }
  const double gigabytes = static_cast<double>(job.bytes) * 1e-9, raw = Median(said.raw);
  const double transport = Median(said.switches);
  std::printf("| %.2f GB | %.0f MiB | %.1f ms | %.1f ms | %.0f GB/s |\n", gigabytes,
              static_cast<double>(job.bucket) / (1 << 20), raw * 1e3, transport * 1e3, gigabytes / transport);
  return absl::OkStatus();
}

absl::Status Run(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "receiver") {
    Job job;
    if (!absl::SimpleAtoi(argv[3], &job.bytes) || !absl::SimpleAtoi(argv[4], &job.bucket)) {
      return absl::InvalidArgumentError("the receiver was started with other words than numbers");
    }
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    return Receive(job, argv[2]);
  }
  std::vector<Job> jobs = {{.bucket = uint64_t{2} << 20}, {.bucket = uint64_t{64} << 20}};
  if (argc > 1) {
    uint64_t bytes = 0;
    if (!absl::SimpleAtoi(argv[1], &bytes) || bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat("'", argv[1], "' is not a number of bytes"));
    }
    for (Job& job : jobs) job.bytes = bytes;
    if (argc > 2) jobs.clear();
    for (int i = 2; i < argc; ++i) {
      uint64_t mib = 0;
      if (!absl::SimpleAtoi(argv[i], &mib) || mib == 0 || mib > 1024) {
        return absl::InvalidArgumentError(absl::StrCat("'", argv[i], "' is not a bucket in MiB, 1 to 1024"));
      }
      jobs.push_back({bytes, mib << 20});
    }
  }
  if (const auto device = MakeIpcDevice(); !device.ok()) return device.status();
  std::puts("| weights | bucket | one copy from opened memory | the transport | its rate |");
  std::puts("| --- | --- | --- | --- | --- |");
  std::fflush(stdout);
  for (const Job& job : jobs) {
    if (absl::Status status = Measure("/proc/self/exe", job); !status.ok()) return status;
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  const absl::Status status = lockstep::Run(argc, argv);
  const std::string message(status.message());
  if (absl::IsUnavailable(status)) {
    std::printf("%s\n", message.c_str());
    return lockstep::kNoDevice;
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "the weight switch failed: %s\n", message.c_str());
  return 1;
}
