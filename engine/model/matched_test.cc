// mu == pi: under matched numerics the rollout's log-probs (paged, chunked, batched in any way) and the learner's
// (packed in any way) are the same bits.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/model/test_util.h"

namespace lockstep {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;
using LogProbs = std::vector<std::vector<float>>;  // [sequence][position]: of the token at position + 1

constexpr float kTemperature = 0.7f;

// 64 sequences: most short, some across a page, some across one and two attention blocks.
Sequences MakeSequences(const ModelConfig& config) {
  Sequences sequences;
  for (int i = 0; i < 64; ++i) {
    const int length = i == 5 ? 300 : i == 20 ? 129 : i == 41 ? 128 : 2 + testing::Hash32(900, i) % 45;
    std::vector<int32_t>& tokens = sequences.emplace_back(length);
    for (int j = 0; j < length; ++j) tokens[j] = testing::Hash32(1000 + i, j) % config.vocab_size;
  }
  return sequences;
}

void ExpectEqualBits(const LogProbs& actual, const LogProbs& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  int64_t different = 0, total = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(actual[i].size(), expected[i].size()) << "sequence " << i;
    for (size_t j = 0; j < expected[i].size(); ++j) {
      ASSERT_TRUE(std::isfinite(expected[i][j]));
      different += std::bit_cast<uint32_t>(actual[i][j]) != std::bit_cast<uint32_t>(expected[i][j]);
      ++total;
    }
  }
  EXPECT_EQ(different, 0) << "of " << total;
}

