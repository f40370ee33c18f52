#include "weight_sync/bucket_plan.h"

#include <gtest/gtest.h>

#include "weight_sync/sync_test_support.h"
#include "weight_sync/weight_snapshot.h"

namespace lockstep {
namespace {

TEST(BucketPlanTest, BucketsTileTheParametersInWholeRows) {
  const ParamLayout layout(SmallModel());
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    for (const uint64_t bucket_bytes : {kMinBucketBytes, uint64_t{5000}, uint64_t{1} << 16, kMaxBucketBytes}) {
      const auto plan = MakeBucketPlan(layout, dtype, bucket_bytes);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_EQ(plan->total_bytes, static_cast<uint64_t>(layout.total_size) * DTypeSize(dtype));
      int64_t element = 0;  // the arena is dense and in the same order
      uint64_t byte = 0;
      for (const Bucket& bucket : plan->buckets) {
        EXPECT_EQ(bucket.begin, byte);
        uint64_t in_bucket = 0;
        for (const BucketPiece& piece : bucket.pieces) {
          EXPECT_EQ(piece.arena_offset, element);
          EXPECT_EQ(piece.bucket_offset, in_bucket);
          EXPECT_EQ(piece.elements % layout.params[static_cast<size_t>(piece.param)].cols, 0);
          element += piece.elements;
          in_bucket += static_cast<uint64_t>(piece.elements) * DTypeSize(dtype);
        }
        EXPECT_EQ(in_bucket, bucket.bytes);
        const bool one_row = bucket.pieces.size() == 1 && bucket.pieces[0].rows == 1;
        EXPECT_TRUE(bucket.bytes <= bucket_bytes || one_row) << bucket.bytes;
        byte += bucket.bytes;
      }
      EXPECT_EQ(element, layout.total_size);
    }
  }
}

TEST(BucketPlanTest, RefusesSizesOutsideItsLimits) {
  const ParamLayout layout(SmallModel());
  EXPECT_EQ(MakeBucketPlan(layout, DType::kF16, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeBucketPlan(layout, DType::kF16, kMaxBucketBytes + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BucketPlanTest, ASnapshotInstalledBucketByBucketEqualsAConversionOfTheArena) {
  const ModelConfig config = SmallModel();
  const ParamLayout layout(config);
  const std::vector<float> arena = RandomArena(config, 3);
  const auto snapshot = MakeSnapshot(config, layout, DType::kBF16, 7000, {1, 1}, arena.data());
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  Weights weights(config, DType::kBF16);
  for (size_t i = 0; i < (*snapshot)->plan.buckets.size(); ++i) {
    const Bucket& bucket = (*snapshot)->plan.buckets[i];
    std::vector<char> wire((*snapshot)->BucketData(i), (*snapshot)->BucketData(i) + bucket.bytes);
    StoreBucket((*snapshot)->plan, bucket, wire.data(), &weights);
    std::vector<char> back(wire.size());
    LoadBucket((*snapshot)->plan, bucket, weights, back.data());
    EXPECT_EQ(back, wire);
    EXPECT_EQ(BlockDigest(back.data(), back.size()), (*snapshot)->digests[i]);
  }
  EXPECT_EQ(WeightsDigest(weights), ExpectedDigest(config, DType::kBF16, arena));
}

class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    const auto plan = MakeBucketPlan(layout_, DType::kF16, 20000);
    manifest_ = MakeManifest(config_, layout_, *plan, std::vector<uint64_t>(plan->buckets.size(), 7));
  }
  std::string Refusal() {
    const auto plan = CheckManifest(config_, layout_, DType::kF16, manifest_);
    return plan.ok() ? "accepted" : std::string(plan.status().message());
  }
  const ModelConfig config_ = SmallModel();
  const ParamLayout layout_{config_};
  v1::UpdateManifest manifest_;
};

TEST_F(ManifestTest, AcceptsItsOwn) { EXPECT_EQ(Refusal(), "accepted"); }

TEST_F(ManifestTest, NamesTheFirstDifference) {
  const v1::UpdateManifest good = manifest_;
  manifest_.mutable_tensors(2)->set_name("layers.9.qkv");
  EXPECT_NE(Refusal().find("the name of tensor 2 is layers.9.qkv"), std::string::npos) << Refusal();
  manifest_ = good;
  manifest_.mutable_tensors(0)->set_rows(uint64_t{1} << 62);
  EXPECT_NE(Refusal().find("the shape of embed"), std::string::npos) << Refusal();
  manifest_ = good;
  manifest_.set_model_hash("other");
  EXPECT_NE(Refusal().find("the model hash is other"), std::string::npos) << Refusal();
  manifest_ = good;
  manifest_.set_bucket_bytes(0);
  EXPECT_NE(Refusal().find("bucket size 0"), std::string::npos) << Refusal();
  manifest_ = good;
  manifest_.set_bucket_bytes(30000);
  EXPECT_NE(Refusal().find("the number of buckets"), std::string::npos) << Refusal();
  manifest_ = good;
  manifest_.mutable_buckets(1)->set_bytes(uint64_t{1} << 60);
  EXPECT_NE(Refusal().find("the size of bucket 1"), std::string::npos) << Refusal();
  manifest_ = good;
  manifest_.mutable_buckets(1)->set_digest(8);
  EXPECT_NE(Refusal().find("the digest of the bucket digests"), std::string::npos) << Refusal();
}

TEST(WeightStoreTest, OnlyRises) {
  const ModelConfig config = SmallModel();
  const auto make = [&](uint64_t epoch, uint64_t version) {
    auto weights = std::make_shared<Weights>(config, DType::kF16);
    weights->epoch = epoch;
    weights->version = version;
    return weights;
  };
  WeightStore store;
  EXPECT_EQ(store.current(), nullptr);
  EXPECT_TRUE(store.Publish(make(1, 5)).ok());
  const std::shared_ptr<const WeightSet> reader = store.current();
  EXPECT_EQ(store.Publish(make(1, 5)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store.Publish(make(0, 9)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(store.Publish(make(2, 0)).ok());
  EXPECT_EQ(store.current()->epoch, 2u);
  EXPECT_EQ(reader->version, 5u);  // a reader keeps what it holds
}

}  // namespace
}  // namespace lockstep
