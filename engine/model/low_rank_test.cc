#include "engine/model/low_rank.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "engine/model/decoder.h"
#include "engine/model/test_util.h"

namespace lockstep {
namespace {

constexpr int64_t kRank = 3;
constexpr float kAlpha = 6;

LowRankLayout Layout(const ModelConfig& config, const std::vector<std::string>& targets = {}) {
  auto layout = MakeLowRankLayout(config, kRank, kAlpha, targets);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *std::move(layout);
}

// A and B both away from 0.
std::vector<float> Adapters(const LowRankLayout& layout) {
  std::vector<float> adapters(layout.total_size);
  InitializeLowRank(layout, 7, adapters.data());
  for (const LowRankAdapter& adapter : layout.adapters) {
    for (int64_t i = 0; i < adapter.rows * layout.rank; ++i) {
      adapters[adapter.b_offset + i] = 0.02f * (static_cast<float>((i * 7 + adapter.param) % 11) - 5);
    }
  }
  return adapters;
}

std::vector<float> Merged(const ModelConfig& config, const LowRankLayout& layout, const std::vector<float>& adapters) {
  std::vector<float> arena = testing::TestArena(config);
  const ParamLayout params(config);
  for (int param = 0; param < static_cast<int>(params.params.size()); ++param) {
    const ParamSpec& spec = params.params[param];
    AddLowRank(layout, adapters.data(), param, 0, spec.rows, spec.cols, arena.data() + spec.offset);
  }
  return arena;
}

struct Pass {
  std::vector<float> full, low_rank;
  double loss = 0;
};

Pass RunPass(const ModelConfig& config, const LowRankLayout& layout, const std::vector<float>& adapters, DType dtype,
             int threads = 1) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, threads);
  Weights weights(config, dtype);
  weights.SetFromArena(Merged(config, layout, adapters).data());
  Decoder decoder(config, dtype, ops.get());
  const PackedBatch batch = testing::TestBatch(config, {9, 20}, 1);
  std::vector<float> log_prob(29), coefficient(29);
  for (size_t i = 0; i < coefficient.size(); ++i) coefficient[i] = 0.1f * (static_cast<float>(i % 7) - 3);
  Pass pass;
  pass.full.assign(weights.layout.total_size, 0.0f);
  pass.low_rank.assign(layout.total_size, 0.0f);
  decoder.ForwardPacked(weights, batch, 1.0f, true, log_prob.data(), nullptr);
  decoder.Backward(weights, batch, 1.0f, coefficient.data(), pass.full.data());
  decoder.ForwardPacked(weights, batch, 1.0f, true, log_prob.data(), nullptr);
  decoder.Backward(weights, batch, 1.0f, coefficient.data(),
                   LowRankGradients{&layout, adapters.data(), pass.low_rank.data()});
  for (size_t i = 0; i < log_prob.size(); ++i) pass.loss += double{coefficient[i]} * double{log_prob[i]};
  return pass;
}