// The learner's side: the given sequences packed in the given order, `per_call` sequences a call.
LogProbs Packed(Decoder& decoder, const Weights& weights, const Sequences& sequences, const std::vector<int>& order,
                size_t per_call, bool recompute) {
  LogProbs result(sequences.size());
  for (size_t begin = 0; begin < order.size(); begin += per_call) {
    const size_t end = std::min(order.size(), begin + per_call);
    PackedBatch batch;
    batch.cu_seqlens.push_back(0);
    for (size_t i = begin; i < end; ++i) {
      const std::vector<int32_t>& tokens = sequences[order[i]];
      for (size_t j = 0; j < tokens.size(); ++j) {
        if (j + 1 < tokens.size()) {
          batch.loss_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
          batch.targets.push_back(tokens[j + 1]);
        }
        batch.tokens.push_back(tokens[j]);
      }
      batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
    std::vector<float> log_prob(batch.targets.size()), entropy(batch.targets.size());
    decoder.ForwardPacked(weights, batch, kTemperature, recompute, log_prob.data(), entropy.data());
    const float* at = log_prob.data();
    for (size_t i = begin; i < end; ++i) {
      const size_t count = sequences[order[i]].size() - 1;
      result[order[i]].assign(at, at + count);
      at += count;
    }
  }
  return result;
}

// The rollout's side. Each step takes, of the first `batch` unfinished sequences, `chunk(sequence, position)` tokens.
LogProbs Paged(Decoder& decoder, Ops& ops, const Weights& weights, const Sequences& sequences, size_t batch,
               const std::function<int(int, int)>& chunk) {
  const ModelConfig& config = weights.config;
  int num_pages = 0;
  for (const auto& tokens : sequences) num_pages += (static_cast<int>(tokens.size()) + kPageTokens - 1) / kPageTokens;
  KvStorage cache(config, weights.dtype, num_pages);
  // Pages lie all over the storage: (a * i) mod n visits each once when a is a prime larger than n.
  std::vector<std::vector<int32_t>> pages(sequences.size());
  int next_page = 0;
  LogProbs result(sequences.size());
  std::vector<size_t> done(sequences.size(), 0);
  while (true) {
    PagedBatch step;
    std::vector<int> members;
    for (size_t i = 0; i < sequences.size() && members.size() < batch; ++i) {
      if (done[i] < sequences[i].size()) members.push_back(static_cast<int>(i));
    }
    if (members.empty()) return result;
    for (int i : members) {
      const int begin = static_cast<int>(done[i]), size = static_cast<int>(sequences[i].size());
      const int end = std::min(size, begin + std::max(1, chunk(i, begin)));
      while (static_cast<int64_t>(pages[i].size()) * kPageTokens < end) {
        pages[i].push_back(static_cast<int32_t>(int64_t{10007} * next_page++ % num_pages));
      }
      step.sequences.push_back({.row_begin = static_cast<int64_t>(step.tokens.size()),
                                .row_count = end - begin,
                                .position_begin = begin,
                                .pages = pages[i]});
      for (int j = begin; j < end; ++j) {
        step.output_rows.push_back(static_cast<int32_t>(step.tokens.size()));
        step.tokens.push_back(sequences[i][j]);
        step.positions.push_back(j);
      }
    }
    const int64_t rows = static_cast<int64_t>(step.output_rows.size());
    Buffer hidden_buffer(rows * config.hidden_size * DTypeSize(weights.dtype));
    const Tensor hidden(hidden_buffer.data(), weights.dtype, rows, config.hidden_size);
    std::vector<float> logits(rows * config.vocab_size);
    decoder.ForwardPaged(weights, step, cache, hidden);
    decoder.Logits(weights, hidden, Tensor(logits.data(), DType::kF32, rows, config.vocab_size));
    const float* row = logits.data();
    for (size_t m = 0; m < members.size(); ++m) {
      const int i = members[m];
      for (int64_t j = 0; j < step.sequences[m].row_count; ++j, row += config.vocab_size) {
        if (++done[i] == sequences[i].size()) continue;
        const float lse = ops.LogSumExp(row, config.vocab_size, kTemperature);
        result[i].push_back(row[sequences[i][done[i]]] * (1.0f / kTemperature) - lse);
      }
    }
  }
}

// kWideGroups: 7 query heads on one key head, wider than the model, untied, no bias, a vocabulary of two chunks.
// kExperts: 60 experts with q/k norms and Llama 3.1's rotary frequencies, a layer without experts between.
// kDeepSums: sums longer than a GEMM's k block of 512, outputs wider than its column block of 256.
enum class Shape { kSmall, kWideGroups, kExperts, kDeepSums };

ModelConfig ShapeConfig(Shape shape) {
  ModelConfig config = testing::SmallConfig();
  if (shape == Shape::kWideGroups) {
    config.num_heads = 7;
    config.num_kv_heads = 1;
    config.head_dim = 12;
    config.vocab_size = 4999;
    config.qkv_bias = false;
    config.tie_word_embeddings = false;
  }
  if (shape == Shape::kExperts) {
    config.architecture = "Qwen3MoeForCausalLM";
    config.qkv_bias = false;
    config.qk_norm = true;
    config.rope_scaling = {true, 8.0f, 1.0f, 4.0f, 64};
    config.num_experts = 60;
    config.experts_per_token = 6;
    config.moe_intermediate_size = 20;
    config.norm_topk_prob = true;
    config.mlp_only_layers = {1};
  }
  if (shape == Shape::kDeepSums) {
    config.num_layers = 1;
    config.hidden_size = 560;
    config.num_heads = 10;
    config.num_kv_heads = 2;
    config.head_dim = 56;
    config.intermediate_size = 1100;
  }
  return config;
}

class Matched : public ::testing::TestWithParam<std::tuple<DType, Shape>> {};

TEST_P(Matched, MatchedNumericsGiveEqualBits) {
  const auto [dtype, shape] = GetParam();
  const ModelConfig config = ShapeConfig(shape);
  const Weights weights = testing::TestWeights(config, dtype);
  Sequences sequences = MakeSequences(config);
  // 250 times the work of the small shape: as many sequences as fill a GEMM's row block (1,026), and fewer variants.
  const bool few_variants = shape == Shape::kDeepSums;
  if (few_variants) sequences.resize(36);
  std::vector<int> forward(sequences.size());
  std::iota(forward.begin(), forward.end(), 0);
  const std::vector<int> backward(forward.rbegin(), forward.rend());
  LogProbs expected;
  for (int threads : {1, 2}) {
    SCOPED_TRACE(threads);
    const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, threads);
    Decoder decoder(config, dtype, ops.get());
    if (expected.empty()) expected = Packed(decoder, weights, sequences, forward, 1, false);
    for (size_t per_call : few_variants ? std::vector<size_t>{64} : std::vector<size_t>{1, 3, 64}) {
      SCOPED_TRACE("packed by " + std::to_string(per_call));
      ExpectEqualBits(Packed(decoder, weights, sequences, forward, per_call, true), expected);
      ExpectEqualBits(Packed(decoder, weights, sequences, backward, per_call, false), expected);
    }
    for (size_t batch : {1, 64}) {
      SCOPED_TRACE("whole prompts, batch " + std::to_string(batch));
      ExpectEqualBits(Paged(decoder, *ops, weights, sequences, batch, [](int, int) { return 1000; }), expected);
    }
    for (int size : few_variants ? std::vector<int>{17} : std::vector<int>{3, 16, 17, 128}) {
      SCOPED_TRACE("chunks of " + std::to_string(size));
      ExpectEqualBits(Paged(decoder, *ops, weights, sequences, 5, [&](int, int) { return size; }), expected);
    }
    const std::vector<size_t> batches = threads == 1 && !few_variants
                                            ? std::vector<size_t>{1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 31, 32, 64}
                                            : std::vector<size_t>{1, 7, 64};
    for (size_t batch : batches) {
      SCOPED_TRACE("decode, batch " + std::to_string(batch));
      ExpectEqualBits(Paged(decoder, *ops, weights, sequences, batch, [](int, int) { return 1; }), expected);
    }
    SCOPED_TRACE("prefill chunks and decode rows in one step");
    const auto mixed = [](int i, int position) {
      return i % 3 == 0 ? 1 : static_cast<int>(testing::Hash32(i, position) % 40);
    };
    ExpectEqualBits(Paged(decoder, *ops, weights, sequences, 9, mixed), expected);
  }
}

