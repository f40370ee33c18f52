// The device's decoder, compiled for the CPU, against the CPU's: FP32 by bits, 16-bit types by tolerance; and against
// itself: paged and packed, with and without recomputation, by bits in every dtype.
#include "engine/cuda/device_decoder.h"

#include "engine/cuda/decoder_test_util.h"
#include "engine/cuda/device_log_prob.h"
#include "engine/model/low_rank.h"
#include "engine/model/routing.h"

namespace lockstep::cuda {
namespace {

struct Case {
  std::string name;
  ModelConfig config;
  DType dtype;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const ModelConfig& config : SmallModels()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      cases.push_back({config.architecture + std::string(DTypeName(dtype)), config, dtype});
    }
  }
  return cases;
}

class DeviceDecoderTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Models, DeviceDecoderTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

const std::vector<int> kLengths = {9, 1, 18};

// Every token's routing is given, none of it the routers' own.
void GiveOtherExperts(const RoutingShape& shape, PackedBatch& batch) {
  batch.routing.assign(batch.tokens.size() * shape.row_bytes(), '\0');
  batch.has_routing.assign(batch.tokens.size(), 1);
  for (size_t row = 0; row < batch.tokens.size(); ++row) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      const auto first = static_cast<int32_t>(testing::Hash32(row, static_cast<uint64_t>(layer)) %
                                              static_cast<uint64_t>(shape.num_experts - 1));
      const int32_t experts[] = {first, first + 1};
      PutExperts(shape, experts, layer, batch.routing.data() + row * shape.row_bytes());
    }
  }
  batch.has_routing[5] = 0;
}

TEST_P(DeviceDecoderTest, AgreesWithTheCpuForwardAndBackward) {
  Sides sides(GetParam().config, GetParam().dtype);
  PackedBatch batch = testing::TestBatch(sides.config, kLengths, 1);
  batch.loss_rows.erase(batch.loss_rows.begin() + 3, batch.loss_rows.begin() + 9);  // some rows have no loss
  batch.targets.erase(batch.targets.begin() + 3, batch.targets.begin() + 9);
  const float scale = 64;
  const Pass expected = RunOnCpu(sides, batch, scale), got = RunOnDevice(sides, batch, false, scale);
  if (sides.dtype == DType::kF32) {
    EXPECT_EQ(DifferentBits(got.log_prob, expected.log_prob), 0);
    EXPECT_EQ(DifferentBits(got.entropy, expected.entropy), 0);
  }
  EXPECT_LT(Distance(got.log_prob, expected.log_prob), Tolerance(sides.dtype));
  EXPECT_LT(Distance(got.entropy, expected.entropy), Tolerance(sides.dtype));
  if (sides.dtype == DType::kF32) {
    EXPECT_EQ(got.trace.experts, expected.trace.experts);
  }
  const bool routed = sides.config.num_experts > 0;  // another expert is another function
  if (routed && got.trace.experts != expected.trace.experts) return;
  for (const ParamSpec& spec : sides.cpu_weights.layout.params) {
    const auto part = [&](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + spec.offset, all.begin() + spec.offset + spec.size());
    };
    const std::vector<float> want = part(expected.gradients);
    const bool zero = std::all_of(want.begin(), want.end(), [](float g) { return g == 0; });
    if (zero) {  // an expert without tokens
      EXPECT_EQ(part(got.gradients), want) << spec.name;
    } else {
      EXPECT_LT(Distance(part(got.gradients), want), 4 * Tolerance(sides.dtype)) << spec.name;
    }
  }
}

TEST_P(DeviceDecoderTest, RecomputedLayersHaveTheSameBits) {
  Sides sides(GetParam().config, GetParam().dtype);
  const PackedBatch batch = testing::TestBatch(sides.config, kLengths, 2);
  const Pass kept = RunOnDevice(sides, batch, false, 64), recomputed = RunOnDevice(sides, batch, true, 64);
  EXPECT_EQ(DifferentBits(kept.log_prob, recomputed.log_prob), 0);
  EXPECT_EQ(DifferentBits(kept.gradients, recomputed.gradients), 0);
  EXPECT_EQ(kept.trace.experts, recomputed.trace.experts);
}

