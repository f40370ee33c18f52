// Router replay: the packed forward and the backward pass with experts that were chosen elsewhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "engine/model/decoder.h"
#include "engine/model/routing.h"
#include "engine/model/test_util.h"

namespace lockstep {
namespace {

// Mixtures in layers 0 and 2; 300 experts have ids of two bytes.
ModelConfig Mixture(int64_t experts, int64_t top_k, bool normalize = true) {
  ModelConfig config = testing::SmallConfig();
  config.architecture = "Qwen3MoeForCausalLM";
  config.num_layers = 3;
  config.qkv_bias = false;
  config.qk_norm = true;
  config.num_experts = experts;
  config.experts_per_token = top_k;
  config.moe_intermediate_size = 12;
  config.norm_topk_prob = normalize;
  config.mlp_only_layers = {1};
  return config;
}

const std::vector<int> kLengths = {17, 1, 40, 6};

// Every row has its routing given, none of it the routers' own.
void GiveOtherExperts(const RoutingShape& shape, PackedBatch& batch) {
  const size_t rows = batch.tokens.size();
  batch.routing.assign(rows * shape.row_bytes(), '\0');
  batch.has_routing.assign(rows, 1);
  std::vector<int32_t> all(static_cast<size_t>(shape.num_experts));
  for (size_t row = 0; row < rows; ++row) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      std::iota(all.begin(), all.end(), 0);
      const auto rank = [&](int32_t e) { return testing::Hash32(row * 2 + static_cast<size_t>(layer), e); };
      std::sort(all.begin(), all.end(), [&](int32_t a, int32_t b) { return rank(a) < rank(b); });
      std::sort(all.begin(), all.begin() + shape.top_k);
      PutExperts(shape, all.data(), layer, batch.routing.data() + row * shape.row_bytes());
    }
  }
}

struct Pass {
  std::vector<float> log_prob, gradients;
  RoutingTrace trace;
};

Pass RunPass(Decoder& decoder, const Weights& weights, const PackedBatch& batch, bool recompute) {
  Pass pass;
  std::vector<float> coefficient(batch.targets.size());
  for (size_t i = 0; i < coefficient.size(); ++i) coefficient[i] = 0.1f * (static_cast<float>(i % 7) - 2.5f);
  pass.log_prob.resize(batch.targets.size());
  pass.gradients.assign(weights.layout.total_size, 0.0f);
  decoder.ForwardPacked(weights, batch, 0.8f, recompute, pass.log_prob.data(), nullptr, &pass.trace);
  decoder.Backward(weights, batch, 0.8f, coefficient.data(), pass.gradients.data());
  return pass;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Replay : public ::testing::TestWithParam<std::tuple<DType, Numerics>> {};

TEST_P(Replay, OfTheForwardsOwnChoiceChangesNothing) {
  const auto [dtype, numerics] = GetParam();
  for (const auto& [experts, top_k] : {std::pair{4, 2}, {60, 6}, {300, 3}}) {
    for (const bool recompute : {false, true}) {
      const ModelConfig config = Mixture(experts, top_k);
      const Weights weights = testing::TestWeights(config, dtype);
      const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 2);
      Decoder decoder(config, dtype, ops.get());
      PackedBatch batch = testing::TestBatch(config, kLengths, 3);
      const Pass own = RunPass(decoder, weights, batch, recompute);
      EXPECT_EQ(own.trace.choices, 0);
      ASSERT_TRUE(CheckRouting(RoutingShape(config), own.trace.experts).ok());
      batch.routing = own.trace.experts;
      batch.has_routing.assign(batch.tokens.size(), 1);
      for (const bool replay : {true, false}) {
        batch.replay_routing = replay;
        const Pass again = RunPass(decoder, weights, batch, recompute);
        EXPECT_TRUE(SameBits(again.log_prob, own.log_prob));
        EXPECT_TRUE(SameBits(again.gradients, own.gradients));
        EXPECT_EQ(again.trace.experts, own.trace.experts);
        EXPECT_EQ(again.trace.choices, 2 * 64);
        EXPECT_EQ(again.trace.differing, 0);
      }
    }
  }
}

TEST_P(Replay, RecomputedLayersTakeTheGivenExpertsToo) {
  const auto [dtype, numerics] = GetParam();
  const ModelConfig config = Mixture(60, 6);
  const Weights weights = testing::TestWeights(config, dtype);
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 2);
  Decoder decoder(config, dtype, ops.get());
  PackedBatch batch = testing::TestBatch(config, kLengths, 3);
  const Pass own = RunPass(decoder, weights, batch, false);
  GiveOtherExperts(RoutingShape(config), batch);
  const Pass kept = RunPass(decoder, weights, batch, false), recomputed = RunPass(decoder, weights, batch, true);
  EXPECT_FALSE(SameBits(kept.log_prob, own.log_prob));
  EXPECT_EQ(kept.trace.experts, batch.routing);
  EXPECT_GT(kept.trace.differing, 100);
  EXPECT_TRUE(SameBits(kept.log_prob, recomputed.log_prob));
  EXPECT_TRUE(SameBits(kept.gradients, recomputed.gradients));
}

