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
// emulated device. Set before any end is made.
inline std::string& TestTransport() {
  static std::string name = "gloo";
  return name;
}
// Of one end: a GPU of its own for NCCL, the same one for IPC.
inline Transports EmulatedTransports() {
  static std::atomic<int> number{0};
  const auto own = MakeEmulatedDevice(absl::StrCat("gpu-", getpid(), "-", ++number));
  const auto shared = MakeEmulatedDevice("gpu");
  Transports transports = GlooOnly();
  transports["nccl"] = NcclKind(own);
  transports["ipc"] = IpcKind(shared);
  return transports;
}

// The receiving end with a real gRPC server on loopback.
class RolloutEnd {
 public:
  explicit RolloutEnd(const ModelConfig& config, DType dtype = DType::kF16, int port = 0) {
    WeightReceiverOptions options;
    options.transports = EmulatedTransports();
    options.config = config;
    options.dtype = dtype;
    options.metrics = &metrics_;
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
  // Null until the first flip, or where the set is not the host's.
  std::shared_ptr<const Weights> weights() const { return std::dynamic_pointer_cast<const Weights>(store_.current()); }
  MetricsRegistry& metrics() { return metrics_; }
  std::string in_flight() {
    MutexLock lock(&mutex_);
    return in_flight_;
  }
  void FailNextFlip(absl::Status status) {
    MutexLock lock(&mutex_);
    next_flip_ = std::move(status);
  }

 private:
  absl::StatusOr<double> Flip(std::shared_ptr<const WeightSet> weights, const std::string& in_flight) {
    MutexLock lock(&mutex_);
    in_flight_ = in_flight;
    absl::Status status = std::exchange(next_flip_, absl::OkStatus());
    if (status.ok()) status = store_.Publish(std::move(weights));
    if (!status.ok()) return status;
    return 0.001;
  }

  MetricsRegistry metrics_{"rollout"};
  WeightStore store_;
  Mutex mutex_;
  std::string in_flight_ ABSL_GUARDED_BY(mutex_);
  absl::Status next_flip_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<v1::WeightReceiver::Service> service_;
  ListeningServer listening_;
};

// The sending end.
class LearnerEnd {
 public:
  explicit LearnerEnd(const ModelConfig& config, DType dtype = DType::kF16, uint64_t bucket_bytes = 64 << 10,
                      float timeout_seconds = 20) {
    WeightPublisherOptions options;
    options.config = config;
    options.dtype = dtype;
    options.bucket_bytes = bucket_bytes;
    options.transports = EmulatedTransports();
    options.sync.set_transport(TestTransport());
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
  WeightPublisher* operator->() { return publisher_.get(); }
  const std::string& address() const { return listening_.address; }
  MetricsRegistry& metrics() { return metrics_; }

 private:
  MetricsRegistry metrics_{"learner"};
  std::unique_ptr<WeightPublisher> publisher_;
  ListeningServer listening_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_SYNC_TEST_SUPPORT_H_
