// The whole model against PyTorch: forward and the gradient of every parameter.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "engine/model/test_util.h"

namespace lockstep {
namespace {

using testing::Golden;
using testing::LoadGolden;

const char* const kCases[] = {"qwen2_tied",    "qwen2_untied_gqa7", "qwen2_gqa1",     "llama_untied",
                              "llama_tied",    "llama3_rope",       "qwen3_tied",     "qwen3_untied_gqa7",
                              "moe_4_experts", "moe_60_experts",    "moe_sparse_step"};

// In 16 bits a router's choice between two almost equal experts may fall otherwise than in FP32: then a whole row is
// another one, and no rounding bound holds. moe_sparse_step takes all of its experts.
bool ChoosesExperts(const Golden& golden) { return golden.config.num_experts > golden.config.experts_per_token; }

struct Backend {
  const char* name;
  std::function<std::unique_ptr<Ops>()> make;
};

std::vector<Backend> Backends() {
  return {{"cpu matched, 1 thread", [] { return MakeCpuOps(Numerics::kMatched, 1); }},
          {"cpu matched, 2 threads", [] { return MakeCpuOps(Numerics::kMatched, 2); }},
          {"cpu native, 2 threads", [] { return MakeCpuOps(Numerics::kNative, 2); }}};
}

struct Result {
  std::vector<float> log_prob, entropy, gradients;
};

Result RunGolden(const Golden& golden, DType dtype, Ops* ops) {
  const Weights weights = testing::TestWeights(golden.config, dtype);
  Decoder decoder(golden.config, dtype, ops);
  const size_t rows = golden.batch.loss_rows.size();
  Result result{std::vector<float>(rows), std::vector<float>(rows), std::vector<float>(golden.gradients.size())};
  decoder.ForwardPacked(weights, golden.batch, golden.temperature, /*recompute=*/false, result.log_prob.data(),
                        result.entropy.data());
  decoder.Backward(weights, golden.batch, golden.temperature, golden.coefficient.data(), result.gradients.data());
  return result;
}

double MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= worst)) worst = difference;  // NaN is a difference too
  }
  return worst;
}

