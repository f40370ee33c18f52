// Every backward against central differences of its own forward, in FP32: for the reference and for the CPU backend,
// matched and native. The scalar that is differentiated is a random weighted sum of the outputs, taken in double.
#include <functional>
#include <memory>

#include "engine/kernels/ops_test_util.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

constexpr DType kF32 = DType::kF32;

struct Backend {
  const char* name;
  std::unique_ptr<Ops> (*make)();
};
const Backend kBackends[] = {
    {"reference", [] { return MakeReferenceOps(); }},
    {"cpu_matched", [] { return MakeCpuOps(Numerics::kMatched, 2); }},
    {"cpu_native", [] { return MakeCpuOps(Numerics::kNative, 2); }},
};

class GradientTest : public testing::TestWithParam<size_t> {
 protected:
  GradientTest() : ops_(kBackends[GetParam()].make()) {}

  // gradient == d loss / d input for every element. The step balances FP32 rounding of the outputs (1e-7 / step)
  // against the third derivative (step^2 / 6); both are below 1e-4 of the largest gradient here, the bound is 2e-3.
  void ExpectGradient(const Matrix& input, const Matrix& gradient, const std::function<double()>& loss,
                      const char* name) {
    const std::vector<float> analytic = gradient.Read();
    double largest = 0;
    for (const float value : analytic) largest = std::max(largest, std::abs(static_cast<double>(value)));
    ASSERT_GT(largest, 1e-3) << name;
    for (int64_t r = 0; r < input.view.rows; ++r) {
      for (int64_t c = 0; c < input.view.cols; ++c) {
        float& element = static_cast<float*>(input.view.Row(r))[c];
        const float kept = element;
        element = kept + 0.0078125f;
        const double up = loss();
        element = kept - 0.0078125f;
        const double down = loss();
        element = kept;
        ASSERT_NEAR(analytic[static_cast<size_t>(r * input.view.cols + c)], (up - down) / 0.015625, 2e-3 * largest)
            << name << " at " << r << "," << c;
      }
    }
  }

  std::unique_ptr<Ops> ops_;
};

double WeightedSum(const Matrix& weights, const Matrix& values) {
  const std::vector<float> a = weights.Read(), b = values.Read();
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

TEST_P(GradientTest, Embedding) {
  const Matrix table(kF32, 7, 9, 1), d_out(kF32, 5, 9, 2), out(kF32, 5, 9), d_table(kF32, 7, 9);
  const std::vector<int32_t> ids = {3, 0, 3, 6, 3};
  ops_->EmbeddingBackward(ids, d_out.view, d_table.view);
  ExpectGradient(
      table, d_table,
      [&] {
        ops_->Embedding(ids, Pack(table), out.view);
        return WeightedSum(d_out, out);
      },
      "table");
}

// The layer with W + scale B A, by way of its two small products: y = scale (x A^T) B^T.
TEST_P(GradientTest, LowRank) {
  constexpr int64_t kTokens = 5, kInputs = 37, kOutputs = 19, kRank = 6;
  constexpr float kScale = 0.5f;
  const Matrix x(kF32, kTokens, kInputs, 1), d_out(kF32, kTokens, kOutputs, 2);
  std::vector<float> a = Matrix(kF32, kRank, kInputs, 3).Read(), b = Matrix(kF32, kOutputs, kRank, 4).Read();
  std::vector<float> d_a(a.size(), 1.0f), d_b(b.size(), 1.0f);  // added to
  const auto dense = [](std::vector<float>& values, int64_t rows, int64_t cols) {
    return Tensor(values.data(), kF32, rows, cols);
  };
  ops_->LowRankBackward(d_out.view, x.view, dense(a, kRank, kInputs), dense(b, kOutputs, kRank), kScale,
                        dense(d_a, kRank, kInputs), dense(d_b, kOutputs, kRank));
  const std::vector<float> xs = x.Read(), ds = d_out.Read();
  const auto loss = [&] {
    double sum = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t j = 0; j < kRank; ++j) {
        double down = 0, up = 0;
        for (int64_t c = 0; c < kInputs; ++c) down += double{xs[t * kInputs + c]} * double{a[j * kInputs + c]};
        for (int64_t n = 0; n < kOutputs; ++n) up += double{ds[t * kOutputs + n]} * double{b[n * kRank + j]};
        sum += double{kScale} * down * up;
      }
    }
    return sum;
  };
  const auto expect = [&](std::vector<float>& input, const std::vector<float>& gradient, const char* name) {
    for (size_t i = 0; i < input.size(); ++i) {
      const float kept = input[i];
      input[i] = kept + 0.0078125f;
      const double up = loss();
      input[i] = kept - 0.0078125f;
      const double down = loss();
      input[i] = kept;
      ASSERT_NEAR(double{gradient[i]} - 1, (up - down) / 0.015625, 1e-3) << name << " " << i;
    }
  };
  expect(a, d_a, "A");
  expect(b, d_b, "B");
}

