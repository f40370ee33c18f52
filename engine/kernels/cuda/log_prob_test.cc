// Log-sum-exp, log-prob, entropy and the gradient of logits, compiled for the CPU, against the CPU's matched
// operations: equal bits. With W the identity the CPU's logits are its inputs.
#include <cmath>

#include "engine/kernels/contract.h"
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

Matrix Identity(int64_t n) {
  Matrix w(DType::kF32, n, n);
  for (int64_t i = 0; i < n; ++i) static_cast<float*>(w.view.Row(i))[i] = 1;
  return w;
}

struct Results {
  std::vector<float> log_prob, entropy, lse;
  explicit Results(int64_t rows)
      : log_prob(static_cast<size_t>(rows)), entropy(log_prob.size()), lse(log_prob.size()) {}
};

// By chunks of `chunk` columns.
Results OnDevice(const Tensor& logits, const std::vector<int32_t>& targets, float temperature, int64_t chunk) {
  Results results(logits.rows);
  std::vector<LogitState> states(static_cast<size_t>(logits.rows), LogitState{NAN, NAN, NAN, NAN});
  const std::vector<float> inverse(states.size(), 1.0f / temperature);
  std::vector<float> scratch(static_cast<size_t>(LogProbAccumulateScratch(logits.rows, std::min(chunk, logits.cols))));
  for (int64_t v = 0; v < logits.cols; v += chunk) {
    EXPECT_EQ(LogProbAccumulate(logits.Cols(v, std::min(chunk, logits.cols - v)), v, targets.data(), inverse.data(),
                                states.data(), scratch.data(), {}),
              cudaSuccess);
  }
  EXPECT_EQ(LogProbFinish(states.data(), logits.rows, results.log_prob.data(), results.entropy.data(),
                          results.lse.data(), {}),
            cudaSuccess);
  return results;
}

TEST(LogProbTest, HasTheBitsOfTheCpuWhateverTheCallersChunks) {
  const auto cpu = MakeCpuOps(Numerics::kMatched, 1);
  for (const int64_t vocabulary : {1, 7, 300, 4096, 5003}) {
    const PackedMatrix identity = Pack(Identity(vocabulary));
    for (const int64_t rows : {1, 3}) {
      for (const float temperature : {1.0f, 0.7f}) {
        const Matrix logits(DType::kF32, rows, vocabulary, 1, 4);
        const std::vector<int32_t> targets = RandomIds(rows, vocabulary, 2);
        Results expected(rows);
        cpu->LogProb(logits.view, identity, targets, temperature, expected.log_prob.data(), expected.entropy.data(),
                     expected.lse.data());
        InEveryOrder([&] {
          for (const int64_t chunk : {kVocabularyChunk, 2 * kVocabularyChunk}) {
            const Results got = OnDevice(logits.view, targets, temperature, chunk);
            ExpectSameFloats(got.lse, expected.lse, "lse");
            ExpectSameFloats(got.log_prob, expected.log_prob, "log-prob");
            ExpectSameFloats(got.entropy, expected.entropy, "entropy");
          }
        });
      }
    }
  }
}

TEST(LogProbTest, ALargeVocabularyHasTheBitsOfTheCpu) {
  const auto cpu = MakeCpuOps(Numerics::kMatched, 1);
  const int64_t vocabulary = 66 * kVocabularyChunk + 11;  // more chunks than one round of the kernel takes
  Matrix logits(DType::kF32, 1, vocabulary, 1, 3);
  float* row = logits.view.As<float>();
  row[5 * kVocabularyChunk] = 30;  // the maximum rises in the middle and at the end
  row[65 * kVocabularyChunk + 3] = 60;
  const float expected = cpu->LogSumExp(row, vocabulary, 0.9f);
  const Results got = OnDevice(logits.view, {7}, 0.9f, vocabulary);
  ExpectSameFloats(got.lse, {expected}, "lse");
  ExpectSameFloats(OnDevice(logits.view, {7}, 0.9f, 8 * kVocabularyChunk).lse, {expected}, "lse by parts");
}

TEST(LogProbTest, TheGradientHasTheBitsOfTheCpu) {
  const auto cpu = MakeCpuOps(Numerics::kMatched, 1);
  for (const int64_t vocabulary : {1, 7, 300, 4096, 5003}) {
    const PackedMatrix identity = Pack(Identity(vocabulary));
    const int64_t rows = 3;
    const float temperature = 0.8f;
    const Matrix logits(DType::kF32, rows, vocabulary, 1, 4);
    const std::vector<int32_t> targets = RandomIds(rows, vocabulary, 2);
    const std::vector<float> coefficient = {1.5f, -0.25f, 0.0f}, inverse(rows, 1.0f / temperature);
    const Results forward = OnDevice(logits.view, targets, temperature, vocabulary);
    const Matrix expected(DType::kF32, rows, vocabulary);
    cpu->LogProbBackward(logits.view, identity, targets, temperature, coefficient.data(), forward.lse.data(),
                         expected.view, {});
    const Matrix got = Copy(logits);
    for (int64_t v = 0; v < vocabulary; v += kVocabularyChunk) {
      const Tensor part = got.view.Cols(v, std::min(kVocabularyChunk, vocabulary - v));
      ASSERT_EQ(LogProbGradient(part, v, targets.data(), inverse.data(), coefficient.data(), forward.lse.data(), {}),
                cudaSuccess);
    }
    EXPECT_EQ(got.Read(), expected.Read()) << vocabulary;  // by value: the CPU's products turn -0 into 0
  }
}

}  // namespace
}  // namespace lockstep::cuda