// |ours - golden| / |golden| of one parameter, Euclidean; of one that is zero (an expert that no token chose) |ours|.
double RelativeError(const float* ours, const float* golden, int64_t size) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < size; ++i) {
    difference += (static_cast<double>(ours[i]) - golden[i]) * (static_cast<double>(ours[i]) - golden[i]);
    norm += static_cast<double>(golden[i]) * golden[i];
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

TEST(DecoderGolden, Fp32AgreesWithPyTorchOnEveryLogProbAndParameterGradient) {
  for (const char* name : kCases) {
    const Golden golden = LoadGolden(name);
    ASSERT_TRUE(golden.config.Validate().ok());
    for (const Backend& backend : Backends()) {
      SCOPED_TRACE(std::string(name) + ", " + backend.name);
      const std::unique_ptr<Ops> ops = backend.make();
      const Result result = RunGolden(golden, DType::kF32, ops.get());
      for (size_t i = 0; i < golden.log_prob.size(); ++i) {
        ASSERT_NEAR(result.log_prob[i], golden.log_prob[i], 1e-4 * std::fabs(golden.log_prob[i]) + 1e-5) << i;
        ASSERT_NEAR(result.entropy[i], golden.entropy[i], 1e-4 * std::fabs(golden.entropy[i]) + 1e-5) << i;
      }
      for (const ParamSpec& spec : ParamLayout(golden.config).params) {
        const float* ours = result.gradients.data() + spec.offset;
        const float* theirs = golden.gradients.data() + spec.offset;
        EXPECT_LT(RelativeError(ours, theirs, spec.size()), 1e-4) << spec.name;
        double largest = 0;
        for (int64_t i = 0; i < spec.size(); ++i) largest = std::max<double>(largest, std::fabs(theirs[i]));
        for (int64_t i = 0; i < spec.size(); ++i) {
          ASSERT_NEAR(ours[i], theirs[i], 1e-3 * std::fabs(theirs[i]) + 1e-4 * largest) << spec.name << " " << i;
        }
      }
    }
  }
}

// Storage rounding perturbs each stored value by at most u relative (u = 2^-11 fp16, 2^-8 bf16). A layer stores 9
// tensors on the way of the residual stream; the perturbations are independent, so a log-prob moves by about
// sqrt(9 L + 2) u |logit|; the largest |log_prob| stands for the scale of the logits, and 4 standard deviations cover
// the few hundred tokens. A gradient goes through forward and backward, twice as many roundings, but is compared as the
// relative Euclidean error of a whole parameter, where 4 sqrt(2 (9 L + 2)) u is the same four deviations.
TEST(DecoderGolden, Fp16AndBf16StayWithinTheirRoundingOfPyTorch) {
  const std::pair<DType, double> dtypes[] = {{DType::kF16, std::ldexp(1, -11)}, {DType::kBF16, std::ldexp(1, -8)}};
  for (const char* name : kCases) {
    const Golden golden = LoadGolden(name);
    if (ChoosesExperts(golden)) continue;
    const double roundings = 9.0 * golden.config.num_layers + 2;
    double largest = 0;
    for (float log_prob : golden.log_prob) largest = std::max<double>(largest, std::fabs(log_prob));
    for (const Backend& backend : Backends()) {
      const std::unique_ptr<Ops> ops = backend.make();
      for (const auto& [dtype, unit] : dtypes) {
        SCOPED_TRACE(std::string(name) + ", " + backend.name + ", " + std::string(DTypeName(dtype)));
        const Result result = RunGolden(golden, dtype, ops.get());
        EXPECT_LT(MaxDifference(result.log_prob, golden.log_prob), 4 * std::sqrt(roundings) * largest * unit);
        EXPECT_LT(MaxDifference(result.entropy, golden.entropy), 4 * std::sqrt(roundings) * largest * unit);
        for (const ParamSpec& spec : ParamLayout(golden.config).params) {
          const double error =
              RelativeError(result.gradients.data() + spec.offset, golden.gradients.data() + spec.offset, spec.size());
          EXPECT_LT(error, 4 * std::sqrt(2 * roundings) * unit) << spec.name;
        }
      }
    }
  }
}

// bf16 has 3 bits less, so its error is about 8 times that of fp16. A wrong rounding point (say FP16 rounded twice, or
// a tensor kept in FP32) shows as another ratio.
TEST(DecoderGolden, Bf16ErrorIsAboutEightTimesFp16Error) {
  double squares[2] = {0, 0};
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  for (const char* name : kCases) {
    const Golden golden = LoadGolden(name);
    if (ChoosesExperts(golden)) continue;
    for (int i = 0; i < 2; ++i) {
      const Result result = RunGolden(golden, i == 0 ? DType::kF16 : DType::kBF16, ops.get());
      for (size_t j = 0; j < result.log_prob.size(); ++j) {
        squares[i] += std::pow(static_cast<double>(result.log_prob[j]) - golden.log_prob[j], 2);
      }
    }
  }
  const double ratio = std::sqrt(squares[1] / squares[0]);
  EXPECT_GT(ratio, 5);
  EXPECT_LT(ratio, 12);
}

// d(sum coefficient * log_prob) along a direction, by central differences, against <gradient, direction>.
TEST(DecoderGradient, MatchesFiniteDifferencesInFp32AlongEveryParameter) {
  ModelConfig config = testing::SmallConfig();
  config.num_layers = 2;
  config.tie_word_embeddings = false;
  config.qk_norm = true;
  const ParamLayout layout(config);
  const PackedBatch batch = testing::TestBatch(config, {7, 1, 12}, 1);
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  Decoder decoder(config, DType::kF32, ops.get());
  std::vector<float> arena = testing::TestArena(config), gradients(layout.total_size);
  std::vector<float> log_prob(batch.targets.size()), coefficient(batch.targets.size());
  for (size_t i = 0; i < coefficient.size(); ++i) coefficient[i] = testing::Hash32(77, i) % 17 / 8.0f - 1.0f;
  Weights weights(config, DType::kF32);
  const auto loss = [&](const std::vector<float>& at) {
    weights.SetFromArena(at.data());
    decoder.ForwardPacked(weights, batch, 0.9f, false, log_prob.data(), nullptr);
    double sum = 0;
    for (size_t i = 0; i < log_prob.size(); ++i) sum += static_cast<double>(coefficient[i]) * log_prob[i];
    return sum;
  };
  loss(arena);
  decoder.Backward(weights, batch, 0.9f, coefficient.data(), gradients.data());

  constexpr float kStep = 1.0f / 256;
  for (const ParamSpec& spec : layout.params) {
    std::vector<float> plus = arena, minus = arena;
    double expected = 0, gradient_norm = 0;
    for (int64_t i = spec.offset; i < spec.offset + spec.size(); ++i) {
      // Along the gradient's signs, so that the derivative is far from zero.
      const float direction = gradients[i] > 0 ? 1.0f : -1.0f;
      const float step = kStep / std::sqrt(static_cast<float>(spec.size()));
      plus[i] += step * direction;
      minus[i] -= step * direction;
      expected += static_cast<double>(gradients[i]) * (static_cast<double>(plus[i]) - minus[i]);
      gradient_norm += std::fabs(gradients[i]);
    }
    ASSERT_GT(gradient_norm, 0) << spec.name;
    EXPECT_NEAR(loss(plus) - loss(minus), expected, 5e-3 * std::fabs(expected) + 2e-5) << spec.name;
  }
}

}  // namespace
}  // namespace lockstep
