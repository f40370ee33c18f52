// What the tests and the benchmark of weight_sync share: a small model, a rollout end and a learner end on loopback.
#ifndef LOCKSTEP_WEIGHT_SYNC_SYNC_TEST_SUPPORT_H_
#define LOCKSTEP_WEIGHT_SYNC_SYNC_TEST_SUPPORT_H_

#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/digest.h"
#include "engine/base/metrics.h"
#include "engine/base/mutex.h"
#include "proto/channel.h"
#include "weight_sync/device_emulation.h"
#include "weight_sync/image_shadow.h"
#include "weight_sync/publisher.h"
#include "weight_sync/receiver.h"
#include "weight_sync/transport_ipc.h"
#include "weight_sync/transport_nccl.h"
#include "weight_sync/weight_store.h"

namespace lockstep {

// About 300,000 parameters.
inline ModelConfig SmallModel() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 1003;
  config.hidden_size = 96;
  config.num_layers = 2;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 200;
  config.max_position_embeddings = 64;
  config.qkv_bias = true;
  return config;
}

inline std::vector<float> RandomArena(const ModelConfig& config, uint64_t seed) {
  std::vector<float> arena(static_cast<size_t>(ParamLayout(config).total_size));
  InitializeArena(config, seed, 0.02f, arena.data());
  return arena;
}

// Digest of all parameters as FP32: equal for equal bits in the same dtype.
inline uint64_t WeightsDigest(const Weights& weights) {
  std::vector<float> arena(static_cast<size_t>(weights.layout.total_size));
  weights.CopyToArena(arena.data());
  return Digest(arena.data(), arena.size() * sizeof(float));
}

inline uint64_t ExpectedDigest(const ModelConfig& config, DType dtype, const std::vector<float>& arena) {
  Weights weights(config, dtype);
  weights.SetFromArena(arena.data());
  return WeightsDigest(weights);
}

// The transport by which the ends of a test meet, and what it is called: "gloo" by default; "nccl" and "ipc" over the
// emulated device, with weights in host memory; "nccl_device" and "ipc_device", with weights on the device at both
// ends. Set before any end is made.
inline std::string& TestTransport() {
  static std::string name = "gloo";
  return name;
}
inline std::string TestTransportName() { return TestTransport().substr(0, TestTransport().find('_')); }
inline bool TestOnDevice() { return TestTransport() != TestTransportName(); }

// Of one end: a GPU of its own for NCCL, the same one for IPC.
struct EmulatedEnd {
  std::shared_ptr<EmulatedFaults> faults = std::make_shared<EmulatedFaults>();  // of its NCCL
  Transports transports = GlooOnly();

  EmulatedEnd() {
    static std::atomic<int> number{0};
    transports["nccl"] = NcclKind(MakeEmulatedDevice(absl::StrCat("gpu-", getpid(), "-", ++number), faults));
    transports["ipc"] = IpcKind(MakeEmulatedDevice("gpu"));
  }
  std::shared_ptr<CommDevice> device() const { return transports.at(TestTransportName()).device; }
  // The group that this end keeps.
  std::string kept() const {
    const auto& kept = transports.at(TestTransportName()).kept;
    return kept == nullptr ? "" : kept();
  }
};

inline Transports EmulatedTransports() { return EmulatedEnd().transports; }

// A set that lies on an emulated device, whose memory is the host's as well.
inline std::shared_ptr<const Weights> OnHost(const std::shared_ptr<const WeightSet>& set) {
  const auto* const on_device = dynamic_cast<const ImageWeights*>(set.get());
  if (on_device == nullptr) return std::dynamic_pointer_cast<const Weights>(set);
  auto weights = std::make_shared<Weights>(set->config, set->dtype);
  weights->epoch = set->epoch;
  weights->version = set->version;
  for (const Bucket& bucket : on_device->plan.buckets) {
    StoreBucket(on_device->plan, bucket, static_cast<char*>(on_device->memory.memory) + bucket.begin, weights.get());
  }
  return weights;
}

// The receiving end with a real gRPC server on loopback.
class RolloutEnd {
 public:
  explicit RolloutEnd(const ModelConfig& config, DType dtype = DType::kF16, int port = 0) {
    WeightReceiverOptions options;
    options.transports = emulated_.transports;
    options.config = config;
    options.dtype = dtype;
    options.metrics = &metrics_;
    if (TestOnDevice()) {
      options.device_shadow = [this, config](const BucketPlan& plan,
                                             WeightId id) -> absl::StatusOr<std::unique_ptr<Shadow>> {
        if (no_memory_) return absl::ResourceExhaustedError("the GPU has no memory for a second set of weights");
        return MakeImageShadow(emulated_.device(), config, plan, id);
      };
    }
    service_ =
        MakeWeightReceiver(options, [this](std::shared_ptr<const WeightSet> weights, const std::string& in_flight) {
          return Flip(std::move(weights), in_flight);
        });
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    absl::StatusOr<ListeningServer> listening = StartServer(builder, "127.0.0.1", port);
    LOCKSTEP_CHECK(listening.ok(), "the test's server must start");
    listening_ = *std::move(listening);
  }
  ~RolloutEnd() {
    listening_.server->Shutdown(std::chrono::system_clock::now());
    listening_.server->Wait();
  }

