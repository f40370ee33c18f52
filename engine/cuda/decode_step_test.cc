// Decode steps on the emulated device: graphs against calls, rows that come and go against rows alone, and what was
// drawn against the packed forward pass, all by bits.
#include "engine/cuda/decode_step.h"

#include <algorithm>

#include "engine/cuda/decoder_test_util.h"
#include "engine/cuda/mixed_step.h"
#include "engine/model/routing.h"

namespace lockstep::cuda {
namespace {

constexpr DecodeStep::Limits kLimits = {.rows = 5, .sequence_pages = 6};
constexpr MixedStep::Limits kMixed = {.outputs = 8, .logit_rows = 3};

struct Case {
  std::string name;
  ModelConfig config;
  DType dtype;
};

std::vector<Case> Cases() {
  return {{"Qwen2F32", SmallDense(), DType::kF32},
          {"Qwen2F16", SmallDense(), DType::kF16},
          {"Qwen3BF16", SmallNormed(), DType::kBF16},
          {"Qwen3MoeF16", SmallMixture(), DType::kF16}};
}

class DecodeStepTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Models, DecodeStepTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// A sequence as an engine knows it.
struct Sample {
  uint64_t group = 0;
  std::vector<int32_t> tokens;  // prompt, then what was drawn
  size_t prompt = 0;
  std::vector<float> log_probs;  // of what was drawn
  std::vector<int32_t> pages;
  std::string routing;  // of the tokens that were computed

  SamplingRow Next() const {
    return {.temperature = kTestTemperature,
            .token_index = static_cast<uint32_t>(log_probs.size()),
            .seed = 11,
            .group_id = group};
  }
  void Take(int32_t token, float log_prob) {
    tokens.push_back(token);
    log_probs.push_back(log_prob);
  }
};

class Engine {
 public:
  Engine(Sides& sides, bool graphs, const DecodeStep::Limits& limits = kLimits)
      : sides_(sides),
        cache_(*DeviceKv::Allocate(sides.config, sides.dtype, 64, sides.device.stream)),
        mixed_(*MixedStep::Create(sides.decoder.get(), &cache_, kMixed)),
        step_(*DecodeStep::Create(sides.decoder.get(), &cache_, limits, graphs)) {}

  // A prompt with pages for `pages` times 16 tokens, and its first token.
  Sample Prefill(uint64_t group, int length, int pages) {
    Sample sample;
    sample.group = group;
    for (int i = 0; i < length; ++i) {
      sample.tokens.push_back(static_cast<int32_t>(testing::Hash32(group, i) % sides_.config.vocab_size));
    }
    sample.prompt = sample.tokens.size();
    for (int i = 0; i < pages; ++i) sample.pages.push_back(next_page_++);
    PagedBatch batch;
    batch.tokens = sample.tokens;
    for (int i = 0; i < length; ++i) batch.positions.push_back(i);
    batch.sequences = {{0, length, 0, sample.pages}};
    batch.output_rows = {length - 1};
    const SamplingRow sampling[] = {sample.Next()};
    const auto draws = mixed_.Run(sides_.weights, batch, sampling, &sample.routing);
    EXPECT_TRUE(draws.ok()) << draws.status();
    sample.Take(draws->tokens[0], draws->log_probs[0]);
    return sample;
  }
  // Rows that the host knows all about.
  void Set(const std::vector<Sample*>& samples) {
    std::vector<DecodeStep::Row> rows;
    for (const Sample* sample : samples) {
      rows.push_back({.from = -1,
                      .token = sample->tokens.back(),
                      .position = static_cast<int32_t>(sample->tokens.size()) - 1,
                      .pages = sample->pages,
                      .sampling = sample->Next()});
    }
    const absl::Status status = step_->SetRows(rows);
    EXPECT_TRUE(status.ok()) << status;
  }
  uint64_t Launch() { return Launch(sides_.weights); }
  uint64_t Launch(const DeviceWeights& weights) {
    const auto step = step_->Launch(weights);
    EXPECT_TRUE(step.ok()) << step.status();
    return *step;
  }
  void Take(uint64_t step, const std::vector<Sample*>& samples) {
    const auto draws = step_->Read(step);
    ASSERT_TRUE(draws.ok()) << draws.status();
    const size_t row_bytes = RoutingShape(sides_.config).row_bytes();
    for (size_t i = 0; i < samples.size(); ++i) {
      if (samples[i] == nullptr) continue;
      samples[i]->Take(draws->tokens[i], draws->log_probs[i]);
      samples[i]->routing.append(reinterpret_cast<const char*>(draws->routing.data()) + i * row_bytes, row_bytes);
    }
  }
  void Run(const std::vector<Sample*>& samples, int steps) {
    for (int i = 0; i < steps; ++i) Take(Launch(), samples);
  }
  DecodeStep& step() { return *step_; }

