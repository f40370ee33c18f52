// Every operation of the CPU backend against the reference, over storage types, numerics and odd shapes; and the same
// bits for 1, 2 and 3 threads.
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <tuple>

#include "engine/kernels/ops_test_util.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using Outputs = std::vector<Output>;
constexpr int64_t kTokens[] = {0, 1, 2, 5, 17, 33, 129, 300};

class OpsTest : public testing::TestWithParam<std::tuple<Numerics, DType>> {
 protected:
  OpsTest() : reference_(MakeReferenceOps()) {
    for (const int threads : {1, 2, 3}) cpu_.push_back(MakeCpuOps(std::get<0>(GetParam()), threads));
  }
  DType dtype() const { return std::get<1>(GetParam()); }

  // run is called once for every backend and returns what the operation wrote.
  void Check(const std::function<Outputs(Ops&)>& run, double roundings, const std::string& where, double terms = 0) {
    const Outputs truth = run(*reference_);
    const Outputs one = run(*cpu_[0]);
    ASSERT_EQ(one.size(), truth.size());
    for (size_t i = 0; i < truth.size(); ++i) {
      ExpectClose(one[i], truth[i], roundings, where + " output " + std::to_string(i), terms);
      if (HasFatalFailure()) return;
    }
    for (size_t threads = 2; threads <= cpu_.size(); ++threads) {
      const Outputs more = run(*cpu_[threads - 1]);
      for (size_t i = 0; i < one.size(); ++i) {
        if (one[i].values.empty()) continue;
        ASSERT_EQ(std::memcmp(more[i].values.data(), one[i].values.data(), one[i].values.size() * sizeof(float)), 0)
            << where << " output " << i << ": " << threads << " threads give other bits than one";
      }
    }
  }

  std::unique_ptr<Ops> reference_;
  std::vector<std::unique_ptr<Ops>> cpu_;
};

Output Take(const Matrix& m) { return {m.view.dtype, m.Read()}; }
double Largest(const std::vector<float>& values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}
std::string At(int64_t t, int64_t d) { return "T " + std::to_string(t) + " D " + std::to_string(d); }

TEST_P(OpsTest, EmbeddingCopiesAndItsBackwardSums) {
  for (const int64_t t : kTokens) {
    const int64_t vocabulary = 37, d = 42;
    const Matrix table(dtype(), vocabulary, d, 1), d_out(dtype(), t, d, 2);
    const PackedMatrix packed = Pack(table);
    const std::vector<int32_t> ids = RandomIds(t, vocabulary, 3);
    Check(
        [&](Ops& ops) -> Outputs {
          const Matrix out(dtype(), t, d), d_table(DType::kF32, vocabulary, d, 4);
          ops.Embedding(ids, packed, out.view);
          ops.EmbeddingBackward(ids, d_out.view, d_table.view);
          return {Take(out), Take(d_table)};
        },
        static_cast<double>(t), At(t, d));
  }
}

TEST_P(OpsTest, RmsNormAndItsBackward) {
  for (const int64_t t : kTokens) {
    for (const int64_t d : {1, 24, 80, 100}) {
      const Matrix x(dtype(), t, d, 1), weight(dtype(), 1, d, 2), d_out(dtype(), t, d, 3), residual(dtype(), t, d, 4);
      std::vector<float> rstd(static_cast<size_t>(t) + 1);
      const Matrix unused(dtype(), t, d);
      reference_->RmsNorm(x.view, weight.view, 1e-6f, unused.view, rstd.data());
      Check(
          [&](Ops& ops) -> Outputs {
            const Matrix out(dtype(), t, d), d_x(dtype(), t, d), d_plain(dtype(), t, d), d_weight(DType::kF32, 1, d, 5);
            std::vector<float> own_rstd(static_cast<size_t>(t));
            ops.RmsNorm(x.view, weight.view, 1e-6f, out.view, own_rstd.data());
            ops.RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), residual.view, d_x.view, d_weight.view);
            ops.RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), Tensor(), d_plain.view, d_weight.view);
            return {Take(out), {DType::kF32, own_rstd}, Take(d_x), Take(d_plain), Take(d_weight)};
          },
          static_cast<double>(2 * (t + d) + 16), At(t, d),
          Largest(rstd) * Largest(weight.Read()) * Largest(d_out.Read()));
    }
  }
}