TEST_P(DeviceDecoderTest, PagedAndPackedHaveTheSameBitsHoweverTheyAreCut) {
  Sides sides(GetParam().config, GetParam().dtype);
  const Sequences sequences = MakeSequences(sides.config, {17, 2, 16, 34});
  const LogProbs one = PackedLogProbs(sides, sequences, 1, true);
  ExpectEqualBits(PackedLogProbs(sides, sequences, 4, false), one, "packed together");
  ExpectEqualBits(PagedLogProbs(sides, sequences, 4, [](int, int) { return 1000; }), one, "prefill");
  ExpectEqualBits(PagedLogProbs(sides, sequences, 3, [](int i, int at) { return i + at < 12 ? 9 : 1; }), one,
                  "a chunk, then decode");
  ExpectEqualBits(PagedLogProbs(sides, sequences, 2, [](int i, int) { return 5 + i; }), one, "chunks");
}

TEST_P(DeviceDecoderTest, LowRankGradientsAgreeWithTheCpu) {
  Sides sides(GetParam().config, GetParam().dtype);
  const PackedBatch batch = testing::TestBatch(sides.config, kLengths, 3);
  const LowRankLayout layout = *MakeLowRankLayout(sides.config, 3, 6, {});
  std::vector<float> adapters(static_cast<size_t>(layout.total_size)), expected(adapters.size());
  InitializeLowRank(layout, 5, adapters.data());
  for (size_t i = 0; i < adapters.size(); ++i) adapters[i] += 0.01f * static_cast<float>(i % 5);
  const std::vector<float> coefficient = Coefficients(batch.targets.size(), 64);
  std::vector<float> log_prob(batch.targets.size());
  sides.cpu.ForwardPacked(sides.cpu_weights, batch, kTestTemperature, false, log_prob.data(), nullptr);
  sides.cpu.Backward(sides.cpu_weights, batch, kTestTemperature, coefficient.data(),
                     LowRankGradients{&layout, adapters.data(), expected.data()});

  const size_t bytes = adapters.size() * sizeof(float);
  const DeviceBuffer values = *DeviceBuffer::Allocate(bytes, "adapters"), got = *DeviceBuffer::Allocate(bytes, "");
  std::memcpy(values.data(), adapters.data(), bytes);
  ASSERT_TRUE(got.Zero(sides.device.stream).ok());
  RoutingTrace trace, cpu_trace;
  ASSERT_TRUE(
      sides.decoder->ForwardPacked(sides.weights, batch, kTestTemperature, true, log_prob.data(), nullptr, &trace)
          .ok());
  ASSERT_TRUE(sides.decoder
                  ->Backward(sides.weights, batch, coefficient.data(),
                             DeviceLowRankGradients{&layout, values.As<float>(), got.As<float>()})
                  .ok());
  ASSERT_TRUE(sides.device.stream.Wait("backward").ok());
  sides.cpu.ForwardPacked(sides.cpu_weights, batch, kTestTemperature, false, log_prob.data(), nullptr, &cpu_trace);
  if (trace.experts != cpu_trace.experts) return;  // another expert is another function
  EXPECT_LT(Distance({got.As<float>(), got.As<float>() + adapters.size()}, expected), 4 * Tolerance(sides.dtype));
}

TEST_P(DeviceDecoderTest, GivenExpertsComputeAndAreCounted) {
  Sides sides(GetParam().config, GetParam().dtype);
  if (sides.config.num_experts == 0) GTEST_SKIP() << "a dense model has no experts";
  PackedBatch batch = testing::TestBatch(sides.config, kLengths, 4);
  const Pass own = RunOnDevice(sides, batch, true, 64);
  GiveOtherExperts(RoutingShape(sides.config), batch);
  for (const bool replay : {true, false}) {
    batch.replay_routing = replay;
    const Pass expected = RunOnCpu(sides, batch, 64), got = RunOnDevice(sides, batch, true, 64);
    EXPECT_EQ(got.trace.choices, expected.trace.choices);
    if (sides.dtype == DType::kF32) {
      EXPECT_EQ(got.trace.differing, expected.trace.differing);
    }
    if (!replay) {
      EXPECT_EQ(DifferentBits(got.log_prob, own.log_prob), 0) << "counted only";
      EXPECT_EQ(DifferentBits(got.gradients, own.gradients), 0);
      continue;
    }
    EXPECT_GT(DifferentBits(got.log_prob, own.log_prob), 0);
    // All but the one token that routes for itself compute with the same experts.
    if (sides.dtype == DType::kF32) {
      EXPECT_EQ(DifferentBits(got.log_prob, expected.log_prob), 0);
    }
    EXPECT_LT(Distance(got.log_prob, expected.log_prob), Tolerance(sides.dtype));
    EXPECT_LT(Distance(got.gradients, expected.gradients), 4 * Tolerance(sides.dtype));
  }
  // Its own experts, given back, change no bit.
  batch.routing = own.trace.experts;
  batch.replay_routing = true;
  const Pass replayed = RunOnDevice(sides, batch, true, 64);
  EXPECT_EQ(replayed.trace.differing, 0);
  EXPECT_EQ(DifferentBits(replayed.log_prob, own.log_prob), 0);
  EXPECT_EQ(DifferentBits(replayed.gradients, own.gradients), 0);
}