TEST_P(GradientTest, RmsNorm) {
  const Matrix x(kF32, 4, 11, 1), weight(kF32, 1, 11, 2), d_out(kF32, 4, 11, 3), out(kF32, 4, 11);
  const Matrix d_x(kF32, 4, 11), d_weight(kF32, 1, 11);
  std::vector<float> rstd(4);
  ops_->RmsNorm(x.view, weight.view, 1e-6f, out.view, rstd.data());
  ops_->RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), Tensor(), d_x.view, d_weight.view);
  const auto loss = [&] {
    ops_->RmsNorm(x.view, weight.view, 1e-6f, out.view, nullptr);
    return WeightedSum(d_out, out);
  };
  ExpectGradient(x, d_x, loss, "x");
  ExpectGradient(weight, d_weight, loss, "weight");
}

TEST_P(GradientTest, RmsNormOfHeads) {
  const Matrix x(kF32, 4, 30, 1), weight(kF32, 1, 10, 2), d_out(kF32, 4, 30, 3), out(kF32, 4, 30);
  const Matrix d_x(kF32, 4, 30), d_weight(kF32, 1, 10);
  std::vector<float> rstd(12);
  ops_->RmsNorm(x.view, weight.view, 1e-6f, out.view, rstd.data());
  ops_->RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), Tensor(), d_x.view, d_weight.view);
  const auto loss = [&] {
    ops_->RmsNorm(x.view, weight.view, 1e-6f, out.view, nullptr);
    return WeightedSum(d_out, out);
  };
  ExpectGradient(x, d_x, loss, "x");
  ExpectGradient(weight, d_weight, loss, "weight");
}

TEST_P(GradientTest, Linear) {
  const Matrix x(kF32, 5, 7, 1), w(kF32, 19, 7, 2), bias(kF32, 1, 19, 3), d_out(kF32, 5, 19, 4), out(kF32, 5, 19);
  const Matrix d_x(kF32, 5, 7), d_w(kF32, 19, 7), d_bias(kF32, 1, 19);
  ops_->LinearBackwardInput(d_out.view, Pack(w), d_x.view, false);
  ops_->LinearBackwardWeight(d_out.view, x.view, d_w.view, d_bias.view);
  const auto loss = [&] {
    ops_->Linear(x.view, Pack(w), bias.view, Tensor(), out.view);
    return WeightedSum(d_out, out);
  };
  ExpectGradient(x, d_x, loss, "x");
  ExpectGradient(w, d_w, loss, "w");
  ExpectGradient(bias, d_bias, loss, "bias");
}

TEST_P(GradientTest, Rope) {
  const int64_t t = 5, heads = 2, e = 10;
  const Matrix table = RotaryTable(50, e);
  const std::vector<int32_t> positions = {0, 7, 49, 3, 3};
  const Matrix x(kF32, t, heads * e, 1), d_out(kF32, t, heads * e, 2);
  Matrix d_x(kF32, t, heads * e), out(kF32, t, heads * e);
  d_x.Write(d_out.Read());
  ops_->Rope(d_x.view, heads, e, positions, table.view, true);
  ExpectGradient(
      x, d_x,
      [&] {
        out.Write(x.Read());
        ops_->Rope(out.view, heads, e, positions, table.view, false);
        return WeightedSum(d_out, out);
      },
      "x");
}

TEST_P(GradientTest, SwiGlu) {
  const Matrix gate_up(kF32, 3, 22, 1, 2.0f), d_out(kF32, 3, 11, 2), out(kF32, 3, 11), d_gate_up(kF32, 3, 22);
  ops_->SwiGluBackward(d_out.view, gate_up.view, d_gate_up.view);
  ExpectGradient(
      gate_up, d_gate_up,
      [&] {
        ops_->SwiGlu(gate_up.view, out.view);
        return WeightedSum(d_out, out);
      },
      "gate_up");
}

TEST_P(GradientTest, RouteTopK) {
  const int64_t t = 4, n = 7, k = 3;
  for (const bool normalize : {true, false}) {
    const Matrix logits(kF32, t, n, 1), d_weights(kF32, t, k, 2), d_logits(kF32, t, n);
    const std::vector<float> d = d_weights.Read();
    std::vector<int32_t> experts(t * k), at_start;
    std::vector<float> weights(t * k), products(t * k);
    ops_->RouteTopK(logits.view, k, normalize, experts.data(), weights.data());
    at_start = experts;
    for (int64_t i = 0; i < t * k; ++i) products[i] = weights[i] * d[i];
    ops_->RouteTopKBackward(logits.view, experts, normalize, products.data(), d_logits.view);
    ExpectGradient(
        logits, d_logits,
        [&] {
          ops_->RouteTopK(logits.view, k, normalize, experts.data(), weights.data());
          EXPECT_EQ(experts, at_start);  // the choice itself has no gradient
          double sum = 0;
          for (int64_t i = 0; i < t * k; ++i) sum += static_cast<double>(weights[i]) * static_cast<double>(d[i]);
          return sum;
        },
        normalize ? "normalized" : "plain");
  }
}

