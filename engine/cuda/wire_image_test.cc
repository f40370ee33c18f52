// The wire image against the arena, by every run and every cut of it.
#include "engine/cuda/wire_image.h"

#include <cstring>

#include "engine/cuda/device_weights.h"
#include "engine/cuda/test_util.h"
#include "engine/model/shapes.h"

namespace lockstep::cuda {
namespace {

// Values that no 16-bit dtype holds exactly.
std::vector<float> Masters(const ModelConfig& config) {
  std::vector<float> arena(static_cast<size_t>(ParamLayout(config).total_size));
  InitializeArena(config, 7, 0.3f, arena.data());
  return arena;
}

DeviceWeights Load(const ModelConfig& config, DType dtype, const std::vector<float>& values, OnDevice& device) {
  DeviceWeights weights = *DeviceWeights::Allocate(config, dtype, device.stream);
  EXPECT_TRUE(weights.Load(values.data(), device.stream, device.staging).ok());
  EXPECT_TRUE(device.stream.Wait("loading weights").ok());
  return weights;
}

// The image as the host makes it: the canonical arena, rounded.
std::vector<char> HostImage(DType dtype, const std::vector<float>& values) {
  std::vector<char> image(values.size() * DTypeSize(dtype));
  ConvertFromFloat(dtype, values.data(), image.data(), values.size());
  return image;
}

TEST(WireMapTest, TheRunsAreTheWholeImageAndEveryParameterLiesWhereItsLayoutsSay) {
  for (const ModelConfig& config : SmallModels()) {
    const ArenaLayout layout(config);
    const WireMap map(layout);
    EXPECT_EQ(map.elements(), layout.params.total_size);
    std::vector<int64_t> arena_of;  // by element of the image
    for (const WireRun& run : map.runs()) {
      EXPECT_EQ(run.image, static_cast<int64_t>(arena_of.size()));
      for (int64_t i = 0; i < run.elements; ++i) arena_of.push_back(run.arena + i);
    }
    ASSERT_EQ(static_cast<int64_t>(arena_of.size()), map.elements());
    for (size_t param = 0; param < layout.offsets.size(); ++param) {
      const ParamSpec& spec = layout.params.params[param];
      for (int64_t i = 0; i < spec.size(); ++i) {
        ASSERT_EQ(arena_of[static_cast<size_t>(spec.offset + i)], layout.offsets[param] + i) << spec.name;
      }
    }
    for (size_t i = 1; i < map.runs().size(); ++i) {
      EXPECT_NE(map.runs()[i - 1].arena + map.runs()[i - 1].elements, map.runs()[i].arena) << "runs are maximal";
    }
  }
}

TEST(WireMapTest, ADenseModelOfRealSizesIsOneRun) {
  for (const ModelConfig& config : {Qwen25Shape05B(), Qwen25Shape15B()}) {
    EXPECT_EQ(WireMap(ArenaLayout(config)).runs().size(), 1u);
  }
}

TEST(WireMapTest, CutsFollowOneAnotherAsTheRunsDo) {
  const WireMap map{ArenaLayout(SmallMixture())};
  for (const int64_t step : {int64_t{1}, int64_t{97}, int64_t{5000}, map.elements()}) {
    std::vector<WireRun> joined;
    for (int64_t begin = 0; begin < map.elements(); begin += step) {
      const int64_t count = std::min(step, map.elements() - begin);
      int64_t covered = 0;
      for (const WireRun& run : map.Cut(begin, count)) {
        ASSERT_EQ(run.image, covered);
        covered += run.elements;
        if (!joined.empty() && joined.back().arena + joined.back().elements == run.arena) {
          joined.back().elements += run.elements;
        } else {
          joined.push_back({begin + run.image, run.arena, run.elements});
        }
      }
      ASSERT_EQ(covered, count);
    }
    ASSERT_EQ(joined.size(), map.runs().size()) << step;
    for (size_t i = 0; i < joined.size(); ++i) {
      EXPECT_EQ(joined[i].image, map.runs()[i].image);
      EXPECT_EQ(joined[i].arena, map.runs()[i].arena);
      EXPECT_EQ(joined[i].elements, map.runs()[i].elements);
    }
  }
  EXPECT_TRUE(map.Cut(map.elements(), 0).empty());
}

TEST(WireImageTest, TheRoundedMastersHaveTheHostsBits) {
  for (const ModelConfig& config : SmallModels()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      OnDevice device;
      const std::vector<float> values = Masters(config);
      const DeviceWeights masters = Load(config, DType::kF32, values, device);
      const WireMap map(masters.layout());
      const std::vector<char> expected = HostImage(dtype, values);
      const DeviceBuffer image = *DeviceBuffer::Allocate(expected.size() + 64, "an image");
      std::memset(image.data(), 0x5A, image.bytes());
      ASSERT_TRUE(WriteImage(map.runs(), DType::kF32, masters.arena(), dtype, image.data(), device.stream).ok());
      ASSERT_TRUE(device.stream.Wait("a test").ok());
      EXPECT_EQ(std::memcmp(image.data(), expected.data(), expected.size()), 0);
      for (size_t i = expected.size(); i < image.bytes(); ++i) {
        ASSERT_EQ(image.As<unsigned char>()[i], 0x5A) << "nothing behind the image is written";
      }
    }
  }
}

TEST(WireImageTest, PiecesGoIntoAnArenaAndComeBack) {
  for (const ModelConfig& config : SmallModels()) {
    OnDevice device;
    const std::vector<float> values = Masters(config);
    const DeviceWeights expected = Load(config, DType::kBF16, values, device);
    const std::vector<char> image = HostImage(DType::kBF16, values);
    const DeviceWeights weights = *DeviceWeights::Allocate(config, DType::kBF16, device.stream);
    const WireMap map(weights.layout());
    const int64_t step = 1000;
    const DeviceBuffer piece = *DeviceBuffer::Allocate(2 * step, "a piece");
    for (int64_t begin = 0; begin < map.elements(); begin += step) {
      const int64_t count = std::min(step, map.elements() - begin);
      const std::vector<WireRun> runs = map.Cut(begin, count);
      const auto bytes = static_cast<size_t>(2 * count);
      std::memcpy(piece.data(), image.data() + 2 * begin, bytes);
      ASSERT_TRUE(ImageToArena(runs, DType::kBF16, piece.data(), weights.arena(), device.stream).ok());
      ASSERT_TRUE(device.stream.Wait("a test").ok());
      std::memset(piece.data(), 0, piece.bytes());
      ASSERT_TRUE(ArenaToImage(runs, DType::kBF16, weights.arena(), piece.data(), device.stream).ok());
      ASSERT_TRUE(device.stream.Wait("a test").ok());
      ASSERT_EQ(std::memcmp(piece.data(), image.data() + 2 * begin, bytes), 0) << begin;
    }
    EXPECT_EQ(std::memcmp(weights.arena(), expected.arena(), DeviceWeights::Bytes(config, DType::kBF16)), 0)
        << "gaps included";
  }
}

TEST(WireImageTest, ALostDeviceIsAnErrorInOneLine) {
  OnDevice device;
  const ModelConfig config = SmallDense();
  const DeviceWeights masters = Load(config, DType::kF32, Masters(config), device);
  const DeviceBuffer image = *DeviceBuffer::Allocate(DeviceWeights::Bytes(config, DType::kF16), "an image");
  emulation::FailWork(0, cudaErrorLaunchFailure);
  const WireMap map(masters.layout());
  absl::Status status = WriteImage(map.runs(), DType::kF32, masters.arena(), DType::kF16, image.data(), device.stream);
  if (status.ok()) status = device.stream.Wait("rounding the weights for an update");
  EXPECT_NE(status.message().find("rounding the weights"), std::string::npos) << status;
}

}  // namespace
}  // namespace lockstep::cuda