TEST_P(Replay, AComparisonAloneCountsAndChangesNothing) {
  const auto [dtype, numerics] = GetParam();
  const ModelConfig config = Mixture(60, 6);
  const Weights weights = testing::TestWeights(config, dtype);
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 1);
  Decoder decoder(config, dtype, ops.get());
  PackedBatch batch = testing::TestBatch(config, kLengths, 3);
  const Pass own = RunPass(decoder, weights, batch, false);
  GiveOtherExperts(RoutingShape(config), batch);
  batch.replay_routing = false;
  const Pass compared = RunPass(decoder, weights, batch, false);
  EXPECT_TRUE(SameBits(compared.log_prob, own.log_prob));
  EXPECT_TRUE(SameBits(compared.gradients, own.gradients));
  int64_t differing = 0;
  for (size_t at = 0; at < batch.routing.size(); at += 6) {
    differing += batch.routing.compare(at, 6, own.trace.experts, at, 6) == 0 ? 0 : 1;
  }
  EXPECT_EQ(compared.trace.differing, differing);
  EXPECT_GT(differing, 100);
}

TEST_P(Replay, RowsWithoutGivenExpertsChooseTheirOwn) {
  const auto [dtype, numerics] = GetParam();
  if (numerics == Numerics::kNative) GTEST_SKIP() << "another number of rows an expert may be another order of sums";
  const ModelConfig config = Mixture(60, 6);
  const Weights weights = testing::TestWeights(config, dtype);
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 1);
  Decoder decoder(config, dtype, ops.get());
  PackedBatch batch = testing::TestBatch(config, kLengths, 3);
  const Pass own = RunPass(decoder, weights, batch, false);
  GiveOtherExperts(RoutingShape(config), batch);
  std::fill(batch.has_routing.begin(), batch.has_routing.begin() + 18, 0);  // the first two sequences
  const Pass mixed = RunPass(decoder, weights, batch, false);
  EXPECT_EQ(mixed.trace.choices, 2 * (64 - 18));
  EXPECT_TRUE(std::equal(own.log_prob.begin(), own.log_prob.begin() + 18, mixed.log_prob.begin()));
  EXPECT_FALSE(std::equal(own.log_prob.begin() + 18, own.log_prob.end(), mixed.log_prob.begin() + 18));
}

TEST_P(Replay, PagedAndPackedForwardRecordTheSameExperts) {
  const auto [dtype, numerics] = GetParam();
  if (numerics == Numerics::kNative) GTEST_SKIP() << "almost equal experts may fall either way";
  const ModelConfig config = Mixture(300, 5);
  const Weights weights = testing::TestWeights(config, dtype);
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 2);
  Decoder decoder(config, dtype, ops.get());
  const PackedBatch batch = testing::TestBatch(config, {40}, 3);
  const Pass packed = RunPass(decoder, weights, batch, true);
  KvStorage cache(config, dtype, 3);
  const std::vector<int32_t> pages = {0, 1, 2};
  std::string recorded;
  for (int begin = 0, count = 7; begin < 40; begin += count, count = 40 - begin < 3 ? 40 - begin : 3) {
    PagedBatch step;
    for (int i = begin; i < begin + count; ++i) {
      step.tokens.push_back(batch.tokens[i]);
      step.positions.push_back(i);
    }
    step.sequences.push_back({.row_begin = 0, .row_count = count, .position_begin = begin, .pages = pages});
    std::string routing;
    decoder.ForwardPaged(weights, step, cache, Tensor(nullptr, dtype, 0, config.hidden_size), &routing);
    recorded += routing;
  }
  EXPECT_EQ(recorded, packed.trace.experts);
}

INSTANTIATE_TEST_SUITE_P(Types, Replay,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                                            ::testing::Values(Numerics::kMatched, Numerics::kNative)),
                         [](const auto& info) {
                           return std::string(DTypeName(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == Numerics::kMatched ? "_matched" : "_native");
                         });