TEST_P(OpsTest, RmsNormOfHeadsAndItsBackward) {
  for (const int64_t t : kTokens) {
    for (const int64_t e : {6, 16, 20}) {
      const int64_t heads = 3, d = heads * e;
      const Matrix x(dtype(), t, d, 1), weight(dtype(), 1, e, 2), d_out(dtype(), t, d, 3);
      std::vector<float> rstd(static_cast<size_t>(t * heads) + 1);
      const Matrix unused(dtype(), t, d);
      reference_->RmsNorm(x.view, weight.view, 1e-6f, unused.view, rstd.data());
      Check(
          [&](Ops& ops) -> Outputs {
            const Matrix out(dtype(), t, d), d_x(dtype(), t, d), d_weight(DType::kF32, 1, e, 5);
            std::vector<float> own_rstd(static_cast<size_t>(t * heads));
            ops.RmsNorm(x.view, weight.view, 1e-6f, out.view, own_rstd.data());
            ops.RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), Tensor(), d_x.view, d_weight.view);
            return {Take(out), {DType::kF32, own_rstd}, Take(d_x), Take(d_weight)};
          },
          static_cast<double>(2 * (heads * t + e) + 16), At(t, e),
          Largest(rstd) * Largest(weight.Read()) * Largest(d_out.Read()));
    }
  }
}

TEST_P(OpsTest, RmsNormMayWriteOverItsInputAndItsGradientOverTheResidual) {
  const int64_t t = 33, d = 100;
  const Matrix weight(dtype(), 1, d, 2), d_out(dtype(), t, d, 3), x(dtype(), t, d, 1);
  std::vector<float> rstd(t, 0.7f);
  Check(
      [&](Ops& ops) -> Outputs {
        const Matrix in_place(dtype(), t, d, 1), residual(dtype(), t, d, 4), d_weight(DType::kF32, 1, d);
        ops.RmsNorm(in_place.view, weight.view, 1e-6f, in_place.view, nullptr);
        ops.RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), residual.view, residual.view, d_weight.view);
        return {Take(in_place), Take(residual), Take(d_weight)};
      },
      2 * (t + d), At(t, d));
}

TEST_P(OpsTest, LinearAndItsBackwards) {
  for (const int64_t t : {0, 1, 2, 5, 17, 33, 129}) {
    const int64_t n = 70, k = 41;
    const Matrix x(dtype(), t, k, 1), w(dtype(), n, k, 2, 0.2f), bias(dtype(), 1, n, 3), residual(dtype(), t, n, 4),
        d_out(dtype(), t, n, 5);
    const PackedMatrix packed = Pack(w);
    Check(
        [&](Ops& ops) -> Outputs {
          const Matrix out(dtype(), t, n), wide(DType::kF32, t, n), d_x(dtype(), t, k, 6), d_w(DType::kF32, n, k, 7),
              d_bias(DType::kF32, 1, n, 8);
          ops.Linear(x.view, packed, bias.view, Tensor(), out.view);
          ops.Linear(x.view, packed, Tensor(), Tensor(), wide.view);
          ops.LinearBackwardInput(d_out.view, packed, d_x.view, true);
          ops.LinearBackwardWeight(d_out.view, x.view, d_w.view, d_bias.view);
          return {Take(out), Take(wide), Take(d_x), Take(d_w), Take(d_bias)};
        },
        static_cast<double>(2 * (t + n + k)), At(t, n));
    const Matrix out(dtype(), t, n);
    // The residual is added to a rounded sum: two storage steps.
    const Matrix truth(dtype(), t, n);
    reference_->Linear(x.view, packed, bias.view, residual.view, truth.view);
    cpu_[1]->Linear(x.view, packed, bias.view, residual.view, out.view);
    const double step = dtype() == DType::kF32 ? 0x1p-23 : dtype() == DType::kF16 ? 0x1p-10 : 0x1p-7;
    ExpectClose(Take(out), Take(truth), static_cast<double>(2 * (k + 2)) + step * 0x1p24, At(t, n));
  }
}