TEST_P(GradientTest, RouteGiven) {
  const int64_t t = 3, n = 7, k = 3;
  const std::vector<int32_t> experts = {0, 1, 2, 1, 4, 6, 2, 3, 5};
  for (const bool normalize : {true, false}) {
    const Matrix logits(kF32, t, n, 1), d_weights(kF32, t, k, 2), d_logits(kF32, t, n);
    const std::vector<float> d = d_weights.Read();
    std::vector<float> weights(t * k), products(t * k);
    ops_->RouteGiven(logits.view, experts, normalize, weights.data());
    for (int64_t i = 0; i < t * k; ++i) products[i] = weights[i] * d[i];
    ops_->RouteTopKBackward(logits.view, experts, normalize, products.data(), d_logits.view);
    ExpectGradient(
        logits, d_logits,
        [&] {
          ops_->RouteGiven(logits.view, experts, normalize, weights.data());
          double sum = 0;
          for (int64_t i = 0; i < t * k; ++i) sum += static_cast<double>(weights[i]) * static_cast<double>(d[i]);
          return sum;
        },
        normalize ? "normalized" : "plain");
  }
}

TEST_P(GradientTest, CombineRows) {
  const int64_t t = 3, k = 2, d = 11;
  const std::vector<int32_t> slots = {4, 0, 2, 5, 1, 3}, slot_tokens = {0, 2, 1, 2, 0, 1};
  const Matrix x(kF32, t * k, d, 1), weights(kF32, 1, t * k, 2), d_out(kF32, t, d, 3), out(kF32, t, d);
  const float* w = weights.view.As<float>();
  std::vector<float> slot_weights(t * k), dots(t * k);
  for (int64_t i = 0; i < t * k; ++i) slot_weights[slots[i]] = w[i];
  const Matrix d_x(kF32, t * k, d), gathered(kF32, t * k, d), sum(kF32, t, d);
  Matrix d_weights(kF32, 1, t * k);
  ops_->GatherRows(d_out.view, slot_tokens, slot_weights.data(), d_x.view);
  ops_->GatherRows(d_out.view, slot_tokens, nullptr, gathered.view);
  ops_->RowDots(gathered.view, x.view, dots.data());
  std::vector<float> by_pair(t * k);
  for (int64_t i = 0; i < t * k; ++i) by_pair[i] = dots[slots[i]];
  d_weights.Write(by_pair);
  const auto loss = [&] {
    ops_->CombineRows(x.view, slots, w, Tensor(), out.view);
    return WeightedSum(d_out, out);
  };
  ExpectGradient(x, d_x, loss, "x");
  ExpectGradient(weights, d_weights, loss, "weights");
}

TEST_P(GradientTest, PackedAttention) {
  const AttentionShape shape{6, 2, 10, 0.3f};
  const std::vector<int32_t> cu = {0, 9, 9, 10, 27};
  const Matrix q(kF32, 27, 60, 1), k(kF32, 27, 20, 2), v(kF32, 27, 20, 3), d_out(kF32, 27, 60, 4);
  const Matrix out(kF32, 27, 60), lse(kF32, 27, 6), d_q(kF32, 27, 60), d_k(kF32, 27, 20), d_v(kF32, 27, 20);
  ops_->AttentionPacked(shape, q.view, k.view, v.view, cu, out.view, lse.view);
  ops_->AttentionPackedBackward(shape, d_out.view, q.view, k.view, v.view, out.view, lse.view, cu, d_q.view, d_k.view,
                                d_v.view);
  const auto loss = [&] {
    ops_->AttentionPacked(shape, q.view, k.view, v.view, cu, out.view, lse.view);
    return WeightedSum(d_out, out);
  };
  ExpectGradient(q, d_q, loss, "q");
  ExpectGradient(k, d_k, loss, "k");
  ExpectGradient(v, d_v, loss, "v");
}

TEST_P(GradientTest, LogProb) {
  const int64_t t = 5, d = 7, vocabulary = 35;
  const Matrix x(kF32, t, d, 1), w(kF32, vocabulary, d, 2), coefficient(kF32, 1, t, 4), d_x(kF32, t, d),
      d_w(kF32, vocabulary, d);
  const std::vector<int32_t> targets = {0, 34, 16, 15, 16};
  const float* c = static_cast<const float*>(coefficient.view.data);
  std::vector<float> log_prob(t), lse(t);
  ops_->LogProb(x.view, Pack(w), targets, 0.7f, log_prob.data(), nullptr, lse.data());
  ops_->LogProbBackward(x.view, Pack(w), targets, 0.7f, c, lse.data(), d_x.view, d_w.view);
  const auto loss = [&] {
    ops_->LogProb(x.view, Pack(w), targets, 0.7f, log_prob.data(), nullptr, nullptr);
    double sum = 0;
    for (int64_t r = 0; r < t; ++r) sum += static_cast<double>(c[r]) * static_cast<double>(log_prob[r]);
    return sum;
  };
  ExpectGradient(x, d_x, loss, "x");
  ExpectGradient(w, d_w, loss, "w");
}

INSTANTIATE_TEST_SUITE_P(Backends, GradientTest, testing::Range<size_t>(0, 3),
                         [](const auto& info) { return std::string(kBackends[info.param].name); });

}  // namespace
}  // namespace lockstep
