#include "learner/batch_shape.h"

#include <gtest/gtest.h>

#include "engine/model/test_util.h"

namespace lockstep {
namespace {

std::vector<BatchShapeRow> Measure(DType dtype, Numerics numerics) {
  const ModelConfig config = testing::SmallConfig();
  Weights weights(config, dtype);
  const ParamLayout layout(config);
  std::vector<float> arena(layout.total_size);
  InitializeArena(config, 3, 0.2f, arena.data());
  weights.SetFromArena(arena.data());
  return MeasureBatchShapes(weights, numerics, 2, RandomSequences(config, 12, 40, 5));
}

TEST(BatchShapeTest, MatchedNumericsGiveTheSameBitsInEveryShape) {
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const BatchShapeRow& row : Measure(dtype, Numerics::kMatched)) {
      EXPECT_GT(row.tokens, 100);
      EXPECT_EQ(row.outside, 0.0) << row.shape;
      EXPECT_EQ(row.different, 0.0) << row.shape;
      EXPECT_EQ(row.max_abs_log_ratio, 0.0) << row.shape;
    }
  }
}

// Native kernels may sum in other orders; the figures say how much, and a coarser type says more.
TEST(BatchShapeTest, NativeNumericsAreMeasuredTokenByToken) {
  const auto fp16 = Measure(DType::kF16, Numerics::kNative), bf16 = Measure(DType::kBF16, Numerics::kNative);
  ASSERT_EQ(fp16.size(), bf16.size());
  double fp16_sum = 0, bf16_sum = 0;
  for (size_t i = 0; i < fp16.size(); ++i) {
    EXPECT_EQ(fp16[i].tokens, bf16[i].tokens);
    EXPECT_LE(fp16[i].mean_abs_log_ratio, fp16[i].max_abs_log_ratio);
    EXPECT_EQ(fp16[i].different == 0, fp16[i].max_abs_log_ratio == 0);
    fp16_sum += fp16[i].mean_abs_log_ratio;
    bf16_sum += bf16[i].mean_abs_log_ratio;
  }
  EXPECT_LE(fp16_sum, bf16_sum);
}

}  // namespace
}  // namespace lockstep