  const std::string& address() const { return listening_.address; }
  int port() const { return std::stoi(address().substr(address().rfind(':') + 1)); }
  // Null until the first flip.
  std::shared_ptr<const WeightSet> set() const { return store_.current(); }
  std::shared_ptr<const Weights> weights() const { return OnHost(set()); }
  MetricsRegistry& metrics() { return metrics_; }
  EmulatedEnd& emulated() { return emulated_; }
  std::string in_flight() {
    MutexLock lock(&mutex_);
    return in_flight_;
  }
  void FailNextFlip(absl::Status status) {
    MutexLock lock(&mutex_);
    next_flip_ = std::move(status);
  }
  void SetNoMemory(bool no_memory) { no_memory_ = no_memory; }

 private:
  absl::StatusOr<double> Flip(std::shared_ptr<const WeightSet> weights, const std::string& in_flight) {
    MutexLock lock(&mutex_);
    in_flight_ = in_flight;
    absl::Status status = std::exchange(next_flip_, absl::OkStatus());
    if (status.ok()) status = store_.Publish(std::move(weights));
    if (!status.ok()) return status;
    return 0.001;
  }

  EmulatedEnd emulated_;
  std::atomic<bool> no_memory_{false};
  MetricsRegistry metrics_{"rollout"};
  WeightStore store_;
  Mutex mutex_;
  std::string in_flight_ ABSL_GUARDED_BY(mutex_);
  absl::Status next_flip_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<v1::WeightReceiver::Service> service_;
  ListeningServer listening_;
};

// Masters of a learner on the emulated device.
class EmulatedParams : public DeviceParams {
 public:
  explicit EmulatedParams(const float* arena) : arena_(arena) {}
  absl::Status WriteImage(const BucketPlan& plan, void* image) const override {
    for (const Bucket& bucket : plan.buckets) {
      RoundBucket(plan, bucket, arena_, static_cast<char*>(image) + bucket.begin);
    }
    return absl::OkStatus();
  }

 private:
  const float* const arena_;
};

// The sending end.
class LearnerEnd {
 public:
  explicit LearnerEnd(const ModelConfig& config, DType dtype = DType::kF16, uint64_t bucket_bytes = 64 << 10,
                      float timeout_seconds = 20, const std::string& transport = TestTransportName()) {
    WeightPublisherOptions options;
    options.config = config;
    options.dtype = dtype;
    options.bucket_bytes = bucket_bytes;
    options.transports = emulated_.transports;
    options.sync.set_transport(transport);
    options.sync.set_timeout_seconds(timeout_seconds);
    options.sync.set_in_flight("finish");
    options.metrics = &metrics_;
    publisher_ = MakeWeightPublisher(options);
    grpc::ServerBuilder builder;
    builder.RegisterService(publisher_->service());
    absl::StatusOr<ListeningServer> listening = StartServer(builder, "127.0.0.1", 0);
    LOCKSTEP_CHECK(listening.ok(), "the test's server must start");
    listening_ = *std::move(listening);
    publisher_->SetSourceAddress(listening_.address);
  }
  ~LearnerEnd() {
    listening_.server->Shutdown(std::chrono::system_clock::now());
    listening_.server->Wait();
  }
  LearnerEnd* operator->() { return this; }
  // The arena's values, where the test has its weights.
  absl::StatusOr<UpdateReport> Publish(uint64_t epoch, uint64_t version, const float* arena,
                                       const std::vector<std::string>& addresses) {
    const EmulatedParams on_device(arena);
    const PublishSource source(TestOnDevice() ? &on_device : nullptr, [&]() -> absl::StatusOr<ParamSource> {
      ++asked_of_host_;
      return ParamSource(arena);
    });
    return Publish(epoch, version, source, addresses);
  }
  absl::StatusOr<UpdateReport> Publish(uint64_t epoch, uint64_t version, const PublishSource& source,
                                       const std::vector<std::string>& addresses) {
    return publisher_->Publish(epoch, version, source, addresses);
  }
  absl::Status CatchUp(const std::string& address) { return publisher_->CatchUp(address); }
  // How often the values were asked for in host memory.
  int asked_of_host() const { return asked_of_host_; }
  const std::string& address() const { return listening_.address; }
  MetricsRegistry& metrics() { return metrics_; }
  EmulatedEnd& emulated() { return emulated_; }

 private:
  EmulatedEnd emulated_;
  int asked_of_host_ = 0;
  MetricsRegistry metrics_{"learner"};
  std::unique_ptr<WeightPublisher> publisher_;
  ListeningServer listening_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_SYNC_TEST_SUPPORT_H_
