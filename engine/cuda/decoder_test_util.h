// What the tests of the device's decoder share: the decoders of both sides, and passes through them.
#ifndef LOCKSTEP_ENGINE_CUDA_DECODER_TEST_UTIL_H_
#define LOCKSTEP_ENGINE_CUDA_DECODER_TEST_UTIL_H_

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda/device_decoder.h"
#include "engine/cuda/paged_stage.h"
#include "engine/cuda/test_util.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/ops_test_util.h"
#include "engine/model/decoder.h"

namespace lockstep::cuda {

inline constexpr PagedLimits kTestLimits = {.rows = 192, .decode_rows = 32, .max_position = 511};

// A device with weights and a decoder, beside the CPU's.
struct Sides {
  Sides(const ModelConfig& config, DType dtype, Numerics numerics = Numerics::kMatched)
      : config(config),
        dtype(dtype),
        weights(device.Put(config, dtype)),
        gemm(MakeMatchedGemm()),
        decoder(*DeviceDecoder::Create(config, dtype, numerics, kTestLimits, gemm.get(), &device.stream)),
        cpu_weights(testing::TestWeights(config, dtype)),
        ops(MakeCpuOps(Numerics::kMatched, 1)),
        cpu(config, dtype, ops.get()) {}

  ModelConfig config;
  DType dtype;
  OnDevice device;
  DeviceWeights weights;
  std::unique_ptr<DeviceGemm> gemm;
  std::unique_ptr<DeviceDecoder> decoder;
  Weights cpu_weights;
  std::unique_ptr<Ops> ops;
  Decoder cpu;
};

struct Pass {
  std::vector<float> log_prob, entropy, gradients;  // gradients in ParamLayout's order
  RoutingTrace trace;
};

inline std::vector<float> Coefficients(size_t count, float scale) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = scale * (static_cast<float>(i % 7) - 2.5f);
  return values;
}

inline constexpr float kTestTemperature = 0.8f;

inline Pass RunOnDevice(Sides& sides, const PackedBatch& batch, bool recompute, float scale) {
  Pass pass;
  pass.log_prob.resize(batch.targets.size());
  pass.entropy.resize(batch.targets.size());
  absl::Status status = sides.decoder->ForwardPacked(sides.weights, batch, kTestTemperature, recompute,
                                                     pass.log_prob.data(), pass.entropy.data(), &pass.trace);
  EXPECT_TRUE(status.ok()) << status;
  const ArenaLayout& layout = sides.weights.layout();
  const DeviceBuffer gradients = *DeviceBuffer::Allocate(static_cast<size_t>(layout.size) * sizeof(float), "gradients");
  EXPECT_TRUE(gradients.Zero(sides.device.stream).ok());
  status = sides.decoder->Backward(sides.weights, batch, Coefficients(batch.targets.size(), scale).data(),
                                   gradients.As<float>());
  EXPECT_TRUE(status.ok()) << status;
  pass.gradients.resize(static_cast<size_t>(layout.params.total_size));
  status = StoreArena(layout, DType::kF32, gradients.data(), pass.gradients.data(), sides.device.stream,
                      sides.device.staging);
  EXPECT_TRUE(status.ok()) << status;
  return pass;
}

inline Pass RunOnCpu(Sides& sides, const PackedBatch& batch, float scale) {
  Pass pass;
  pass.log_prob.resize(batch.targets.size());
  pass.entropy.resize(batch.targets.size());
  pass.gradients.assign(static_cast<size_t>(sides.cpu_weights.layout.total_size), 0.0f);
  sides.cpu.ForwardPacked(sides.cpu_weights, batch, kTestTemperature, false, pass.log_prob.data(), pass.entropy.data(),
                          &pass.trace);
  sides.cpu.Backward(sides.cpu_weights, batch, kTestTemperature, Coefficients(batch.targets.size(), scale).data(),
                     pass.gradients.data());
  return pass;
}

inline int64_t DifferentBits(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  int64_t different = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    different += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]) ? 1 : 0;
  }
  return different;
}

// |a - b| / |b|, of vectors.
inline double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  EXPECT_GT(size, 0);
  return std::sqrt(difference / size);
}

// Steps of the storage type relative to the size of things.
inline double Tolerance(DType dtype) { return dtype == DType::kF32 ? 1e-5 : dtype == DType::kF16 ? 6e-3 : 5e-2; }

using Sequences = std::vector<std::vector<int32_t>>;
using LogProbs = std::vector<std::vector<float>>;  // [sequence][position]: of the token at position + 1

inline Sequences MakeSequences(const ModelConfig& config, const std::vector<int>& lengths) {
  Sequences sequences;
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::vector<int32_t>& tokens = sequences.emplace_back(lengths[i]);
    for (int j = 0; j < lengths[i]; ++j) {
      tokens[static_cast<size_t>(j)] = static_cast<int32_t>(testing::Hash32(1000 + i, j) % config.vocab_size);
    }
  }
  return sequences;
}

