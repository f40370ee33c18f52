// A set written from pieces of the image against the same set loaded from the host: every byte, and every digest.
#include "engine/cuda/set_writer.h"

#include <cstring>
#include <memory>
#include <string>

#include "engine/base/digest.h"
#include "engine/cuda/test_util.h"

namespace lockstep::cuda {
namespace {

// Sizes that are multiples of an arena's alignment: image and arena are one run.
ModelConfig Aligned() {
  ModelConfig config = SmallDense();
  config.vocab_size = 128;
  config.hidden_size = 64;
  config.intermediate_size = 64;
  return config;
}

std::vector<ModelConfig> Models() {
  std::vector<ModelConfig> models = SmallModels();
  models.push_back(Aligned());
  return models;
}

std::vector<ImagePiece> Cut(uint64_t image_bytes, uint64_t piece_bytes) {
  std::vector<ImagePiece> pieces;
  for (uint64_t begin = 0; begin < image_bytes; begin += piece_bytes) {
    pieces.push_back({begin, std::min(piece_bytes, image_bytes - begin)});
  }
  return pieces;
}

struct Image {
  Image(const ModelConfig& config, DType dtype, uint64_t seed) {
    std::vector<float> values(static_cast<size_t>(ParamLayout(config).total_size));
    InitializeArena(config, seed, 0.3f, values.data());
    bytes.resize(values.size() * DTypeSize(dtype));
    ConvertFromFloat(dtype, values.data(), bytes.data(), values.size());
    expected = std::make_unique<Weights>(config, dtype);
    expected->SetFromArena(values.data());
  }
  std::string bytes;
  std::unique_ptr<Weights> expected;
};

void Write(SetWriter& writer, const DeviceWeights& set, const std::vector<ImagePiece>& pieces, const Image& image) {
  ASSERT_TRUE(writer.Begin(&set, pieces).ok());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto memory = writer.Memory(i);
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(*memory) % 16, 0u);
    std::memcpy(*memory, image.bytes.data() + pieces[i].begin, pieces[i].bytes);
    ASSERT_TRUE(writer.Install(i).ok());
  }
}

TEST(SetWriterTest, ASetOfPiecesIsTheSetOfTheHostAndItsDigestsAreTheCpus) {
  for (const ModelConfig& config : Models()) {
    for (const DType dtype : {DType::kF16, DType::kF32}) {
      for (const uint64_t piece_bytes : {uint64_t{1200}, uint64_t{5000}, uint64_t{1} << 30}) {
        OnDevice device;
        const Image image(config, dtype, 3);
        const DeviceWeights set = *DeviceWeights::Allocate(config, dtype, device.stream);
        DeviceWeights expected = *DeviceWeights::Allocate(config, dtype, device.stream);
        ASSERT_TRUE(expected.Load(image.expected.get(), device.stream, device.staging).ok());
        ASSERT_TRUE(device.stream.Wait("a test").ok());
        auto writer = SetWriter::Create();
        ASSERT_TRUE(writer.ok()) << writer.status();
        const std::vector<ImagePiece> pieces = Cut(image.bytes.size(), piece_bytes);
        Write(**writer, set, pieces, image);
        const auto digests = (*writer)->Finish();
        ASSERT_TRUE(digests.ok()) << digests.status();
        ASSERT_EQ(digests->size(), pieces.size());
        for (size_t i = 0; i < pieces.size(); ++i) {
          EXPECT_EQ((*digests)[i], BlockDigest(image.bytes.data() + pieces[i].begin, pieces[i].bytes)) << i;
        }
        EXPECT_EQ(std::memcmp(set.arena(), expected.arena(), DeviceWeights::Bytes(config, dtype)), 0)
            << "gaps included";
      }
    }
  }
}

