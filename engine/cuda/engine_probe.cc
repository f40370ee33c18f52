// Runs the whole engine on a small model on the device: prefill, decode steps as graphs, packed forward, backward and
// an optimizer's step; and says in one line whether mu == pi, bit for bit. Exit 0: it is. 77: there is no device to
// use. 1: something failed, and the line says what.
#include <cuda_runtime.h>

#include <bit>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/cuda/decode_step.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_optimizer.h"
#include "engine/cuda/mixed_step.h"

namespace lockstep::cuda {
namespace {

constexpr int kNoDevice = 77;
constexpr int kPrompt = 20;
constexpr int kSteps = 24;
constexpr float kTemperature = 0.9f;

ModelConfig ProbeModel() {
  ModelConfig config;
  config.architecture = "Qwen3MoeForCausalLM";
  config.vocab_size = 300;
  config.hidden_size = 64;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 96;
  config.max_position_embeddings = 128;
  config.qk_norm = true;
  config.num_experts = 4;
  config.experts_per_token = 2;
  config.moe_intermediate_size = 32;
  config.norm_topk_prob = true;
  config.mlp_only_layers = {1};
  return config;
}

// What was drawn for one prompt, and with which log-probs.
struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> log_mu;
};

absl::Status Decode(DeviceDecoder& decoder, const DeviceWeights& weights, Drawn* drawn) {
  const Stream& stream = decoder.stream();
  auto cache = DeviceKv::Allocate(decoder.config(), decoder.dtype(), 8, stream);
  if (!cache.ok()) return cache.status();
  auto mixed = MixedStep::Create(&decoder, &*cache, {.outputs = 1, .logit_rows = 1});
  if (!mixed.ok()) return mixed.status();
  auto step = DecodeStep::Create(&decoder, &*cache, {.rows = 1, .sequence_pages = 4});
  if (!step.ok()) return step.status();

  const std::vector<int32_t> pages = {5, 2, 7};
  PagedBatch batch;
  for (int i = 0; i < kPrompt; ++i) {
    drawn->tokens.push_back(i * 37 % 300);
    batch.positions.push_back(i);
  }
  batch.tokens = drawn->tokens;
  batch.sequences = {{0, kPrompt, 0, pages}};
  batch.output_rows = {kPrompt - 1};
  SamplingRow sampling = {.temperature = kTemperature, .seed = 1};
  auto first = mixed->Run(weights, batch, {&sampling, 1});
  if (!first.ok()) return first.status();
  drawn->tokens.push_back(first->tokens[0]);
  drawn->log_mu.push_back(first->log_probs[0]);
  sampling.token_index = 1;
  const DecodeStep::Row row = {
      .from = -1, .token = first->tokens[0], .position = kPrompt, .pages = pages, .sampling = sampling};
  if (absl::Status status = (*step)->SetRows({&row, 1}); !status.ok()) return status;
  for (int i = 0; i < kSteps; ++i) {
    auto number = (*step)->Launch(weights);
    if (!number.ok()) return number.status();
    auto draws = (*step)->Read(*number);
    if (!draws.ok()) return draws.status();
    drawn->tokens.push_back(draws->tokens[0]);
    drawn->log_mu.push_back(draws->log_probs[0]);
  }
  return absl::OkStatus();
}

// The line that is printed.
absl::StatusOr<std::string> Run() {
  auto stream = Stream::Create();
  if (!stream.ok()) return stream.status();
  auto staging = Staging::Create(1 << 20);
  if (!staging.ok()) return staging.status();
  const ModelConfig config = ProbeModel();
  auto weights = DeviceWeights::Allocate(config, DType::kF16, *stream);
  if (!weights.ok()) return weights.status();
  const ArenaLayout layout = weights->layout();
  std::vector<float> values(static_cast<size_t>(layout.params.total_size));
  InitializeArena(config, 3, 0.2f, values.data());
  auto optimizer = DeviceOptimizer::Create(layout.size, DecayRanges(layout), *stream);
  if (!optimizer.ok()) return optimizer.status();
  absl::Status status = LoadArena(layout, values.data(), DType::kF32, optimizer->master(), *stream, *staging);
  if (status.ok()) status = weights->LoadFromMaster(optimizer->master(), *stream);
  if (!status.ok()) return status;

  const auto gemm = MakeMatchedGemm();
  auto decoder = DeviceDecoder::Create(config, DType::kF16, Numerics::kMatched,
                                       {.rows = 32, .decode_rows = 1, .max_position = 127}, gemm.get(), &*stream);
  if (!decoder.ok()) return decoder.status();
  Drawn drawn;
  status = Decode(**decoder, *weights, &drawn);
  if (!status.ok()) return status;

  PackedBatch batch;
  batch.tokens = drawn.tokens;
  batch.cu_seqlens = {0, static_cast<int32_t>(drawn.tokens.size())};
  for (size_t row = kPrompt - 1; row + 1 < drawn.tokens.size(); ++row) {
    batch.loss_rows.push_back(static_cast<int32_t>(row));
    batch.targets.push_back(drawn.tokens[row + 1]);
  }
  std::vector<float> log_pi(batch.targets.size());
  status = (*decoder)->ForwardPacked(*weights, batch, kTemperature, /*recompute=*/true, log_pi.data(), nullptr);
  if (!status.ok()) return status;
  size_t different = 0;
  for (size_t i = 0; i < log_pi.size(); ++i) {
    different += std::bit_cast<uint32_t>(log_pi[i]) != std::bit_cast<uint32_t>(drawn.log_mu[i]) ? 1 : 0;
  }
  if (different > 0) {
    return absl::InternalError(absl::StrCat("mu != pi for ", different, " of ", log_pi.size(), " tokens"));
  }
  const std::vector<float> coefficient(log_pi.size(), -64.0f);
  status = (*decoder)->Backward(*weights, batch, coefficient.data(), optimizer->gradient());
  if (status.ok()) status = optimizer->Norm(64, 1, *stream);
  if (status.ok()) status = optimizer->Step({.lr = 1e-3f}, DType::kF16, weights->arena(), *stream);
  if (!status.ok()) return status;
  auto control = optimizer->ReadControl(*stream);
  if (!control.ok()) return control.status();
  if (control->finite == 0 || !(control->norm > 0)) return absl::InternalError("the gradient is not finite, or zero");
  const double before = control->norm;
  return absl::StrCat("the engine ran: mu == pi for ", log_pi.size(), " tokens, gradient norm ", before);
}

}  // namespace
}  // namespace lockstep::cuda

int main() {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    std::printf("no CUDA device: %s\n", found == cudaSuccess ? "none found" : cudaGetErrorString(found));
    return lockstep::cuda::kNoDevice;
  }
  const absl::StatusOr<std::string> line = lockstep::cuda::Run();
  if (!line.ok()) {
    std::fprintf(stderr, "the engine failed: %s\n", std::string(line.status().message()).c_str());
    return 1;
  }
  std::puts(line->c_str());
  return 0;
}