TEST_P(OpsTest, RopeForwardAndBackward) {
  for (const int64_t t : kTokens) {
    for (const int64_t e : {2, 10, 16, 24, 64, 80}) {
      const int64_t heads = 3;
      const Matrix table = RotaryTable(400, e);
      const std::vector<int32_t> positions = RandomIds(t, 400, 9);
      Check(
          [&](Ops& ops) -> Outputs {
            const Matrix x(dtype(), t, heads * e, 1), g(dtype(), t, heads * e, 2);
            ops.Rope(x.view, heads, e, positions, table.view, false);
            ops.Rope(g.view, heads, e, positions, table.view, true);
            return {Take(x), Take(g)};
          },
          4, At(t, e));
    }
  }
}

TEST_P(OpsTest, SwiGluAndItsBackward) {
  for (const int64_t t : kTokens) {
    for (const int64_t f : {1, 24, 77}) {
      const Matrix gate_up(dtype(), t, 2 * f, 1, 4.0f), d_out(dtype(), t, f, 2);
      Check(
          [&](Ops& ops) -> Outputs {
            const Matrix out(dtype(), t, f), d_gate_up(dtype(), t, 2 * f);
            ops.SwiGlu(gate_up.view, out.view);
            ops.SwiGluBackward(d_out.view, gate_up.view, d_gate_up.view);
            return {Take(out), Take(d_gate_up)};
          },
          16, At(t, f));
    }
  }
}

TEST_P(OpsTest, SwiGluOfLargeGatesHasItsLimits) {
  std::vector<float> values = {200.0f, -200.0f, 90.0f, -90.0f, 3.0f, 3.0f, 3.0f, 3.0f};
  Matrix gate_up(dtype(), 1, 8);
  gate_up.Write(values);
  const Matrix out(dtype(), 1, 4);
  cpu_[0]->SwiGlu(gate_up.view, out.view);
  EXPECT_EQ(out.Read(), (std::vector<float>{RoundTo(dtype(), 600.0f), 0.0f, RoundTo(dtype(), 270.0f), 0.0f}));
}

std::vector<float> AsFloats(const std::vector<int32_t>& values) { return {values.begin(), values.end()}; }

TEST_P(OpsTest, RouteTopKAndItsBackward) {
  for (const int64_t t : kTokens) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {4, 2}, {60, 4}, {128, 8}, {9, 9}}) {
      for (const bool normalize : {true, false}) {
        const Matrix logits(DType::kF32, t, n, 1, 2.0f), products(DType::kF32, 1, std::max<int64_t>(t * k, 1), 2);
        Check(
            [&](Ops& ops) -> Outputs {
              std::vector<int32_t> experts(static_cast<size_t>(t * k));
              std::vector<float> weights(experts.size());
              const Matrix d_logits(DType::kF32, t, n);
              ops.RouteTopK(logits.view, k, normalize, experts.data(), weights.data());
              ops.RouteTopKBackward(logits.view, experts, normalize, products.view.As<float>(), d_logits.view);
              return {{DType::kF32, AsFloats(experts)}, {DType::kF32, weights}, Take(d_logits)};
            },
            static_cast<double>(n + 32), At(t, n), 1.0);
      }
    }
  }
}