TEST_P(Matched, RecomputedActivationsGiveTheSameGradientBits) {
  const auto [dtype, shape] = GetParam();
  const ModelConfig config = ShapeConfig(shape);
  const Weights weights = testing::TestWeights(config, dtype);
  const PackedBatch batch = testing::TestBatch(config, {40, 3, 150, 1, 16}, 4);
  std::vector<float> coefficient(batch.targets.size()), log_prob(batch.targets.size());
  for (size_t i = 0; i < coefficient.size(); ++i) coefficient[i] = testing::Hash32(7, i) % 256 / 128.0f - 1;
  for (Numerics numerics : {Numerics::kMatched, Numerics::kNative}) {
    const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 2);
    Decoder decoder(config, dtype, ops.get());
    std::vector<std::vector<float>> gradients;
    for (bool recompute : {false, true, false}) {
      std::vector<float>& arena = gradients.emplace_back(weights.layout.total_size);
      decoder.ForwardPacked(weights, batch, 1.0f, recompute, log_prob.data(), nullptr);
      decoder.Backward(weights, batch, 1.0f, coefficient.data(), arena.data());
    }
    double norm = 0;
    int64_t different = 0;
    for (size_t i = 0; i < gradients[0].size(); ++i) {
      norm += std::fabs(gradients[0][i]);
      different += std::bit_cast<uint32_t>(gradients[0][i]) != std::bit_cast<uint32_t>(gradients[1][i]);
      different += std::bit_cast<uint32_t>(gradients[0][i]) != std::bit_cast<uint32_t>(gradients[2][i]);
    }
    EXPECT_EQ(different, 0);
    EXPECT_TRUE(std::isfinite(norm));
    EXPECT_GT(norm, 0);
  }
}

// Native may differ from matched by the order of FP32 sums: in 16 bits that flips a rounding here and there, which is a
// storage rounding like any other (u = 2^-11, 2^-8); in FP32 a sum of K terms moves by about sqrt(K) 2^-24. The limit
// is the one of decoder_golden_test: 4 sqrt(9 L + 2) u max|log_prob|.
TEST_P(Matched, NativeNumericsStayClose) {
  const auto [dtype, shape] = GetParam();
  // The choice between two almost equal experts may fall either way.
  if (shape == Shape::kExperts) GTEST_SKIP();
  const ModelConfig config = ShapeConfig(shape);
  const Weights weights = testing::TestWeights(config, dtype);
  const Sequences sequences = MakeSequences(config);
  std::vector<int> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  const std::unique_ptr<Ops> matched = MakeCpuOps(Numerics::kMatched, 2), native = MakeCpuOps(Numerics::kNative, 2);
  Decoder matched_decoder(config, dtype, matched.get()), native_decoder(config, dtype, native.get());
  const LogProbs expected = Packed(matched_decoder, weights, sequences, order, 64, false);
  const double longest_sum = std::sqrt(static_cast<double>(std::max(config.intermediate_size, config.hidden_size)));
  const double unit =
      dtype == DType::kF32 ? std::ldexp(longest_sum, -24) : std::ldexp(1, dtype == DType::kF16 ? -11 : -8);
  double largest = 0;
  for (const std::vector<float>& row : expected) {
    for (float log_prob : row) largest = std::max<double>(largest, std::fabs(log_prob));
  }
  const double limit = 4 * std::sqrt(9.0 * config.num_layers + 2) * unit * largest;
  for (const LogProbs& actual : {Packed(native_decoder, weights, sequences, order, 64, false),
                                 Paged(native_decoder, *native, weights, sequences, 8, [](int, int) { return 1; })}) {
    for (size_t i = 0; i < expected.size(); ++i) {
      for (size_t j = 0; j < expected[i].size(); ++j) ASSERT_NEAR(actual[i][j], expected[i][j], limit);
    }
  }
}

std::string CaseName(const ::testing::TestParamInfo<Matched::ParamType>& info) {
  const char* const shapes[] = {"_small", "_wide_groups", "_experts", "_deep_sums"};
  return std::string(DTypeName(std::get<0>(info.param))) + shapes[static_cast<int>(std::get<1>(info.param))];
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Matched,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                                            ::testing::Values(Shape::kSmall, Shape::kWideGroups, Shape::kExperts,
                                                              Shape::kDeepSums)),
                         CaseName);

}  // namespace
}  // namespace lockstep
