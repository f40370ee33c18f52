// The device's shadow against the host's: the same set, the same digests.
#include "rollout_server/cuda_shadow.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "engine/base/digest.h"
#include "engine/cuda/test_util.h"
#include "weight_sync/host_shadow.h"

namespace lockstep {
namespace {

constexpr DType kDType = DType::kBF16;

class CudaShadowTest : public ::testing::TestWithParam<int> {
 protected:
  CudaShadowTest() : config_(cuda::SmallModels()[static_cast<size_t>(GetParam())]) {
    plan_ = *MakeBucketPlan(ParamLayout(config_), kDType, 3000);
    wire_.resize(plan_.total_bytes);
    std::vector<float> arena(plan_.total_bytes / 2);
    InitializeArena(config_, 9, 0.3f, arena.data());
    for (const Bucket& bucket : plan_.buckets) RoundBucket(plan_, bucket, arena.data(), wire_.data() + bucket.begin);
    writer_ = *cuda::SetWriter::Create();
  }
  std::shared_ptr<cuda::DeviceWeights> MakeMemory() {
    auto memory = cuda::DeviceWeights::Allocate(config_, kDType, device_.stream);
    EXPECT_TRUE(memory.ok() && device_.stream.Wait("a test").ok());
    return std::make_shared<cuda::DeviceWeights>(*std::move(memory));
  }
  absl::Status FillAll(Shadow& shadow) const {
    return shadow.Fill([this](uint64_t bucket, void* memory, uint64_t bytes) {
      EXPECT_EQ(bytes, plan_.buckets[bucket].bytes);
      std::memcpy(memory, wire_.data() + plan_.buckets[bucket].begin, bytes);
      return absl::OkStatus();
    });
  }

  const ModelConfig config_;
  BucketPlan plan_;
  std::string wire_;
  cuda::OnDevice device_;
  std::shared_ptr<cuda::SetWriter> writer_;
};
INSTANTIATE_TEST_SUITE_P(Models, CudaShadowTest, ::testing::Range(0, 3));

TEST_P(CudaShadowTest, HoldsWhatTheHostsHoldsAndDigestsItAlike) {
  const WeightId id{2, 7};
  auto shadow = MakeCudaShadow(0, plan_, id, MakeMemory(), writer_);
  ASSERT_TRUE(shadow.ok()) << shadow.status();
  auto host = MakeHostShadow(config_, plan_, id);
  ASSERT_TRUE(FillAll(**shadow).ok());
  ASSERT_TRUE(FillAll(*host).ok());
  EXPECT_EQ((*shadow)->digests(), host->digests());
  EXPECT_EQ((*shadow)->plan().buckets.size(), plan_.buckets.size());

  const std::shared_ptr<const WeightSet> set = (*shadow)->Release(), host_set = host->Release();
  EXPECT_EQ(set->version, 7u);
  EXPECT_EQ(set->epoch, 2u);
  EXPECT_EQ(set->dtype, kDType);
  EXPECT_EQ(set->config.Hash(), config_.Hash());
  const auto* const on_device = dynamic_cast<const CudaWeightSet*>(set.get());
  ASSERT_NE(on_device, nullptr);
  cuda::DeviceWeights expected = *cuda::DeviceWeights::Allocate(config_, kDType, device_.stream);
  ASSERT_TRUE(expected.Load(dynamic_cast<const Weights*>(host_set.get()), device_.stream, device_.staging).ok());
  ASSERT_TRUE(device_.stream.Wait("a test").ok());
  EXPECT_EQ(std::memcmp(on_device->memory->arena(), expected.arena(), cuda::DeviceWeights::Bytes(config_, kDType)), 0);
}

TEST_P(CudaShadowTest, AFailedTransferEndsItAndItsMemoryTakesTheNextUpdate) {
  const auto memory = MakeMemory();
  {
    auto failing = MakeCudaShadow(0, plan_, {1, 1}, memory, writer_);
    ASSERT_TRUE(failing.ok());
    const absl::Status lost = absl::UnavailableError("the sender is gone");
    EXPECT_EQ((*failing)->Fill([&](uint64_t bucket, void* at, uint64_t bytes) {
      std::memset(at, 0x55, bytes);
      return bucket == 3 ? lost : absl::OkStatus();
    }),
              lost);
    EXPECT_EQ(emulation::PendingWork(), 0u) << "what it had begun is over";
  }
  auto shadow = MakeCudaShadow(0, plan_, {1, 2}, memory, writer_);
  ASSERT_TRUE(shadow.ok());
  ASSERT_TRUE(FillAll(**shadow).ok());
  for (size_t i = 0; i < plan_.buckets.size(); ++i) {
    EXPECT_EQ((*shadow)->digests()[i], BlockDigest(wire_.data() + plan_.buckets[i].begin, plan_.buckets[i].bytes));
  }
}

TEST_P(CudaShadowTest, ALostDeviceIsTheTransfersError) {
  auto shadow = MakeCudaShadow(0, plan_, {1, 1}, MakeMemory(), writer_);
  ASSERT_TRUE(shadow.ok());
  emulation::FailWork(5, cudaErrorLaunchFailure);
  const absl::Status status = FillAll(**shadow);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
}

}  // namespace
}  // namespace lockstep
