// A step of the device's optimizer against the CPU's on the same arena: equal bits.
#include "engine/cuda/device_optimizer.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/cuda/test_util.h"
#include "engine/kernels/cpu/thread_pool.h"
#include "engine/kernels/optimizer.h"

namespace lockstep::cuda {
namespace {

// Elements of parameters have pseudo-random values, gaps are zero.
std::vector<float> Gradient(const ArenaLayout& layout, uint64_t stream, float scale) {
  std::vector<float> values(static_cast<size_t>(layout.size), 0.0f);
  for (size_t param = 0; param < layout.offsets.size(); ++param) {
    for (int64_t i = 0; i < layout.params.params[param].size(); ++i) {
      const auto at = static_cast<size_t>(layout.offsets[param] + i);
      values[at] = scale * (static_cast<float>(testing::Hash32(stream, at) >> 8) / 0x1p24f - 0.5f);
    }
  }
  return values;
}

bool SameBits(const float* a, const std::vector<float>& b) {
  return std::memcmp(a, b.data(), b.size() * sizeof(float)) == 0;
}

DeviceOptimizer MakeOptimizer(const ArenaLayout& layout, const ModelConfig& config, OnDevice& device) {
  DeviceOptimizer optimizer = *DeviceOptimizer::Create(layout.size, DecayRanges(layout), device.stream);
  const std::vector<float> arena = testing::TestArena(config);
  EXPECT_TRUE(LoadArena(layout, arena.data(), DType::kF32, optimizer.master(), device.stream, device.staging).ok());
  EXPECT_TRUE(device.stream.Wait("a test").ok());
  return optimizer;
}

TEST(DeviceOptimizerTest, OnlyMatricesDecayAndRangesCoverTheArena) {
  for (const ModelConfig& config : SmallModels()) {
    const ArenaLayout layout(config);
    const std::vector<DecayRange> ranges = DecayRanges(layout);
    for (size_t param = 0; param < layout.offsets.size(); ++param) {
      const ParamSpec& spec = layout.params.params[param];
      const int64_t begin = layout.offsets[param], end = begin + spec.size();
      int found = 0;
      for (const DecayRange& range : ranges) {
        if (range.begin > begin || range.end < end) continue;
        ++found;
        EXPECT_EQ(range.decay, spec.weight_decay) << spec.name;
      }
      EXPECT_EQ(found, 1) << spec.name;
    }
    EXPECT_LT(ranges.size(), layout.offsets.size());
  }
}

TEST(DeviceOptimizerTest, ThreeStepsHaveTheBitsOfTheCpuAndTheWeightsAreTheRoundedMaster) {
  ThreadPool pool(1);
  for (const ModelConfig& config : SmallModels()) {
    OnDevice device;
    const ArenaLayout layout(config);
    DeviceOptimizer optimizer = MakeOptimizer(layout, config, device);
    const DeviceWeights weights = device.Put(config, DType::kF16);
    const auto size = static_cast<size_t>(layout.size);
    std::vector<float> master(optimizer.master(), optimizer.master() + size), m(size), v(size);
    for (int64_t step = 1; step <= 3; ++step) {
      const std::vector<float> gradient = Gradient(layout, static_cast<uint64_t>(step), 3000);
      std::memcpy(optimizer.gradient(), gradient.data(), size * sizeof(float));
      AdamWParams params{.lr = 1e-2f, .weight_decay = 0.1f, .step = step};
      ASSERT_TRUE(optimizer.Norm(4096, 1, device.stream).ok());
      ASSERT_TRUE(optimizer.Step(params, DType::kF16, weights.arena(), device.stream).ok());
      const StepControl control = *optimizer.ReadControl(device.stream);
      const double norm = std::sqrt(GradNormSquared(gradient.data(), layout.size, pool)) / 4096;
      EXPECT_EQ(control.norm, norm);
      EXPECT_EQ(control.finite, 1);

      params.grad_multiplier = control.grad_multiplier;
      for (const DecayRange& range : DecayRanges(layout)) {
        params.weight_decay = range.decay ? 0.1f : 0;
        AdamWStep(params, master.data() + range.begin, m.data() + range.begin, v.data() + range.begin,
                  gradient.data() + range.begin, range.end - range.begin, pool);
      }
      ASSERT_TRUE(SameBits(optimizer.master(), master)) << "step " << step;
      ASSERT_TRUE(SameBits(optimizer.moment1(), m) && SameBits(optimizer.moment2(), v)) << "step " << step;
      std::vector<uint16_t> rounded(size);
      ConvertFromFloat(DType::kF16, master.data(), rounded.data(), size);
      ASSERT_EQ(std::memcmp(weights.arena(), rounded.data(), size * 2), 0) << "step " << step;
    }
  }
}

TEST(DeviceOptimizerTest, AGradientThatIsNotFiniteChangesNothingAndIsReported) {
  const ModelConfig config = SmallDense();
  OnDevice device;
  const ArenaLayout layout(config);
  DeviceOptimizer optimizer = MakeOptimizer(layout, config, device);
  const DeviceWeights weights = device.Put(config, DType::kF16);
  const std::vector<float> before(optimizer.master(), optimizer.master() + layout.size);
  const std::vector<char> weights_before(static_cast<char*>(weights.arena()),
                                         static_cast<char*>(weights.arena()) + 2 * layout.size);
  optimizer.gradient()[layout.offsets[3] + 1] = std::numeric_limits<float>::infinity();
  ASSERT_TRUE(optimizer.Norm(2, 1, device.stream).ok());
  ASSERT_TRUE(optimizer.Step({.lr = 1, .weight_decay = 0.5f}, DType::kF16, weights.arena(), device.stream).ok());
  EXPECT_EQ(optimizer.ReadControl(device.stream)->finite, 0);
  EXPECT_TRUE(SameBits(optimizer.master(), before));
  EXPECT_EQ(std::memcmp(weights.arena(), weights_before.data(), weights_before.size()), 0);
}

TEST(DeviceOptimizerTest, ItsMemoryIsWhatItSays) {
  OnDevice device;
  const ArenaLayout layout(SmallNormed());
  const size_t before = emulation::MemoryInUse();
  const DeviceOptimizer optimizer = *DeviceOptimizer::Create(layout.size, DecayRanges(layout), device.stream);
  EXPECT_EQ(emulation::MemoryInUse() - before, DeviceOptimizer::Bytes(layout.size));
  emulation::SetMemoryLimit(emulation::MemoryInUse() + DeviceOptimizer::Bytes(layout.size) - 1);
  EXPECT_EQ(DeviceOptimizer::Create(layout.size, DecayRanges(layout), device.stream).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace lockstep::cuda
