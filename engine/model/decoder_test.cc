// Memory and storage of the decoder.
#include "engine/model/decoder.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <cmath>

#include "engine/model/shapes.h"
#include "engine/model/test_util.h"

namespace lockstep {
namespace {

// Bytes that the C library has handed out and not got back, mapped blocks included. It does not see them where a
// sanitizer's allocator stands in its place.
size_t LiveBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST(KvStorage, CopyPageTakesTheFirstTokensOfEveryLayerAndLeavesTheRest) {
  const ModelConfig config = testing::SmallConfig();
  const int64_t heads = config.num_kv_heads, dim = config.head_dim, half = heads * dim * kPageTokens;
  KvStorage cache(config, DType::kF16, 3);
  EXPECT_EQ(KvStorage::BytesPerPage(config, DType::kF16), 2 * config.num_layers * half * 2);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const KvPages pages = cache.layer(layer);
    EXPECT_EQ(pages.num_pages, 3);
    for (int64_t i = 0; i < 3 * half; ++i) {
      static_cast<uint16_t*>(pages.keys)[i] = static_cast<uint16_t>(i);
      static_cast<uint16_t*>(pages.values)[i] = static_cast<uint16_t>(40000 + i);
    }
  }
  cache.CopyPage(0, 2, 5);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const KvPages pages = cache.layer(layer);
    for (int64_t i = 0; i < half; ++i) {
      const bool key_copied = i % kPageTokens < 5;          // [G][E][16]
      const bool value_copied = i / dim % kPageTokens < 5;  // [G][16][E]
      ASSERT_EQ(static_cast<uint16_t*>(pages.keys)[2 * half + i], key_copied ? i : 2 * half + i);
      ASSERT_EQ(static_cast<uint16_t*>(pages.values)[2 * half + i], 40000 + (value_copied ? i : 2 * half + i));
      ASSERT_EQ(static_cast<uint16_t*>(pages.keys)[half + i], half + i);
    }
  }
}

// The two kinds of layer, and q/k norms.
ModelConfig MixtureShape() {
  ModelConfig config = QuickstartShape();
  config.architecture = "Qwen3MoeForCausalLM";
  config.num_layers = 3;
  config.qkv_bias = false;
  config.qk_norm = true;
  config.num_experts = 24;
  config.experts_per_token = 4;
  config.moe_intermediate_size = 100;
  config.norm_topk_prob = true;
  config.mlp_only_layers = {1};
  return config;
}

class DecoderMemory : public ::testing::TestWithParam<bool> {};

TEST_P(DecoderMemory, HoldsNoMoreThanTrainingBytesAndAllocatesNothingInSteadyState) {
  const size_t probe_before = LiveBytes();
  const Buffer probe(1 << 20);
  if (LiveBytes() < probe_before + probe.bytes()) GTEST_SKIP() << "this build's allocator does not count for mallinfo2";
  ModelConfig config = GetParam() ? MixtureShape() : QuickstartShape();
  config.num_layers = 3;
  ASSERT_TRUE(config.Validate().ok());
  for (DType dtype : {DType::kF16, DType::kF32}) {
    for (bool recompute : {false, true}) {
      for (int rows : {64, 700}) {
        SCOPED_TRACE(std::string(DTypeName(dtype)) + (recompute ? " recompute " : " ") + std::to_string(rows));
        const Weights weights = testing::TestWeights(config, dtype);
        const PackedBatch batch = testing::TestBatch(config, {rows / 2, rows / 4, rows - rows / 2 - rows / 4}, 1);
        std::vector<float> log_prob(rows), coefficient(rows, 1.0f), gradients(weights.layout.total_size);
        std::vector<float> entropy(rows);
        const size_t before = LiveBytes();
        const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 2);
        Decoder decoder(config, dtype, ops.get());
        size_t held[2];
        for (size_t& bytes : held) {
          decoder.ForwardPacked(weights, batch, 1.0f, recompute, log_prob.data(), entropy.data());
          decoder.Backward(weights, batch, 1.0f, coefficient.data(), gradients.data());
          bytes = LiveBytes() - before;
        }
        EXPECT_LE(held[0], Decoder::TrainingBytes(config, dtype, rows, recompute));
        // A bound that is honest is also of use: not more than twice what is held, and a fixed part.
        EXPECT_LE(Decoder::TrainingBytes(config, dtype, rows, recompute), 2 * held[0] + (size_t{64} << 20));
        EXPECT_EQ(held[1], held[0]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DecoderMemory, ::testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "mixture" : "dense"); });

TEST(Decoder, RecomputeNeedsLessMemory) {
  const ModelConfig config = Qwen25Shape05B();
  const size_t kept = Decoder::TrainingBytes(config, DType::kF16, 2048, false);
  const size_t recomputed = Decoder::TrainingBytes(config, DType::kF16, 2048, true);
  EXPECT_LT(recomputed, kept / 2 + (size_t{1} << 30));
  EXPECT_LT(recomputed, kept);
}

// Gradients are added to the arena: two micro-batches give the sum of each alone.
TEST(Decoder, GradientsOfMicroBatchesAddUp) {
  const ModelConfig config = testing::SmallConfig();
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  const Weights weights = testing::TestWeights(config, DType::kF32);
  Decoder decoder(config, DType::kF32, ops.get());
  const auto accumulate = [&](uint64_t stream, std::vector<float>& arena) {
    const PackedBatch batch = testing::TestBatch(config, {9, 20}, stream);
    std::vector<float> log_prob(29), coefficient(29, 0.25f);
    decoder.ForwardPacked(weights, batch, 1.0f, false, log_prob.data(), nullptr);
    decoder.Backward(weights, batch, 1.0f, coefficient.data(), arena.data());
  };
  const int64_t size = weights.layout.total_size;
  std::vector<float> first(size), second(size), both(size);
  accumulate(1, first);
  accumulate(2, second);
  accumulate(1, both);
  accumulate(2, both);
  for (int64_t i = 0; i < size; ++i) ASSERT_NEAR(both[i], first[i] + second[i], 1e-4) << i;
}

// A coefficient that the dtype cannot hold must show in the gradients: the loss scaler looks there.
TEST(Decoder, OverflowOfAnActivationGradientReachesTheArenaAsNonFinite) {
  const ModelConfig config = testing::SmallConfig();
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  const Weights weights = testing::TestWeights(config, DType::kF16);
  Decoder decoder(config, DType::kF16, ops.get());
  const PackedBatch batch = testing::TestBatch(config, {9, 20}, 1);
  std::vector<float> log_prob(29), coefficient(29, 1e7f), gradients(weights.layout.total_size);
  decoder.ForwardPacked(weights, batch, 1.0f, false, log_prob.data(), nullptr);
  decoder.Backward(weights, batch, 1.0f, coefficient.data(), gradients.data());
  double sum = 0;
  for (float gradient : gradients) sum += gradient;
  EXPECT_FALSE(std::isfinite(sum));
  std::fill(gradients.begin(), gradients.end(), 0.0f);
  std::fill(coefficient.begin(), coefficient.end(), 1.0f);
  decoder.ForwardPacked(weights, batch, 1.0f, false, log_prob.data(), nullptr);
  decoder.Backward(weights, batch, 1.0f, coefficient.data(), gradients.data());
  sum = 0;
  for (float gradient : gradients) sum += gradient;
  EXPECT_TRUE(std::isfinite(sum));  // and leaves nothing behind
}

}  // namespace
}  // namespace lockstep