TEST_P(OpsTest, RouteTopKTakesTheLowerOfEqualExpertsAndSurvivesNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Matrix logits(DType::kF32, 4, 5);
  logits.Write({1, 3, 3, 3, 0, /**/ 2, 2, 2, 2, 2, /**/ nan, 1, nan, 5, 4, /**/ nan, nan, nan, nan, nan});
  for (const auto& ops : cpu_) {
    std::vector<int32_t> experts(12);
    std::vector<float> weights(12);
    ops->RouteTopK(logits.view, 3, true, experts.data(), weights.data());
    EXPECT_EQ(experts, (std::vector<int32_t>{1, 2, 3, 0, 1, 2, 1, 3, 4, 0, 1, 2}));
    for (int i = 0; i < 6; ++i) EXPECT_NEAR(weights[i], 1.0 / 3, 1e-6);
    for (int i = 6; i < 12; ++i) EXPECT_TRUE(std::isnan(weights[i])) << i;
  }
}

// k different experts a row, in ascending order, far from the largest in places.
std::vector<int32_t> GivenExperts(int64_t t, int64_t n, int64_t k) {
  std::vector<int32_t> experts;
  std::mt19937 random(7);
  for (int64_t row = 0; row < t; ++row) {
    std::vector<int32_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    std::sort(all.begin(), all.begin() + k);
    experts.insert(experts.end(), all.begin(), all.begin() + k);
  }
  return experts;
}

TEST_P(OpsTest, RouteGivenAndItsBackward) {
  for (const int64_t t : kTokens) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {4, 2}, {60, 4}, {128, 8}, {9, 9}}) {
      for (const bool normalize : {true, false}) {
        const Matrix logits(DType::kF32, t, n, 1, 2.0f), products(DType::kF32, 1, std::max<int64_t>(t * k, 1), 2);
        const std::vector<int32_t> experts = GivenExperts(t, n, k);
        Check(
            [&](Ops& ops) -> Outputs {
              std::vector<float> weights(experts.size());
              const Matrix d_logits(DType::kF32, t, n);
              ops.RouteGiven(logits.view, experts, normalize, weights.data());
              ops.RouteTopKBackward(logits.view, experts, normalize, products.view.As<float>(), d_logits.view);
              return {{DType::kF32, weights}, Take(d_logits)};
            },
            static_cast<double>(n + 32), At(t, n), 1.0);
      }
    }
  }
}

TEST_P(OpsTest, RouteGivenWithTheRoutersOwnChoiceGivesTheSameBits) {
  for (const bool normalize : {true, false}) {
    const Matrix logits(DType::kF32, 33, 60, 1, 2.0f);
    for (const auto& ops : cpu_) {
      std::vector<int32_t> experts(33 * 4);
      std::vector<float> weights(experts.size()), again(experts.size());
      ops->RouteTopK(logits.view, 4, normalize, experts.data(), weights.data());
      ops->RouteGiven(logits.view, experts, normalize, again.data());
      EXPECT_EQ(weights, again);
    }
  }
}

// exp(-200) is 0 in FP32: relative to the row's largest logit the two would have no weight between them.
TEST_P(OpsTest, RouteGivenSharesAmongExpertsThatAreFarBelowTheLargest) {
  Matrix logits(DType::kF32, 1, 4);
  logits.Write({200, 0, 1, -1});
  const std::vector<int32_t> experts = {1, 2};
  for (const auto& ops : cpu_) {
    std::vector<float> weights(2), products = {1, 0};
    const Matrix d_logits(DType::kF32, 1, 4);
    ops->RouteGiven(logits.view, experts, true, weights.data());
    EXPECT_NEAR(weights[0], 1 / (1 + std::exp(1.0)), 1e-6);
    EXPECT_NEAR(weights[1], 1 / (1 + std::exp(-1.0)), 1e-6);
    ops->RouteTopKBackward(logits.view, experts, true, products.data(), d_logits.view);
    EXPECT_NEAR(d_logits.Read()[1], 1 - weights[0], 1e-6);
    EXPECT_NEAR(d_logits.Read()[2], -weights[1], 1e-6);
  }
}

