#include "learner/trainer_test_util.h"

#include <cmath>
#include <utility>

#include "engine/base/philox.h"
#include "gtest/gtest.h"

namespace lockstep {

ModelConfig TinyConfig() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 48;
  config.hidden_size = 32;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_size = 64;
  config.max_position_embeddings = 64;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  config.eos_token_ids = {0};
  return config;
}

TrainerOptions TinyOptions(DType dtype) {
  TrainerOptions options;
  options.config = TinyConfig();
  options.dtype = dtype;
  options.learner.set_beta1(0.9f);
  options.learner.set_beta2(0.95f);
  options.learner.set_adam_eps(1e-8f);
  options.learner.set_grad_clip(1.0f);
  options.learner.set_micro_batch_tokens(40);
  options.learner.set_threads(1);
  options.algorithm.set_name("pg_seq_is");
  options.algorithm.set_aggregation("sequence_mean");
  options.max_response_tokens = 16;
  return options;
}

// Lengths and tokens by Philox. log mu is drawn around the log-prob of a uniform guess, which the fresh model is near.
std::vector<TrainSample> MakeSamples(int count) {
  std::vector<TrainSample> samples;
  for (int i = 0; i < count; ++i) {
    TrainSample sample;
    const auto draw = [&](uint32_t j) { return Philox4x32(11, j, i)[0]; };
    const uint32_t prompt = 2 + draw(0) % 5, response = 1 + draw(1) % 9;
    for (uint32_t t = 0; t < prompt; ++t) sample.prompt.push_back(static_cast<int32_t>(draw(100 + t) % 48));
    for (uint32_t t = 0; t < response; ++t) {
      sample.response.push_back(static_cast<int32_t>(draw(200 + t) % 48));
      sample.log_mu.push_back(-std::log(48.0f) + 0.2f * (UniformOpen(draw(300 + t)) - 0.5f));
    }
    sample.advantage = UniformOpen(draw(2)) - 0.5f;
    samples.push_back(std::move(sample));
  }
  return samples;
}

std::unique_ptr<Trainer> MakeFreshTrainer(const TrainerOptions& options, Collectives* collectives,
                                          const TrainEngineFactory& engine) {
  auto trainer = Trainer::Create(options, collectives, engine);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  InitializeArena(options.config, 5, 0.1f, (*trainer)->arena());
  EXPECT_TRUE((*trainer)->RefreshWeights().ok());
  if ((*trainer)->needs_reference()) {
    EXPECT_TRUE((*trainer)->CaptureReference().ok());
  }
  return *std::move(trainer);
}

std::vector<float> Copy(const float* data, int64_t n) { return std::vector<float>(data, data + n); }

}  // namespace lockstep
