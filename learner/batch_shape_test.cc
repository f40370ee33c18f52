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

// Native kernels may sum in other orders; the figures say how much, token by token.
TEST(BatchShapeTest, NativeFiguresAgreeWithEachOther) {
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const BatchShapeRow& row : Measure(dtype, Numerics::kNative)) {
      EXPECT_LE(row.mean_abs_log_ratio, row.max_abs_log_ratio);
      EXPECT_EQ(row.different == 0, row.max_abs_log_ratio == 0) << row.shape;
      EXPECT_LE(row.outside, row.different);
      EXPECT_TRUE(row.outside == 0 || row.max_abs_log_ratio > 0.0099) << row.shape;
      EXPECT_LT(row.max_abs_log_ratio, 0.2) << row.shape << ": orders of a sum differ by less";
    }
  }
}

}  // namespace
}  // namespace lockstep