TEST_P(DeviceDecoderTest, ItsMemoryIsWithinWhatThePlanSays) {
  const size_t before = emulation::MemoryInUse();
  Sides sides(GetParam().config, GetParam().dtype);
  const size_t created = emulation::MemoryInUse() - before;
  EXPECT_EQ(created, DeviceDecoder::PagedBytes(sides.config, sides.dtype, Numerics::kMatched, kTestLimits) +
                         DeviceWeights::Bytes(sides.config, sides.dtype));
  const PackedBatch batch = testing::TestBatch(sides.config, std::vector<int>(30, 1), 5);
  for (const bool recompute : {true, false}) {
    std::vector<float> log_prob(30);
    ASSERT_TRUE(sides.decoder->ForwardPacked(sides.weights, batch, 1, recompute, log_prob.data(), nullptr).ok());
    const DeviceBuffer gradients =
        *DeviceBuffer::Allocate(static_cast<size_t>(sides.weights.layout().size) * sizeof(float), "gradients");
    ASSERT_TRUE(sides.decoder->Backward(sides.weights, batch, log_prob.data(), gradients.As<float>()).ok());
    const size_t held = emulation::MemoryInUse() - before - created - gradients.bytes();
    const size_t planned = DeviceDecoder::TrainingBytes(sides.config, sides.dtype, 30, recompute);
    EXPECT_LE(held, planned);
    EXPECT_GE(held, planned * 9 / 10);
  }
}

TEST(DeviceDecoderVocabularyTest, ChunksOfTheVocabularyDoNotEnterTheBits) {
  // More than a chunk, and a hidden state that the product of the last, small chunk alone would cut into slices.
  ModelConfig config = SmallDense();
  config.vocab_size = kLogitColumns + 100;
  config.hidden_size = 256;
  config.num_layers = 1;
  Sides sides(config, DType::kF16);
  Sequences sequences = MakeSequences(config, {4});
  sequences[0][2] = static_cast<int32_t>(kLogitColumns + 7);
  ExpectEqualBits(PagedLogProbs(sides, sequences, 1, [](int, int) { return 2; }),
                  PackedLogProbs(sides, sequences, 1, true), "a vocabulary of two chunks");
}

TEST(DeviceDecoderErrorsTest, ABatchThatDoesNotFitIsAnErrorAndTheNextOneThatDoesRuns) {
  Sides sides(SmallDense(), DType::kF16);
  emulation::SetMemoryLimit(emulation::MemoryInUse() + (size_t{300} << 10));
  const PackedBatch large = testing::TestBatch(sides.config, {400, 400}, 6);
  std::vector<float> log_prob(800);
  const absl::Status status = sides.decoder->ForwardPacked(sides.weights, large, 1, true, log_prob.data(), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("activations of training"), std::string::npos) << status;
  const PackedBatch small = testing::TestBatch(sides.config, {4, 5}, 6);
  EXPECT_TRUE(sides.decoder->ForwardPacked(sides.weights, small, 1, true, log_prob.data(), nullptr).ok());
}

TEST(DeviceDecoderErrorsTest, AKernelThatFailsInTheForwardPassIsAnError) {
  Sides sides(SmallDense(), DType::kF16);
  const PackedBatch batch = testing::TestBatch(sides.config, {4, 5}, 6);
  std::vector<float> log_prob(9);
  emulation::FailWork(12, cudaErrorIllegalAddress);
  const absl::Status status = sides.decoder->ForwardPacked(sides.weights, batch, 1, true, log_prob.data(), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(status.message().find("the forward pass on CUDA device 0: a kernel accessed an illegal address"),
            std::string::npos)
      << status;
}

TEST(DeviceDecoderErrorsTest, AShapeWithoutAKernelIsRefusedInOneLine) {
  OnDevice device;
  ModelConfig config = SmallDense();
  config.head_dim = 24;
  const auto gemm = MakeMatchedGemm();
  const auto decoder =
      DeviceDecoder::Create(config, DType::kF16, Numerics::kMatched, kTestLimits, gemm.get(), &device.stream);
  EXPECT_EQ(decoder.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(decoder.status().message().find("head_dim 24"), std::string::npos) << decoder.status();
}

}  // namespace
}  // namespace lockstep::cuda
