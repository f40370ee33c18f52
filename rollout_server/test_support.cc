#include "rollout_server/test_support.h"

#include <random>

#include "gtest/gtest.h"

namespace lockstep {

ModelConfig TinyConfig() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 97;
  config.hidden_size = 32;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_size = 48;
  config.max_position_embeddings = 1024;
  config.qkv_bias = true;
  return config;
}

ModelConfig TinyMixtureConfig(int64_t experts) {
  ModelConfig config = TinyConfig();
  config.architecture = "Qwen3MoeForCausalLM";
  config.qkv_bias = false;
  config.qk_norm = true;
  config.num_experts = experts;
  config.experts_per_token = experts > 4 ? 3 : 2;
  config.moe_intermediate_size = 16;
  config.norm_topk_prob = true;
  return config;
}

namespace {

std::shared_ptr<const Weights> RandomWeights(const ModelConfig& config, uint64_t seed, uint64_t version, DType dtype) {
  auto weights = std::make_shared<Weights>(config, dtype);
  std::vector<float> arena(static_cast<size_t>(weights->layout.total_size));
  InitializeArena(weights->config, seed, 0.25f, arena.data());
  weights->SetFromArena(arena.data());
  weights->version = version;
  weights->epoch = version == 0 ? 0 : 1;
  return weights;
}

// The training forward of prompt and response.
struct TrainingPass {
  std::vector<float> log_probs;
  RoutingTrace trace;
};

TrainingPass RunTraining(const Weights& weights, Ops* ops, const std::vector<int32_t>& prompt,
                         const std::vector<int32_t>& response, float temperature) {
  PackedBatch batch;
  batch.tokens = prompt;
  batch.tokens.insert(batch.tokens.end(), response.begin(), response.end());
  batch.cu_seqlens = {0, static_cast<int32_t>(batch.tokens.size())};
  for (size_t i = 0; i < response.size(); ++i) {
    batch.loss_rows.push_back(static_cast<int32_t>(prompt.size() + i - 1));
    batch.targets.push_back(response[i]);
  }
  TrainingPass pass;
  pass.log_probs.resize(response.size());
  Decoder decoder(weights.config, weights.dtype, ops);
  decoder.ForwardPacked(weights, batch, temperature, /*recompute=*/false, pass.log_probs.data(), nullptr, &pass.trace);
  return pass;
}

}  // namespace

std::shared_ptr<const Weights> TinyWeights(uint64_t seed, uint64_t version, DType dtype) {
  return RandomWeights(TinyConfig(), seed, version, dtype);
}

std::shared_ptr<const Weights> TinyMixtureWeights(int64_t experts, uint64_t seed, uint64_t version, DType dtype) {
  return RandomWeights(TinyMixtureConfig(experts), seed, version, dtype);
}

std::vector<int32_t> TinyPrompt(uint64_t seed, int64_t tokens) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> prompt(static_cast<size_t>(tokens));
  for (int32_t& token : prompt) token = static_cast<int32_t>(random() % 97);
  return prompt;
}

v1::Group TinyGroup(uint64_t group_id, int64_t prompt_tokens, uint32_t num_samples, uint32_t max_tokens) {
  v1::Group group;
  group.set_run_id("test");
  group.set_group_id(group_id);
  group.set_attempt(1);
  group.set_num_samples(num_samples);
  group.set_seed(1234);
  for (int32_t token : TinyPrompt(group_id, prompt_tokens)) group.add_prompt_token_ids(token);
  group.mutable_sampling()->set_temperature(1);
  group.mutable_sampling()->set_top_p(1);
  group.mutable_sampling()->set_max_tokens(max_tokens);
  return group;
}

void Samples::Add(const v1::GenerateResponse& response) {
  if (response.has_refused()) refused_.push_back(response.refused());
  if (response.has_credits()) credits_ += response.credits().groups();
  if (response.has_prompt_routing()) {
    const v1::PromptRouting& piece = response.prompt_routing();
    std::string& rows = prompt_routing_[piece.group_id()];
    if (piece.first_row() == 0) rows.clear();
    rows += piece.routing();
    ++prompt_routings_[piece.group_id()];
  }
  if (!response.has_chunk()) return;
  const v1::TokenChunk& chunk = response.chunk();
  Received& sample = samples_[{chunk.group_id(), chunk.sample_index()}];
  EXPECT_EQ(sample.finish_reason, v1::FINISH_REASON_UNSPECIFIED) << "a chunk after the last";
  EXPECT_EQ(chunk.token_ids_size(), chunk.log_probs_size());
  EXPECT_EQ(chunk.token_ids_size(), chunk.weight_versions_size());
  if (chunk.token_index() == 0 && !sample.tokens.empty()) {
    ++sample.restarts;
    sample.tokens.clear();
    sample.log_probs.clear();
    sample.versions.clear();
    sample.routing.clear();
  }
  if (chunk.token_index() == 0) sample.prompt_routing = prompt_routing_[chunk.group_id()];
  sample.routing += chunk.routing();
  EXPECT_EQ(chunk.token_index(), sample.tokens.size()) << "a gap";
  sample.tokens.insert(sample.tokens.end(), chunk.token_ids().begin(), chunk.token_ids().end());
  sample.log_probs.insert(sample.log_probs.end(), chunk.log_probs().begin(), chunk.log_probs().end());
  sample.versions.insert(sample.versions.end(), chunk.weight_versions().begin(), chunk.weight_versions().end());
  sample.finish_reason = chunk.finish_reason();
  sample.stale_kv_cache |= chunk.stale_kv_cache();
  if (chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ++finished_;
}

const Received& Samples::at(uint64_t group_id, uint32_t sample_index) const {
  static const Received* none = new Received();
  const auto found = samples_.find({group_id, sample_index});
  EXPECT_NE(found, samples_.end()) << "nothing received of group " << group_id << " sample " << sample_index;
  return found == samples_.end() ? *none : found->second;
}

int Samples::prompt_routings(uint64_t group_id) const {
  const auto found = prompt_routings_.find(group_id);
  return found == prompt_routings_.end() ? 0 : found->second;
}

std::vector<float> TrainingLogProbs(const Weights& weights, Ops* ops, const std::vector<int32_t>& prompt,
                                    const std::vector<int32_t>& response, float temperature) {
  return RunTraining(weights, ops, prompt, response, temperature).log_probs;
}

std::string TrainingRouting(const Weights& weights, Ops* ops, const std::vector<int32_t>& prompt,
                            const std::vector<int32_t>& response) {
  std::string rows = RunTraining(weights, ops, prompt, response, 1).trace.experts;
  rows.resize(rows.size() - RoutingShape(weights.config).row_bytes());
  return rows;
}

}  // namespace lockstep