TEST_P(OpsTest, GatherCombineAndRowDots) {
  for (const int64_t t : kTokens) {
    for (const int64_t d : {1, 24, 77}) {
      const int64_t k = 3;
      const Matrix x(dtype(), t * k, d, 1), residual(dtype(), t, d, 2), other(dtype(), t * k, d, 3),
          scale(DType::kF32, 1, t * k + 1, 4);
      std::vector<int32_t> slots(static_cast<size_t>(t * k));
      std::iota(slots.begin(), slots.end(), 0);
      std::shuffle(slots.begin(), slots.end(), std::mt19937(5));
      const float* weights = scale.view.As<float>();
      Check(
          [&](Ops& ops) -> Outputs {
            const Matrix copy(dtype(), t * k, d), scaled(dtype(), t * k, d), sum(dtype(), t, d), plain(dtype(), t, d);
            std::vector<float> dots(static_cast<size_t>(t * k));
            ops.GatherRows(x.view, slots, nullptr, copy.view);
            ops.GatherRows(x.view, slots, weights, scaled.view);
            ops.CombineRows(x.view, slots, weights, Tensor(), sum.view);
            ops.CombineRows(x.view, slots, nullptr, Tensor(), plain.view);
            ops.RowDots(x.view, other.view, dots.data());
            return {Take(copy), Take(scaled), Take(sum), Take(plain), {DType::kF32, dots}};
          },
          static_cast<double>(2 * d + 16), At(t, d));
      // The residual is added to a rounded sum: two storage steps.
      const Matrix out(dtype(), t, d), truth(dtype(), t, d);
      reference_->CombineRows(x.view, slots, weights, residual.view, truth.view);
      cpu_[1]->CombineRows(x.view, slots, weights, residual.view, out.view);
      const double step = dtype() == DType::kF32 ? 0x1p-23 : dtype() == DType::kF16 ? 0x1p-10 : 0x1p-7;
      ExpectClose(Take(out), Take(truth), 16 + 2 * step * 0x1p24, At(t, d));
    }
  }
}

struct AttentionCase {
  std::vector<int32_t> lengths;
  int64_t kv_heads, group, e;
};
const AttentionCase kAttentionCases[] = {
    {{}, 1, 1, 16},      {{0}, 2, 2, 16},   {{1}, 2, 7, 64},   {{2, 0, 5}, 1, 2, 24}, {{17}, 2, 7, 80},
    {{33, 1}, 1, 7, 64}, {{129}, 1, 2, 80}, {{300}, 1, 1, 16}, {{64, 65}, 2, 1, 24},  {{20, 40, 3}, 2, 2, 10},
};

AttentionShape ShapeOf(const AttentionCase& c) {
  return {c.kv_heads * c.group, c.kv_heads, c.e, 1.0f / std::sqrt(static_cast<float>(c.e))};
}
std::string NameOf(const AttentionCase& c) {
  std::string name = "lengths";
  for (const int32_t length : c.lengths) name += " " + std::to_string(length);
  return name + " G " + std::to_string(c.kv_heads) + " H/G " + std::to_string(c.group) + " E " + std::to_string(c.e);
}

TEST_P(OpsTest, PackedAttentionAndItsBackward) {
  for (const AttentionCase& c : kAttentionCases) {
    const AttentionShape shape = ShapeOf(c);
    const std::vector<int32_t> cu = CuSeqlens(c.lengths);
    const int64_t t = cu.back(), wide = shape.num_heads * c.e, narrow = c.kv_heads * c.e;
    const Matrix q(dtype(), t, wide, 1), k(dtype(), t, narrow, 2), v(dtype(), t, narrow, 3), d_out(dtype(), t, wide, 4);
    const Matrix true_out(dtype(), t, wide), true_lse(DType::kF32, t, shape.num_heads);
    reference_->AttentionPacked(shape, q.view, k.view, v.view, cu, true_out.view, true_lse.view);
    const int32_t longest = c.lengths.empty() ? 0 : *std::max_element(c.lengths.begin(), c.lengths.end());
    Check(
        [&](Ops& ops) -> Outputs {
          const Matrix out(dtype(), t, wide), lse(DType::kF32, t, shape.num_heads), d_q(dtype(), t, wide),
              d_k(dtype(), t, narrow), d_v(dtype(), t, narrow);
          ops.AttentionPacked(shape, q.view, k.view, v.view, cu, out.view, lse.view);
          ops.AttentionPackedBackward(shape, d_out.view, q.view, k.view, v.view, true_out.view, true_lse.view, cu,
                                      d_q.view, d_k.view, d_v.view);
          return {Take(out), Take(lse), Take(d_q), Take(d_k), Take(d_v)};
        },
        // Standard normal inputs: dP is of size sqrt(E), so the terms (dP - D) scale k are of size 1.
        static_cast<double>(4 * (c.e + longest) + 64), NameOf(c), 1.0);
  }
}