// The sequences [begin, end) packed, with a loss row for each token that has a next one.
inline PackedBatch PackSequences(const Sequences& sequences, size_t begin, size_t end) {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  for (size_t i = begin; i < end; ++i) {
    for (size_t j = 0; j < sequences[i].size(); ++j) {
      if (j + 1 < sequences[i].size()) {
        batch.loss_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
        batch.targets.push_back(sequences[i][j + 1]);
      }
      batch.tokens.push_back(sequences[i][j]);
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

inline LogProbs PackedLogProbs(Sides& sides, const Sequences& sequences, size_t per_call, bool recompute) {
  LogProbs result;
  for (size_t begin = 0; begin < sequences.size(); begin += per_call) {
    const size_t end = std::min(sequences.size(), begin + per_call);
    const PackedBatch batch = PackSequences(sequences, begin, end);
    std::vector<float> log_prob(batch.targets.size());
    const absl::Status status =
        sides.decoder->ForwardPacked(sides.weights, batch, kTestTemperature, recompute, log_prob.data(), nullptr);
    EXPECT_TRUE(status.ok()) << status;
    const float* at = log_prob.data();
    for (size_t i = begin; i < end; ++i) {
      result.emplace_back(at, at + sequences[i].size() - 1);
      at += sequences[i].size() - 1;
    }
  }
  return result;
}

// Pages of all sequences, lying all over the cache.
inline std::vector<std::vector<int32_t>> ScatterPages(const std::vector<int>& lengths, int* total) {
  int count = 0;
  for (const int length : lengths) count += (length + static_cast<int>(kPageTokens) - 1) / kPageTokens;
  *total = count + 1;
  std::vector<std::vector<int32_t>> pages;
  int next = 0;
  for (const int length : lengths) {
    pages.emplace_back();
    for (int64_t i = 0; i < length; i += kPageTokens) {
      pages.back().push_back(static_cast<int32_t>(int64_t{next++} * 1009 % *total));
    }
  }
  return pages;
}

// The log-probs of a paged pass that takes, each step, chunk(sequence, position) tokens of the first `batch` unfinished
// sequences.
inline LogProbs PagedLogProbs(Sides& sides, const Sequences& sequences, size_t batch,
                              const std::function<int(int, int)>& chunk) {
  const ModelConfig& config = sides.config;
  const Stream& stream = sides.device.stream;
  std::vector<int> lengths;
  for (const auto& tokens : sequences) lengths.push_back(static_cast<int>(tokens.size()));
  int total = 0;
  const auto pages = ScatterPages(lengths, &total);
  const DeviceKv cache = *DeviceKv::Allocate(config, sides.dtype, total, stream);
  PagedStage stage;
  LogProbs result(sequences.size());
  std::vector<size_t> done(sequences.size(), 0);
  while (true) {
    PagedBatch step;
    std::vector<std::pair<size_t, size_t>> outputs;  // sequence, position
    for (size_t i = 0, members = 0; i < sequences.size() && members < batch; ++i) {
      if (done[i] == sequences[i].size()) continue;
      ++members;
      const auto begin = static_cast<int>(done[i]);
      const int count = std::min<int>(chunk(static_cast<int>(i), begin), static_cast<int>(sequences[i].size()) - begin);
      step.sequences.push_back({static_cast<int64_t>(step.tokens.size()), count, begin, pages[i]});
      for (int j = begin; j < begin + count; ++j) {
        if (static_cast<size_t>(j) + 1 < sequences[i].size()) {
          step.output_rows.push_back(static_cast<int32_t>(step.tokens.size()));
          outputs.emplace_back(i, j);
        }
        step.tokens.push_back(sequences[i][static_cast<size_t>(j)]);
        step.positions.push_back(j);
      }
      done[i] += static_cast<size_t>(count);
    }
    if (step.tokens.empty()) return result;
    const auto R = static_cast<int64_t>(outputs.size());
    const auto inputs = stage.Put(config, step, stream);
    EXPECT_TRUE(inputs.ok()) << inputs.status();
    const Matrix hidden(sides.dtype, R, config.hidden_size), logits(DType::kF32, R, config.vocab_size);
    absl::Status status = sides.decoder->ForwardPaged(sides.weights, *inputs, cache, hidden.view);
    if (status.ok() && R > 0) status = sides.decoder->Logits(sides.weights, hidden.view, logits.view);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(stream.Wait("a step").ok());
    for (int64_t r = 0; r < R; ++r) {
      const auto [i, j] = outputs[static_cast<size_t>(r)];
      const int32_t target = sequences[i][j + 1];
      const float inverse = 1.0f / kTestTemperature, *row = static_cast<const float*>(logits.view.Row(r));
      LogitState state;
      float log_prob = 0;
      std::vector<float> scratch(static_cast<size_t>(LogProbAccumulateScratch(1, logits.view.cols)));
      EXPECT_EQ(LogProbAccumulate(logits.view.Rows(r, 1), 0, &target, &inverse, &state, scratch.data(), {}),
                cudaSuccess);
      EXPECT_EQ(LogProbFinish(&state, 1, &log_prob, nullptr, nullptr, {}), cudaSuccess);
      EXPECT_TRUE(std::isfinite(row[target]));
      result[i].push_back(log_prob);
    }
  }
}

inline void ExpectEqualBits(const LogProbs& actual, const LogProbs& expected, const std::string& where) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(DifferentBits(actual[i], expected[i]), 0) << where << ", sequence " << i << " of " << expected[i].size();
  }
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DECODER_TEST_UTIL_H_
