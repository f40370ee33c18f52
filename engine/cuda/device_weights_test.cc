// Parameters in device arenas: every one where its view says, there and back.
#include "engine/cuda/device_weights.h"

#include <cstring>

#include "engine/cuda/test_util.h"
#include "engine/model/shapes.h"

namespace lockstep::cuda {
namespace {

std::vector<float> Stored(const DeviceWeights& weights, OnDevice& device) {
  std::vector<float> values(static_cast<size_t>(weights.layout().params.total_size));
  EXPECT_TRUE(
      StoreArena(weights.layout(), weights.dtype(), weights.arena(), values.data(), device.stream, device.staging)
          .ok());
  return values;
}

TEST(ArenaLayoutTest, ParametersAreAlignedAndDoNotOverlap) {
  for (const ModelConfig& config : SmallModels()) {
    const ArenaLayout layout(config);
    std::vector<int> owner(static_cast<size_t>(layout.size), -1);
    for (size_t param = 0; param < layout.offsets.size(); ++param) {
      const ParamSpec& spec = layout.params.params[param];
      const bool expert = spec.name.find(".experts.") != std::string::npos;
      if (!expert || spec.name.find(".experts.0.") != std::string::npos) {
        EXPECT_EQ(layout.offsets[param] % kArenaAlignment, 0) << spec.name;
      }
      for (int64_t i = 0; i < spec.size(); ++i) {
        int& at = owner[static_cast<size_t>(layout.offsets[param] + i)];
        ASSERT_EQ(at, -1) << spec.name;
        at = static_cast<int>(param);
      }
    }
  }
}

TEST(ArenaLayoutTest, ADenseModelOfRealSizesHasTheCanonicalOffsets) {
  for (const ModelConfig& config : {Qwen25Shape05B(), Qwen25Shape15B()}) {
    const ArenaLayout layout(config);
    EXPECT_EQ(layout.size, layout.params.total_size);
    for (size_t param = 0; param < layout.offsets.size(); ++param) {
      EXPECT_EQ(layout.offsets[param], layout.params.params[param].offset);
    }
  }
}

TEST(DeviceWeightsTest, BothSourcesGiveTheSameRoundedValuesAndTheyComeBack) {
  for (const ModelConfig& config : SmallModels()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      OnDevice device;
      const std::vector<float> arena = testing::TestArena(config);  // exact in 16 bits
      const DeviceWeights from_arena = device.Put(config, dtype);
      EXPECT_EQ(Stored(from_arena, device), arena);
      const Weights host = testing::TestWeights(config, dtype);
      DeviceWeights from_weights = *DeviceWeights::Allocate(config, dtype, device.stream);
      ASSERT_TRUE(from_weights.Load(&host, device.stream, device.staging).ok());
      ASSERT_TRUE(device.stream.Wait("a test").ok());
      EXPECT_EQ(std::memcmp(from_weights.arena(), from_arena.arena(), DeviceWeights::Bytes(config, dtype)), 0)
          << "gaps included";
    }
  }
}

TEST(DeviceWeightsTest, TheMasterArenaIsRoundedInPlace) {
  const ModelConfig config = SmallMixture();
  OnDevice device;
  const DeviceWeights master = device.Put(config, DType::kF32);
  DeviceWeights weights = *DeviceWeights::Allocate(config, DType::kBF16, device.stream);
  ASSERT_TRUE(weights.LoadFromMaster(static_cast<const float*>(master.arena()), device.stream).ok());
  EXPECT_EQ(Stored(weights, device), testing::TestArena(config));
}

TEST(DeviceWeightsTest, ViewsHaveTheParametersTheyAreNamedAfter) {
  const ModelConfig config = SmallMixture();
  OnDevice device;
  const DeviceWeights weights = device.Put(config, DType::kF32);
  const std::vector<float> arena = testing::TestArena(config);
  const ParamLayout layout(config);
  const auto expect = [&](const Tensor& view, int first, int count, int step) {
    const float* at = view.As<float>();
    for (int i = 0; i < count; ++i) {
      const ParamSpec& spec = layout.params[static_cast<size_t>(first + i * step)];
      ASSERT_EQ(view.rows, spec.rows * count) << spec.name;
      ASSERT_EQ(view.cols, spec.cols) << spec.name;
      ASSERT_EQ(std::memcmp(at, arena.data() + spec.offset, static_cast<size_t>(spec.size()) * sizeof(float)), 0)
          << spec.name;
      at += spec.size();
    }
  };
  expect(weights.embed(), layout.embed, 1, 1);
  expect(weights.output(), layout.lm_head, 1, 1);
  expect(weights.final_norm(), layout.final_norm, 1, 1);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto& at = layout.layers[static_cast<size_t>(layer)];
    const DeviceLayerWeights& views = weights.layer(layer);
    expect(views.input_norm, at.input_norm, 1, 1);
    expect(views.qkv, at.qkv, 1, 1);
    expect(views.k_norm, at.k_norm, 1, 1);
    expect(views.o, at.o, 1, 1);
    EXPECT_EQ(views.qkv_bias.data, nullptr);
    EXPECT_EQ(views.router.data == nullptr, !config.HasExperts(layer));
    EXPECT_EQ(views.gate_up.data == nullptr, config.HasExperts(layer));
    if (!config.HasExperts(layer)) continue;
    expect(views.router, at.router, 1, 1);
    expect(views.expert_gate_up, at.experts, 5, 2);
    expect(views.expert_down, at.experts + 1, 5, 2);
  }
}

TEST(DeviceWeightsTest, TheShadowIsWrittenWhileTheOtherIsReadAndThenTheyFlip) {
  const ModelConfig config = SmallDense();
  OnDevice device;
  WeightSets sets(device.Put(config, DType::kF16), *DeviceWeights::Allocate(config, DType::kF16, device.stream));
  const void* const first = sets.current().arena();
  std::vector<float> next(testing::TestArena(config).size(), 0.5f);
  ASSERT_TRUE(sets.shadow().Load(next.data(), device.stream, device.staging).ok());
  EXPECT_EQ(Stored(sets.current(), device), testing::TestArena(config));
  sets.Flip();
  EXPECT_EQ(Stored(sets.current(), device), next);
  EXPECT_EQ(sets.shadow().arena(), first);
}

TEST(DeviceWeightsTest, WeightsThatDoNotFitAreAnErrorInOneLine) {
  OnDevice device;
  emulation::SetMemoryLimit(emulation::MemoryInUse() + 1000);
  const auto weights = DeviceWeights::Allocate(SmallDense(), DType::kF16, device.stream);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(weights.status().message().find("device memory for weights"), std::string::npos) << weights.status();
}

}  // namespace
}  // namespace lockstep::cuda