TEST(SetWriterTest, WhatDoesNotComeOrComesWrongShowsInItsDigestAlone) {
  for (const ModelConfig& config : {SmallMixture(), Aligned()}) {
    OnDevice device;
    const Image old(config, DType::kF16, 3), image(config, DType::kF16, 4);
    const DeviceWeights set = *DeviceWeights::Allocate(config, DType::kF16, device.stream);
    ASSERT_TRUE(device.stream.Wait("a test").ok());
    auto writer = SetWriter::Create();
    const std::vector<ImagePiece> pieces = Cut(image.bytes.size(), 4000);
    ASSERT_GT(pieces.size(), 6u);
    Write(**writer, set, pieces, old);
    ASSERT_TRUE((*writer)->Finish().ok());
    ASSERT_TRUE((*writer)->Begin(&set, pieces).ok());
    for (size_t i = 0; i < pieces.size(); ++i) {
      char* const memory = static_cast<char*>(*(*writer)->Memory(i));
      if (i != 2) std::memcpy(memory, image.bytes.data() + pieces[i].begin, pieces[i].bytes);
      if (i == 4) memory[1234] = static_cast<char>(memory[1234] ^ 0x10);
      ASSERT_TRUE((*writer)->Install(i).ok());
    }
    const auto digests = (*writer)->Finish();
    for (size_t i = 0; i < pieces.size(); ++i) {
      const uint64_t expected = BlockDigest(image.bytes.data() + pieces[i].begin, pieces[i].bytes);
      EXPECT_EQ((*digests)[i] == expected, i != 2 && i != 4) << i;
    }
  }
}

TEST(SetWriterTest, TakesTheMemoryThatItSaysAndKeepsIt) {
  for (const ModelConfig& config : Models()) {
    OnDevice device;
    const Image image(config, DType::kF16, 3);
    const DeviceWeights set = *DeviceWeights::Allocate(config, DType::kF16, device.stream);
    auto writer = SetWriter::Create();
    const std::vector<ImagePiece> pieces = Cut(image.bytes.size(), 5000);
    const size_t before = emulation::MemoryInUse();
    ASSERT_TRUE((*writer)->Begin(&set, pieces).ok());
    EXPECT_EQ(emulation::MemoryInUse() - before, SetWriter::Bytes(config, DType::kF16, pieces));
    ASSERT_TRUE((*writer)->Begin(&set, pieces).ok());
    EXPECT_EQ(emulation::MemoryInUse() - before, SetWriter::Bytes(config, DType::kF16, pieces));
  }
  const std::vector<ImagePiece> one = {{0, 2 * static_cast<uint64_t>(ParamLayout(Aligned()).total_size)}};
  EXPECT_EQ(SetWriter::Bytes(Aligned(), DType::kF16, one), DigestBlocks(one[0].bytes) * 8) << "no staging";
}

TEST(SetWriterTest, WhatDoesNotFitIsAnErrorInOneLine) {
  OnDevice device;
  const DeviceWeights set = *DeviceWeights::Allocate(SmallMixture(), DType::kF16, device.stream);
  auto writer = SetWriter::Create();
  const auto bytes = 2 * static_cast<uint64_t>(ParamLayout(SmallMixture()).total_size);
  emulation::SetMemoryLimit(emulation::MemoryInUse() + 1000);
  const absl::Status status = (*writer)->Begin(&set, Cut(bytes, 4000));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("buckets of an update"), std::string::npos) << status;
}

TEST(SetWriterTest, ALostDeviceIsAnErrorAtTheEnd) {
  OnDevice device;
  const ModelConfig config = SmallMixture();
  const Image image(config, DType::kF16, 3);
  const DeviceWeights set = *DeviceWeights::Allocate(config, DType::kF16, device.stream);
  ASSERT_TRUE(device.stream.Wait("a test").ok());
  auto writer = SetWriter::Create();
  const std::vector<ImagePiece> pieces = Cut(image.bytes.size(), image.bytes.size());
  Write(**writer, set, pieces, image);
  emulation::FailWork(3, cudaErrorLaunchFailure);
  const auto digests = (*writer)->Finish();
  EXPECT_FALSE(digests.ok());
  EXPECT_EQ(digests.status().message().find('\n'), absl::string_view::npos);
}

}  // namespace
}  // namespace lockstep::cuda