TEST(LowRank, NamesEveryLinearLayerAsHuggingFaceDoes) {
  const ModelConfig config = testing::SmallConfig();
  const LowRankLayout layout = Layout(config);
  EXPECT_EQ(layout.adapters.size(), 7 * config.num_layers);
  EXPECT_EQ(layout.adapters[0].module, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(layout.adapters[6].module, "model.layers.0.mlp.down_proj");
  EXPECT_EQ(layout.adapters[1].row_begin, config.num_heads * config.head_dim);
  EXPECT_EQ(layout.scale, 2.0f);
  EXPECT_EQ(Layout(config, {"v_proj", "q_proj"}).adapters.size(), 2 * config.num_layers);
  EXPECT_EQ(Layout(config, {"v_proj", "q_proj"}).target_modules, (std::vector<std::string>{"q_proj", "v_proj"}));
}

TEST(LowRank, RefusesWhatItCannotAdaptByName) {
  ModelConfig config = testing::SmallConfig();
  const auto message = [&config](int64_t rank, float alpha, const std::vector<std::string>& targets) {
    return std::string(MakeLowRankLayout(config, rank, alpha, targets).status().message());
  };
  EXPECT_NE(message(0, 1, {}).find("lora.rank: 0"), std::string::npos);
  EXPECT_NE(message(1, 0, {}).find("lora.alpha: 0"), std::string::npos);
  EXPECT_NE(message(1, NAN, {}).find("lora.alpha"), std::string::npos);
  EXPECT_NE(message(1, 1, {"lm_head"}).find("'lm_head' is an embedding"), std::string::npos);
  EXPECT_NE(message(1, 1, {"qkv"}).find("'qkv' is not a linear layer"), std::string::npos);
  EXPECT_NE(message(1, 1, {"q_proj", "q_proj"}).find("named twice"), std::string::npos);
  config.architecture = "Qwen3MoeForCausalLM";
  config.num_experts = 4;
  config.experts_per_token = 2;
  config.moe_intermediate_size = 8;
  EXPECT_NE(message(1, 1, {"gate_proj"}).find("'gate_proj' is a layer of the experts"), std::string::npos);
  EXPECT_EQ(Layout(config).adapters.size(), 4 * config.num_layers) << "attention's, and nothing of the experts";
}

TEST(LowRank, BeginsWithNoUpdateAndTheRangeOfPeft) {
  const LowRankLayout layout = Layout(testing::SmallConfig());
  std::vector<float> adapters(layout.total_size, 9.0f);
  InitializeLowRank(layout, 7, adapters.data());
  for (const LowRankAdapter& adapter : layout.adapters) {
    const float bound = 1.0f / std::sqrt(static_cast<float>(adapter.cols));
    double squares = 0;
    for (int64_t i = 0; i < kRank * adapter.cols; ++i) {
      ASSERT_LE(std::abs(adapters[adapter.a_offset + i]), bound);
      squares += std::pow(adapters[adapter.a_offset + i] / bound, 2);
    }
    EXPECT_NEAR(squares / static_cast<double>(kRank * adapter.cols), 1.0 / 3, 0.12) << adapter.module;
    for (int64_t i = 0; i < kRank * adapter.rows; ++i) ASSERT_EQ(adapters[adapter.b_offset + i], 0.0f);
  }
  std::vector<float> other(layout.total_size);
  InitializeLowRank(layout, 8, other.data());
  EXPECT_NE(other, adapters);
}

TEST(LowRank, MergingDoesNotDependOnTheSplitIntoRows) {
  const ModelConfig config = testing::SmallConfig();
  const LowRankLayout layout = Layout(config);
  const std::vector<float> adapters = Adapters(layout), whole = Merged(config, layout, adapters);
  std::vector<float> parts = testing::TestArena(config);
  const ParamLayout params(config);
  for (int param = 0; param < static_cast<int>(params.params.size()); ++param) {
    const ParamSpec& spec = params.params[param];
    for (int64_t row = 0; row < spec.rows; row += 5) {
      AddLowRank(layout, adapters.data(), param, row, std::min<int64_t>(5, spec.rows - row), spec.cols,
                 parts.data() + spec.offset + row * spec.cols);
    }
  }
  EXPECT_EQ(std::memcmp(parts.data(), whole.data(), whole.size() * sizeof(float)), 0);
  EXPECT_NE(whole, testing::TestArena(config));
}

// dA = scale B^T dW and dB = scale dW A^T, from the full gradient of the merged weights.
TEST(LowRank, GradientsAreTheChainRuleOnTheFullGradient) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    const ModelConfig config = testing::SmallConfig();
    const LowRankLayout layout = Layout(config);
    const std::vector<float> adapters = Adapters(layout);
    const Pass pass = RunPass(config, layout, adapters, dtype);
    const ParamLayout params(config);
    for (const LowRankAdapter& adapter : layout.adapters) {
      const float* d_w = pass.full.data() + params.params[adapter.param].offset + adapter.row_begin * adapter.cols;
      const float *a = adapters.data() + adapter.a_offset, *b = adapters.data() + adapter.b_offset;
      for (int64_t j = 0; j < kRank; ++j) {
        for (int64_t c = 0; c < adapter.cols; ++c) {
          double sum = 0, magnitude = 0;
          for (int64_t n = 0; n < adapter.rows; ++n) {
            sum += double{b[n * kRank + j]} * double{d_w[n * adapter.cols + c]};
            magnitude += std::abs(double{b[n * kRank + j]} * double{d_w[n * adapter.cols + c]});
          }
          ASSERT_NEAR(pass.low_rank[adapter.a_offset + j * adapter.cols + c], 2 * sum, 1e-5 * magnitude + 1e-6)
              << adapter.module << " A " << j << "," << c;
        }
        for (int64_t n = 0; n < adapter.rows; ++n) {
          double sum = 0, magnitude = 0;
          for (int64_t c = 0; c < adapter.cols; ++c) {
            sum += double{d_w[n * adapter.cols + c]} * double{a[j * adapter.cols + c]};
            magnitude += std::abs(double{d_w[n * adapter.cols + c]} * double{a[j * adapter.cols + c]});
          }
          ASSERT_NEAR(pass.low_rank[adapter.b_offset + n * kRank + j], 2 * sum, 1e-5 * magnitude + 1e-6)
              << adapter.module << " B " << n << "," << j;
        }
      }
    }
  }
}

TEST(LowRank, GradientsAreThoseOfTheLossByFiniteDifferences) {
  const ModelConfig config = testing::SmallConfig();
  const LowRankLayout layout = Layout(config);
  std::vector<float> adapters = Adapters(layout);
  const std::vector<float> gradient = RunPass(config, layout, adapters, DType::kF32).low_rank;
  double checked = 0;
  for (int64_t i = 3; i < layout.total_size; i += layout.total_size / 40) {
    constexpr float kStep = 4e-3f;
    const float kept = adapters[i];
    adapters[i] = kept + kStep;
    const double up = RunPass(config, layout, adapters, DType::kF32).loss;
    adapters[i] = kept - kStep;
    const double down = RunPass(config, layout, adapters, DType::kF32).loss;
    adapters[i] = kept;
    // FP32 losses carry about 1e-6, divided by 2 h; curvature adds h^2.
    EXPECT_NEAR(gradient[i], (up - down) / (2.0 * kStep), 5e-4 + 5e-3 * std::abs(gradient[i])) << i;
    checked += std::abs(gradient[i]);
  }
  EXPECT_GT(checked, 1e-2) << "the checked elements have gradients";
}

TEST(LowRank, GradientsDoNotDependOnTheThreads) {
  const ModelConfig config = testing::SmallConfig();
  const LowRankLayout layout = Layout(config);
  const std::vector<float> adapters = Adapters(layout);
  EXPECT_EQ(RunPass(config, layout, adapters, DType::kF16, 1).low_rank,
            RunPass(config, layout, adapters, DType::kF16, 3).low_rank);
}

}  // namespace
}  // namespace lockstep
