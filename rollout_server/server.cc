#include "rollout_server/server.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/digest.h"
#include "engine/base/log.h"
#include "engine/model/routing.h"
#include "weight_sync/receiver.h"

namespace lockstep {
namespace {

// How long a shutdown waits for calls before it cancels them.
constexpr auto kShutdownGrace = std::chrono::milliseconds(200);

std::string NewServerId() {
  std::random_device device;
  const uint32_t words[] = {device(), device(), static_cast<uint32_t>(getpid())};
  return absl::StrCat("rollout-", DigestHex(Digest(words, sizeof(words))));
}

v1::ServerInfo Identity(const RolloutServerOptions& options, const GroupLimits& limits, const WeightSet& weights,
                        const std::string& metrics_address) {
  v1::ServerInfo info;
  info.set_server_id(NewServerId());
  info.set_model_hash(weights.config.Hash());
  info.set_dtype(std::string(DTypeName(weights.dtype)));
  info.set_numerics(options.numerics);
  info.set_kv_cache_blocks(static_cast<uint64_t>(limits.kv_cache_tokens / kPageTokens));
  info.set_vocab_size(static_cast<uint32_t>(weights.config.vocab_size));
  info.set_max_sequence_tokens(static_cast<uint32_t>(std::min(limits.max_position_embeddings, limits.kv_cache_tokens)));
  info.set_metrics_address(metrics_address);
  return info;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RolloutServer>> RolloutServer::Start(const RolloutServerOptions& options,
                                                                    std::unique_ptr<StepBackend> backend,
                                                                    std::shared_ptr<const WeightSet> weights) {
  std::unique_ptr<RolloutServer> server(new RolloutServer());
  if (options.metrics_port >= 0) {
    auto metrics_server = MetricsServer::Start(&server->registry_, options.bind, options.metrics_port);
    if (!metrics_server.ok()) return metrics_server.status();
    server->metrics_server_ = *std::move(metrics_server);
    server->metrics_address_ = server->metrics_server_->address();
  }
  if (absl::Status status = backend->Prepare(weights); !status.ok()) return status;
  GenerateStreamOptions stream_options;
  stream_options.credits = options.max_groups_in_flight;
  stream_options.limits = {
      .vocab_size = weights->config.vocab_size,
      .max_position_embeddings = std::min(weights->config.max_position_embeddings, backend->max_sequence_tokens()),
      .kv_cache_tokens = backend->num_pages() * kPageTokens,
      .has_experts = RoutingShape(weights->config).layers > 0};
  MakeShadow device_shadow = backend->device_shadow();
  const BatchEngineOptions engine_options{.limits = options.limits, .stall_limit_seconds = options.stall_limit_seconds};
  auto engine = std::make_unique<BatchEngine>(engine_options, std::move(backend), weights, &server->metrics_);
  server->loop_ = std::make_unique<DecodeLoop>(std::move(engine), &server->metrics_, options.on_failure);

  server->metrics_.queue_capacity.Set(static_cast<double>(options.max_groups_in_flight) * kMaxSamplesPerGroup);
  RolloutServer* self = server.get();
  server->service_ = std::make_unique<RolloutService>(
      stream_options, Identity(options, stream_options.limits, *weights, server->metrics_address_), server->loop_.get(),
      &server->metrics_, options.on_drain);
  server->receiver_ =
      MakeWeightReceiver({.config = weights->config,
                          .dtype = weights->dtype,
                          .initial_epoch = weights->epoch,
                          .initial_version = weights->version,
                          .transports = options.transports,
                          .device_shadow = std::move(device_shadow),
                          .metrics = &server->registry_},
                         [self](std::shared_ptr<const WeightSet> next, const std::string& in_flight) {
                           return self->loop_->Flip(std::move(next), in_flight, absl::Seconds(kFlipTimeoutSeconds));
                         });

  EnableHealthAndReflection();
  grpc::ServerBuilder builder;
  builder.RegisterService(server->service_.get());
  builder.RegisterService(server->receiver_.get());
  if (options.tokenizer != nullptr) {
    server->text_service_ = std::make_unique<TextService>(options.tokenizer, weights->config.eos_token_ids);
    builder.RegisterService(server->text_service_.get());
  }
  absl::StatusOr<ListeningServer> listening = StartServer(builder, options.bind, options.port);
  if (!listening.ok()) return listening.status();
  server->listening_ = *std::move(listening);
  SetServing(*server->listening_.server, kReadinessName, true);
  SetServing(*server->listening_.server, kRolloutServiceName, true);
  server->registry_.SetState("serving");
  return server;
}

RolloutServer::~RolloutServer() {
  if (listening_.server == nullptr) return;
  listening_.server->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  // Reactions of cancelled streams may still run after Shutdown has returned.
  service_->WaitForStreams(absl::Seconds(10));
  listening_.server->Wait();
}

bool RolloutServer::Drain(absl::Duration grace) {
  const absl::Time deadline = absl::Now() + grace;
  SetServing(*listening_.server, kReadinessName, false);
  SetServing(*listening_.server, kRolloutServiceName, false);
  registry_.SetState("draining");
  service_->BeginDrain();
  const bool streams = service_->WaitForStreams(deadline - absl::Now());
  return loop_->WaitUntilIdle(deadline - absl::Now()) && streams;
}

}  // namespace lockstep