// With the experts given, the loss is a smooth function of every parameter, the router's included. Central differences
// along one direction a parameter; FP32 sums leave about 1e-6 of the loss, so 1e-3 of a difference of 1e-3.
TEST(ReplayGradient, IsThatOfFiniteDifferences) {
  for (const bool normalize : {true, false}) {
    const ModelConfig config = Mixture(9, 3, normalize);
    const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
    Weights weights(config, DType::kF32);
    std::vector<float> arena = testing::TestArena(config);
    weights.SetFromArena(arena.data());
    Decoder decoder(config, DType::kF32, ops.get());
    PackedBatch batch = testing::TestBatch(config, {9, 14}, 3);
    GiveOtherExperts(RoutingShape(config), batch);
    const std::vector<float> gradients = RunPass(decoder, weights, batch, true).gradients;
    const auto loss = [&](const std::vector<float>& at) {
      weights.SetFromArena(at.data());
      std::vector<float> log_prob(batch.targets.size());
      decoder.ForwardPacked(weights, batch, 0.8f, false, log_prob.data(), nullptr);
      double sum = 0;
      for (size_t i = 0; i < log_prob.size(); ++i) sum += 0.1 * (static_cast<double>(i % 7) - 2.5) * log_prob[i];
      return sum;
    };
    for (const ParamSpec& param : weights.layout.params) {
      double slope = 0, norm = 0;
      for (int64_t i = param.offset; i < param.offset + param.size(); ++i) norm += gradients[i] * gradients[i];
      norm = std::sqrt(norm);
      if (norm == 0) continue;  // an expert that no token went to
      // Along the gradient, with a random part: a step of the loss of about `reach`.
      std::vector<float> direction(param.size());
      for (int64_t i = 0; i < param.size(); ++i) {
        const float random = testing::Hash32(5, param.offset + i) % 256 / 128.0f - 1;
        direction[i] = static_cast<float>(gradients[param.offset + i] / norm) +
                       0.5f * random / std::sqrt(static_cast<float>(param.size()));
        slope += double{direction[i]} * gradients[param.offset + i];
      }
      const double reach = 4e-3, step = std::min(1e-2, reach / norm);
      std::vector<float> up = arena, down = arena;
      for (int64_t i = 0; i < param.size(); ++i) {
        up[param.offset + i] += static_cast<float>(step * direction[i]);
        down[param.offset + i] -= static_cast<float>(step * direction[i]);
      }
      const double difference = (loss(up) - loss(down)) / (2 * step);
      EXPECT_NEAR(difference, slope, 0.01 * norm + 1e-4) << param.name << (normalize ? " normalized" : " plain");
      if (param.name.ends_with(".router")) {
        EXPECT_GT(norm, 1e-3) << param.name;
      }
    }
  }
}

// Adapters of attention beside replay: the same gradient, through A and B.
TEST(ReplayGradient, OfAdaptersIsTheOneOfTheMergedMatrices) {
  const ModelConfig config = Mixture(9, 3);
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  const Weights weights = testing::TestWeights(config, DType::kF32);
  Decoder decoder(config, DType::kF32, ops.get());
  PackedBatch batch = testing::TestBatch(config, {9, 14}, 3);
  GiveOtherExperts(RoutingShape(config), batch);
  auto layout = MakeLowRankLayout(config, 2, 4, {});
  ASSERT_TRUE(layout.ok()) << layout.status();
  std::vector<float> adapters(layout->total_size), low_rank(layout->total_size);
  InitializeLowRank(*layout, 7, adapters.data());  // B is 0: the merged weights are the base
  const std::vector<float> full = RunPass(decoder, weights, batch, true).gradients;
  std::vector<float> log_prob(batch.targets.size()), coefficient(batch.targets.size());
  for (size_t i = 0; i < coefficient.size(); ++i) coefficient[i] = 0.1f * (static_cast<float>(i % 7) - 2.5f);
  decoder.ForwardPacked(weights, batch, 0.8f, true, log_prob.data(), nullptr);
  decoder.Backward(weights, batch, 0.8f, coefficient.data(),
                   LowRankGradients{&*layout, adapters.data(), low_rank.data()});
  for (const LowRankAdapter& adapter : layout->adapters) {
    const ParamSpec& spec = weights.layout.params[adapter.param];
    for (int64_t row = 0; row < adapter.rows; ++row) {
      for (int64_t r = 0; r < layout->rank; ++r) {
        double expected = 0;  // d B = scale d W A^T
        for (int64_t c = 0; c < spec.cols; ++c) {
          expected += double{full[spec.offset + (adapter.row_begin + row) * spec.cols + c]} *
                      adapters[adapter.a_offset + r * spec.cols + c];
        }
        ASSERT_NEAR(low_rank[adapter.b_offset + row * layout->rank + r], expected * layout->scale, 1e-5) << spec.name;
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