 private:
  Sides& sides_;
  DeviceKv cache_;
  MixedStep mixed_;
  std::unique_ptr<DecodeStep> step_;
  int32_t next_page_ = 0;
};

// Each alone: what a sample draws depends on nothing else.
Sample Alone(Sides& sides, uint64_t group, int length, int pages, int steps) {
  Engine engine(sides, false);
  Sample sample = engine.Prefill(group, length, pages);
  engine.Set({&sample});
  engine.Run({&sample}, steps);
  return sample;
}

void ExpectSame(const Sample& got, const Sample& expected) {
  EXPECT_EQ(got.tokens, expected.tokens) << "group " << got.group;
  EXPECT_EQ(DifferentBits(got.log_probs, expected.log_probs), 0) << "group " << got.group;
  EXPECT_EQ(got.routing, expected.routing) << "group " << got.group;
}

TEST(DecodeBucketTest, BucketsAreFewAndHoldTheirRows) {
  int64_t last = 0, buckets = 0;
  for (int64_t rows = 1; rows <= 600; ++rows) {
    const int64_t bucket = DecodeBucket(rows);
    EXPECT_GE(bucket, rows);
    EXPECT_GE(bucket, last);
    EXPECT_EQ(DecodeBucket(bucket), bucket);
    buckets += bucket != last ? 1 : 0;
    last = bucket;
  }
  EXPECT_EQ(buckets, 3 + 32 + 6);
}

TEST_P(DecodeStepTest, GraphsRowsThatComeAndGoAndLateReadingGiveTheBitsOfEachSampleAlone) {
  Sides sides(GetParam().config, GetParam().dtype);
  const Sample alone[] = {Alone(sides, 1, 5, 3, 9), Alone(sides, 2, 16, 3, 9), Alone(sides, 3, 30, 3, 5)};
  Engine engine(sides, true);
  Sample a = engine.Prefill(1, 5, 3), b = engine.Prefill(2, 16, 3);
  engine.Set({&a, &b});
  engine.Run({&a, &b}, 3);
  // A step is read one late while the next one runs.
  const uint64_t fourth = engine.Launch(), fifth = engine.Launch();
  engine.Take(fourth, {&a, &b});
  engine.Take(fifth, {&a, &b});
  EXPECT_EQ(engine.step().graphs(), 1);
  // A third comes; the order changes.
  Sample c = engine.Prefill(3, 30, 3);
  engine.Set({&c, &b, &a});
  engine.Run({&c, &b, &a}, 4);
  EXPECT_EQ(engine.step().graphs(), 2);
  ExpectSame(a, alone[0]);
  ExpectSame(b, alone[1]);
  c.tokens.resize(c.prompt + 5);
  ExpectSame({c.group, c.tokens, c.prompt, c.log_probs, c.pages, c.routing},
             {3,
              {alone[2].tokens.begin(), alone[2].tokens.begin() + 35},
              30,
              {alone[2].log_probs.begin(), alone[2].log_probs.begin() + 5},
              {},
              alone[2].routing.substr(0, c.routing.size())});
}

TEST_P(DecodeStepTest, RowsGoOnFromTokensThatTheHostHasNotSeen) {
  Sides sides(GetParam().config, GetParam().dtype);
  const Sample alone[] = {Alone(sides, 1, 5, 3, 4), Alone(sides, 2, 16, 3, 4)};
  Engine engine(sides, true);
  Sample a = engine.Prefill(1, 5, 3), b = engine.Prefill(2, 16, 3), dropped = engine.Prefill(7, 3, 2);
  engine.Set({&dropped, &a, &b});
  const uint64_t first = engine.Launch(), second = engine.Launch();
  std::vector<DecodeStep::Row> rows;
  for (const auto& [from, sample] : {std::pair<int32_t, Sample*>{2, &b}, {1, &a}}) {
    SamplingRow sampling = sample->Next();
    sampling.token_index += 2;
    rows.push_back({.from = from,
                    .token = 0,
                    .position = static_cast<int32_t>(sample->tokens.size()) + 1,
                    .pages = sample->pages,
                    .sampling = sampling});
  }
  ASSERT_TRUE(engine.step().SetRows(rows).ok());
  const uint64_t third = engine.Launch(), fourth = engine.Launch();
  engine.Take(first, {nullptr, &a, &b});
  engine.Take(second, {nullptr, &a, &b});
  engine.Take(third, {&b, &a});
  engine.Take(fourth, {&b, &a});
  ExpectSame(a, alone[0]);
  ExpectSame(b, alone[1]);
}

TEST_P(DecodeStepTest, RowsThatGoOnAsTheyAreAreNotSentAgain) {
  Sides sides(GetParam().config, GetParam().dtype);
  const Sample alone[] = {Alone(sides, 1, 5, 3, 5), Alone(sides, 2, 14, 3, 4)};
  Engine engine(sides, true);
  Sample a = engine.Prefill(1, 5, 3), b = engine.Prefill(2, 14, 3);
  const size_t known[] = {a.tokens.size(), b.tokens.size()};
  // The rows `steps` steps on, of which the host has seen none; b has as many pages as it needs.
  const auto set = [&](int steps, std::vector<const Sample*> samples, int64_t uploads) {
    std::vector<DecodeStep::Row> rows;
    for (size_t i = 0; i < samples.size(); ++i) {
      const auto position = static_cast<int32_t>(known[i]) - 1 + steps;
      SamplingRow sampling = samples[i]->Next();
      sampling.token_index = 1 + static_cast<uint32_t>(steps);
      const size_t pages = i == 0 ? 3 : static_cast<size_t>(position / 16) + 1;
      rows.push_back({.from = steps == 0 ? -1 : static_cast<int32_t>(i),
                      .token = steps == 0 ? samples[i]->tokens.back() : 0,
                      .position = position,
                      .pages = std::span(samples[i]->pages).first(pages),
                      .sampling = sampling});
    }
    EXPECT_TRUE(engine.step().SetRows(rows).ok());
    EXPECT_EQ(engine.step().uploads(), uploads) << steps;
    return engine.Launch();
  };
  std::vector<uint64_t> steps = {set(0, {&a, &b}, 1), set(1, {&a, &b}, 1)};
  steps.push_back(set(2, {&a, &b}, 2));  // b takes a page
  steps.push_back(set(3, {&a, &b}, 2));
  for (const uint64_t step : steps) engine.Take(step, {&a, &b});
  engine.Take(set(4, {&a}, 3), {&a});  // b is gone
  ExpectSame(a, alone[0]);
  ExpectSame(b, alone[1]);
}

TEST_P(DecodeStepTest, WhatWasDrawnHasTheLogProbsAndExpertsOfThePackedForwardPass) {
  Sides sides(GetParam().config, GetParam().dtype);
  const Sample sample = Alone(sides, 4, 13, 3, 12);
  const PackedBatch batch = PackSequences({sample.tokens}, 0, 1);
  std::vector<float> log_prob(batch.targets.size());
  RoutingTrace trace;
  ASSERT_TRUE(
      sides.decoder->ForwardPacked(sides.weights, batch, kTestTemperature, true, log_prob.data(), nullptr, &trace)
          .ok());
  EXPECT_EQ(DifferentBits(sample.log_probs, {log_prob.begin() + 12, log_prob.end()}), 0);
  EXPECT_EQ(sample.routing, trace.experts.substr(0, sample.routing.size()));
  EXPECT_EQ(sample.routing.size(), 25 * RoutingShape(sides.config).row_bytes()) << "all but the last token";
}

TEST_P(DecodeStepTest, ARowWithoutANextPageStopsAndTheOthersGoOn) {
  Sides sides(GetParam().config, GetParam().dtype);
  const Sample alone[] = {Alone(sides, 1, 14, 1, 2), Alone(sides, 2, 16, 3, 7)};
  Engine engine(sides, true);
  Sample a = engine.Prefill(1, 14, 1), b = engine.Prefill(2, 16, 3);  // a's page holds 16 tokens: two steps
  engine.Set({&a, &b});
  engine.Run({&a, &b}, 2);
  engine.Run({nullptr, &b}, 5);
  ExpectSame(a, alone[0]);
  ExpectSame(b, alone[1]);
}

TEST_P(DecodeStepTest, AFlipOfTheWeightsTakesTheOtherSetsGraphs) {
  Sides sides(GetParam().config, GetParam().dtype);
  std::vector<float> other = testing::TestArena(sides.config);
  for (size_t i = 0; i < other.size(); ++i) other[i] *= i % 3 == 0 ? 0.5f : 1.0f;
  DeviceWeights second = *DeviceWeights::Allocate(sides.config, sides.dtype, sides.device.stream);
  ASSERT_TRUE(second.Load(other.data(), sides.device.stream, sides.device.staging).ok());
  // kept 1: the other set's graph makes room, and is captured anew.
  const auto run = [&](bool graphs, int64_t kept, int64_t captured) {
    Engine engine(sides, graphs, {.rows = kLimits.rows, .sequence_pages = kLimits.sequence_pages, .graphs = kept});
    Sample sample = engine.Prefill(1, 5, 3);
    engine.Set({&sample});
    for (const char set : std::string("aabbaba")) {
      engine.Take(engine.Launch(set == 'a' ? sides.weights : second), {&sample});
    }
    EXPECT_EQ(engine.step().graphs(), captured);
    engine.step().Forget(second);
    return sample;
  };
  const Sample eager = run(false, 9, 0);
  ExpectSame(run(true, 9, 2), eager);
  ExpectSame(run(true, 1, 3), eager);
  EXPECT_NE(eager.log_probs, Alone(sides, 1, 5, 3, 7).log_probs);
}

TEST(DecodeStepLimitsTest, ItsMemoryIsWhatThePlanSaysAndTooLittleIsAnError) {
  Sides sides(SmallMixture(), DType::kF16);
  const DeviceKv cache = *DeviceKv::Allocate(sides.config, sides.dtype, 64, sides.device.stream);
  const size_t before = emulation::MemoryInUse(), bytes = DecodeStep::Bytes(sides.config, sides.dtype, kLimits);
  {
    const auto step = *DecodeStep::Create(sides.decoder.get(), &cache, kLimits);
    EXPECT_EQ(emulation::MemoryInUse() - before, bytes);
    const auto mixed = *MixedStep::Create(sides.decoder.get(), &cache, kMixed);
    EXPECT_EQ(emulation::MemoryInUse() - before - bytes, MixedStep::Bytes(sides.config, sides.dtype, kMixed));
  }
  emulation::SetMemoryLimit(before + bytes - 1);
  EXPECT_EQ(DecodeStep::Create(sides.decoder.get(), &cache, kLimits).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(DecodeStepLimitsTest, SeveralSamplesOfAPromptDrawFromOneRow) {
  Sides sides(SmallDense(), DType::kF16);
  const DeviceKv cache = *DeviceKv::Allocate(sides.config, sides.dtype, 4, sides.device.stream);
  MixedStep mixed = *MixedStep::Create(sides.decoder.get(), &cache, kMixed);
  const std::vector<int32_t> pages = {2};
  PagedBatch batch;
  batch.tokens = {5, 6, 7};
  batch.positions = {0, 1, 2};
  batch.sequences = {{0, 3, 0, pages}};
  batch.output_rows = {2, 2, 2, 2, 2, 2, 2};
  std::vector<SamplingRow> sampling(7, {.temperature = 1, .seed = 3, .group_id = 9});
  for (uint32_t i = 0; i < 6; ++i) sampling[i].sample_index = i;
  sampling[6].temperature = 0;
  const MixedStep::Draws draws = *mixed.Run(sides.weights, batch, sampling);
  const MixedStep::Draws again = *mixed.Run(sides.weights, batch, sampling);
  EXPECT_EQ(draws.tokens, again.tokens);
  EXPECT_NE(std::count(draws.tokens.begin(), draws.tokens.end(), draws.tokens[0]), 7);
  EXPECT_EQ(draws.log_probs[6], 0) << "greedy";
  for (size_t i = 0; i < 6; ++i) {
    for (size_t j = 0; j < 6; ++j) {
      if (draws.tokens[i] == draws.tokens[j]) {
        EXPECT_EQ(draws.log_probs[i], draws.log_probs[j]);
      }
    }
  }
}

}  // namespace
}  // namespace lockstep::cuda