TEST_P(OpsTest, PagedAttention) {
  for (const AttentionCase& c : kAttentionCases) {
    const AttentionShape shape = ShapeOf(c);
    const std::vector<int32_t> cu = CuSeqlens(c.lengths);
    const int64_t t = cu.back(), wide = shape.num_heads * c.e, narrow = c.kv_heads * c.e;
    const Matrix q(dtype(), t, wide, 1), k(dtype(), t, narrow, 2), v(dtype(), t, narrow, 3);
    const int32_t longest = c.lengths.empty() ? 0 : *std::max_element(c.lengths.begin(), c.lengths.end());
    Check(
        [&](Ops& ops) -> Outputs {
          PageCache pages(shape, dtype(), c.lengths, 5);
          std::vector<PagedSequence> sequences;
          for (size_t s = 0; s < c.lengths.size(); ++s) {
            sequences.push_back({cu[s], c.lengths[s], 0, pages.pages[s]});
          }
          const Matrix out(dtype(), t, wide);
          ops.WriteKv(shape, k.view, v.view, sequences, pages.cache);
          ops.AttentionPaged(shape, q.view, sequences, pages.cache, out.view);
          return {Take(out)};
        },
        static_cast<double>(4 * (c.e + longest) + 64), NameOf(c));
  }
}

TEST_P(OpsTest, LogProbEntropyAndGradient) {
  for (const int64_t t : {0, 1, 2, 5, 17}) {
    for (const int64_t vocabulary : {1, 50, 4111}) {
      if (t == 17 && vocabulary > 50) continue;  // the reference takes long
      const int64_t d = 26;
      const Matrix x(dtype(), t, d, 1), w(dtype(), vocabulary, d, 2, 0.5f);
      const PackedMatrix packed = Pack(w);
      const std::vector<int32_t> targets = RandomIds(t, vocabulary, 3);
      const Matrix coefficient(DType::kF32, 1, std::max<int64_t>(t, 1), 4);
      const float* c = coefficient.view.As<float>();
      Check(
          [&](Ops& ops) -> Outputs {
            std::vector<float> log_prob(t), entropy(t), lse(t);
            const Matrix d_x(dtype(), t, d), d_w(DType::kF32, vocabulary, d, 5);
            ops.LogProb(x.view, packed, targets, 0.7f, log_prob.data(), entropy.data(), lse.data());
            ops.LogProbBackward(x.view, packed, targets, 0.7f, c, lse.data(), d_x.view, d_w.view);
            // A vocabulary of one has log-prob 0: the error is relative to lse.
            Output shifted{DType::kF32, log_prob};
            for (size_t i = 0; i < log_prob.size(); ++i) shifted.values[i] += 10.0f;
            for (float& value : entropy) value += 10.0f;
            return {shifted, {DType::kF32, entropy}, {DType::kF32, lse}, Take(d_x), Take(d_w)};
          },
          static_cast<double>(4 * d + vocabulary / 4 + 64), At(t, vocabulary));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, OpsTest,
                         testing::Combine(testing::Values(Numerics::kMatched, Numerics::kNative),
                                          testing::Values(DType::kF32, DType::kF16, DType::kBF16)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == Numerics::kMatched ? "matched_" : "native_") +
                                  std::string(DTypeName(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace lockstep
