// Weights from one process to another on the same GPU, by the product's own path: the learner's publisher makes its
// snapshot on the device and digests it, a rollout server's receiver fills a shadow on the device over CUDA IPC and
// digests that, and the set is switched. Beside it the least that could do: one copy from memory that the receiver has
// opened. Two things stand for what learner and server do with the values: the image is copied from device memory
// instead of rounded from masters, and the shadow is the image itself. The receiver compares every byte of the last
// update.
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
#include "weight_sync/device_params.h"
#include "weight_sync/device_wait.h"
#include "weight_sync/image_shadow.h"
#include "weight_sync/publisher.h"
#include "weight_sync/receiver.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/transport_ipc.h"

namespace lockstep {
namespace {

constexpr int kNoDevice = 77;
constexpr int kUpdates = 7;  // the first ones make the group and open handles; the median is reported
constexpr float kTimeoutSeconds = 120;
constexpr absl::Duration kTimeout = absl::Seconds(120);

struct Job {
  uint64_t bytes = 3'000'000'000;
  uint64_t bucket = uint64_t{64} << 20;
};

// A model whose weights have about so many bytes: nearly all of them are its vocabulary's.
ModelConfig ModelOf(uint64_t bytes) {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.hidden_size = 256;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 1;
  config.head_dim = 64;
  config.intermediate_size = 256;
  config.max_position_embeddings = 64;
  config.tie_word_embeddings = true;
  config.vocab_size = 1;
  const uint64_t row = 2 * static_cast<uint64_t>(config.hidden_size);
  const uint64_t rest = 2 * static_cast<uint64_t>(ParamLayout(config).total_size);
  config.vocab_size = static_cast<int64_t>(1 + (bytes - std::min(bytes, rest)) / row);
  return config;
}

// Random bytes, at another offset for each bucket, so that no bucket equals another.
class Pattern {
 public:
  explicit Pattern(const BucketPlan& plan) : bytes_(plan.max_bytes + plan.buckets.size() * kStride) {
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

// What both processes know, and device memory of a whole set with a stream for what is done to it here.
struct Side {
  ModelConfig config;
  BucketPlan plan;
  std::shared_ptr<CommDevice> device;
  char* data = nullptr;
  void* stream = nullptr;
};
absl::StatusOr<Side> MakeSide(const Job& job) {
  Side side;
  side.config = ModelOf(job.bytes);
  auto plan = MakeBucketPlan(ParamLayout(side.config), DType::kF16, job.bucket);
  if (!plan.ok()) return plan.status();
  side.plan = *std::move(plan);
  auto device = MakeIpcDevice();
  if (!device.ok()) return device.status();
  side.device = *std::move(device);
  const auto data = side.device->runtime->Allocate(side.plan.total_bytes);
  if (!data.ok()) return data.status();
  side.data = static_cast<char*>(*data);
  const auto stream = side.device->runtime->MakeStream();
  if (!stream.ok()) return stream.status();
  side.stream = *stream;
  return side;
}

// Copies and waits; either side on the device or on the host.
absl::Status CopyNow(DeviceRuntime& runtime, void* stream, void* to, const void* from, uint64_t bytes) {
  const absl::Status status = runtime.Copy(to, from, bytes, stream);
  if (!status.ok()) return status;
  const std::atomic<bool> never{false};
  return WaitForDevice("a copy", absl::Now() + kTimeout, never, [&] { return runtime.StreamDone(stream); });
}

absl::Status Compare(const Side& side, const char* image) {
  const Pattern pattern(side.plan);
  std::vector<char> back(side.plan.max_bytes);
  for (uint64_t i = 0; i < side.plan.buckets.size(); ++i) {
    const Bucket& bucket = side.plan.buckets[i];
    const absl::Status status =
        CopyNow(*side.device->runtime, side.stream, back.data(), image + bucket.begin, bucket.bytes);
    if (!status.ok()) return status;
    if (std::memcmp(back.data(), pattern.Of(i), bucket.bytes) != 0) {
      return absl::DataLossError(absl::StrCat("bucket ", i, " has other bytes than were sent"));
    }
  }
  return absl::OkStatus();
}

// The receiver, a process of its own: prints "RAW seconds" a few times, and "RIGHT" once it has compared the last set.
absl::Status Receive(const Job& job, const std::string& address) {
  const auto table = MakeGrpcGroupTable(MakeChannel(address), "switch");
  const auto side = MakeSide(job);
  if (!side.ok()) return side.status();
  DeviceRuntime& runtime = *side->device->runtime;
  const auto handle = table->Get("memory", absl::Now() + kTimeout, nullptr);
  if (!handle.ok()) return handle.status();
  const auto opened = runtime.OpenMemory(*handle);
  if (!opened.ok()) return opened.status();
  for (int update = 0; update < kUpdates; ++update) {
    const absl::Time begin = absl::Now();
    const absl::Status status = CopyNow(runtime, side->stream, side->data, *opened, side->plan.total_bytes);
    if (!status.ok()) return status;
    std::printf("RAW %.9f\n", absl::ToDoubleSeconds(absl::Now() - begin));
  }
  runtime.CloseMemory(*opened);
  std::shared_ptr<const WeightSet> current;  // of one thread: the publisher commits one update at a time
  WeightReceiverOptions options;
  options.config = side->config;
  options.transports["ipc"] = IpcKind(side->device);
  options.device_shadow = [&](const BucketPlan& plan, WeightId id) {
    return MakeImageShadow(side->device, side->config, plan, id);
  };
  const auto receiver = MakeWeightReceiver(
      options, [&current](std::shared_ptr<const WeightSet> set, const std::string&) -> absl::StatusOr<double> {
        current = std::move(set);
        return 0.0;
      });
  grpc::ServerBuilder builder;
  builder.RegisterService(receiver.get());
  const auto listening = StartServer(builder, "127.0.0.1", 0);
  if (!listening.ok()) return listening.status();
  absl::Status status = table->Set("address", listening->address, absl::Now() + kTimeout);
  if (status.ok()) status = table->Get("done", absl::Now() + 2 * kTimeout, nullptr).status();
  listening->server->Shutdown(std::chrono::system_clock::now());
  listening->server->Wait();
  const auto* const image = dynamic_cast<const ImageWeights*>(current.get());
  if (status.ok() && image == nullptr) status = absl::DataLossError("no set on the device was switched to");
  if (status.ok()) status = Compare(*side, static_cast<const char*>(image->memory.memory));
  if (status.ok()) std::puts("RIGHT");
  return status;
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

// Stands for the learner's masters.
class DeviceCopy : public DeviceParams {
 public:
  explicit DeviceCopy(const Side& side) : side_(side) {}
  absl::Status WriteImage(const BucketPlan& plan, void* image) const override {
    return CopyNow(*side_.device->runtime, side_.stream, image, side_.data, plan.total_bytes);
  }

 private:
  const Side& side_;
};

struct Times {
  std::vector<double> snapshot, transfer, update;
};

absl::Status SendAll(const Side& side, WeightPublisher& publisher, GroupTable& table, Times* times) {
  DeviceRuntime& runtime = *side.device->runtime;
  const Pattern pattern(side.plan);
  for (uint64_t i = 0; i < side.plan.buckets.size(); ++i) {
    const Bucket& bucket = side.plan.buckets[i];
    const absl::Status status = CopyNow(runtime, side.stream, side.data + bucket.begin, pattern.Of(i), bucket.bytes);
    if (!status.ok()) return status;
  }
  const auto handle = runtime.ExportMemory(side.data);
  if (!handle.ok()) return handle.status();
  const absl::Status status = table.Set("memory", *handle, absl::Now() + kTimeout);
  if (!status.ok()) return status;
  const auto receiver = table.Get("address", absl::Now() + kTimeout, nullptr);
  if (!receiver.ok()) return receiver.status();
  const DeviceCopy params(side);
  const PublishSource source(&params, []() -> absl::StatusOr<ParamSource> {
    return absl::ResourceExhaustedError("the GPU has no room for the image of the weights");
  });
  for (uint64_t version = 1; version <= kUpdates; ++version) {
    const absl::Time begin = absl::Now();
    const auto report = publisher.Publish(1, version, source, {*receiver});
    if (!report.ok()) return report.status();
    times->snapshot.push_back(absl::ToDoubleSeconds(absl::Now() - begin) - report->seconds);
    times->transfer.push_back(report->transfer_seconds);
    times->update.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
  }
  return table.Set("done", "", absl::Now() + kTimeout);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Reads what the receiver says until it ends.
struct Said {
  std::vector<double> raw;
  bool right = false;
};
Said Listen(std::FILE* from) {
  Said said;
  char line[256];
  while (std::fgets(line, sizeof(line), from) != nullptr) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \n"), absl::SkipEmpty());
    double seconds = 0;
    if (words.size() == 2 && words[0] == "RAW" && absl::SimpleAtod(words[1], &seconds)) said.raw.push_back(seconds);
    said.right = said.right || (words.size() == 1 && words[0] == "RIGHT");
  }
  return said;
}

absl::Status Measure(const std::string& self, const Job& job) {
  const auto side = MakeSide(job);
  if (!side.ok()) return side.status();
  const auto table = std::make_shared<RendezvousTable>();
  WeightPublisherOptions options;
  options.config = side->config;
  options.bucket_bytes = job.bucket;
  options.store = table;
  options.transports["ipc"] = IpcKind(side->device);
  options.sync.set_transport("ipc");
  options.sync.set_timeout_seconds(kTimeoutSeconds);
  options.sync.set_in_flight("finish");
  const auto publisher = MakeWeightPublisher(options);
  grpc::ServerBuilder builder;
  builder.RegisterService(publisher->service());
  const auto listening = StartServer(builder, "127.0.0.1", 0);
  if (!listening.ok()) return listening.status();
  publisher->SetSourceAddress(listening->address);
  pid_t child = 0;
  std::FILE* const from = StartReceiver(self, job, listening->address, &child);
  if (from == nullptr) return absl::InternalError("the receiver cannot be started");
  Times times;
  const auto keys = MakeLocalGroupTable(table, "switch");
  const absl::Status sent = SendAll(*side, *publisher, *keys, &times);
  if (!sent.ok()) table->Close();
  const Said said = Listen(from);
  std::fclose(from);
  int code = 0;
  waitpid(child, &code, 0);
  listening->server->Shutdown(std::chrono::system_clock::now());
  listening->server->Wait();
  side->device->runtime->FreeStream(side->stream);
  side->device->runtime->Free(side->data);
  if (!sent.ok()) return sent;
  if (code != 0 || !said.right || said.raw.size() != kUpdates) {
    return absl::InternalError("the receiver failed; it says why above");
  }
  const double gigabytes = static_cast<double>(side->plan.total_bytes) * 1e-9, update = Median(times.update);
  std::printf("| %.2f GB | %.0f MiB | %.1f ms | %.1f ms | %.1f ms | %.1f ms | %.0f GB/s |\n", gigabytes,
              static_cast<double>(job.bucket) / (1 << 20), Median(said.raw) * 1e3, Median(times.snapshot) * 1e3,
              Median(times.transfer) * 1e3, update * 1e3, gigabytes / update);
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
  std::puts("| weights | bucket | one copy from opened memory | snapshot | transfer | whole update | its rate |");
  std::puts("| --- | --- | --- | --- | --- | --- | --- |");
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
