#include "learner/batch_shape.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "engine/base/philox.h"
#include "engine/model/decoder.h"
#include "learner/mismatch.h"

namespace lockstep {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;
using LogProbs = std::vector<std::vector<float>>;  // [sequence][position]: of the token at position + 1

constexpr float kTemperature = 1.0f;

struct Engine {
  const Weights& weights;
  Ops& ops;
  Decoder& decoder;
};

// The training pass, `per_batch` sequences at a time.
LogProbs Packed(const Engine& engine, const Sequences& sequences, size_t per_batch) {
  LogProbs result(sequences.size());
  for (size_t begin = 0; begin < sequences.size(); begin += per_batch) {
    const size_t end = std::min(sequences.size(), begin + per_batch);
    PackedBatch batch;
    batch.cu_seqlens.push_back(0);
    for (size_t i = begin; i < end; ++i) {
      const int32_t first = static_cast<int32_t>(batch.tokens.size());
      batch.tokens.insert(batch.tokens.end(), sequences[i].begin(), sequences[i].end());
      for (size_t j = 1; j < sequences[i].size(); ++j) {
        batch.loss_rows.push_back(first + static_cast<int32_t>(j) - 1);
        batch.targets.push_back(sequences[i][j]);
      }
      batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
    std::vector<float> log_prob(batch.targets.size());
    engine.decoder.ForwardPacked(engine.weights, batch, kTemperature, /*recompute=*/true, log_prob.data(), nullptr);
    auto at = log_prob.begin();
    for (size_t i = begin; i < end; ++i) {
      const auto next = at + static_cast<int64_t>(sequences[i].size()) - 1;
      result[i].assign(at, next);
      at = next;
    }
  }
  return result;
}

// One engine step: the next `chunk` tokens of each member, whose log-probs are added to the result.
void Step(const Engine& engine, const Sequences& sequences, const std::vector<size_t>& members, size_t chunk,
          const std::vector<std::vector<int32_t>>& pages, const KvStorage& cache, std::vector<size_t>* done,
          LogProbs* result) {
  const ModelConfig& config = engine.weights.config;
  PagedBatch step;
  for (size_t i : members) {
    const size_t begin = (*done)[i], end = std::min(sequences[i].size(), begin + chunk);
    step.sequences.push_back({.row_begin = static_cast<int64_t>(step.tokens.size()),
                              .row_count = static_cast<int64_t>(end - begin),
                              .position_begin = static_cast<int64_t>(begin),
                              .pages = pages[i]});
    for (size_t j = begin; j < end; ++j) {
      step.output_rows.push_back(static_cast<int32_t>(step.tokens.size()));
      step.tokens.push_back(sequences[i][j]);
      step.positions.push_back(static_cast<int32_t>(j));
    }
  }
  const int64_t rows = static_cast<int64_t>(step.tokens.size());
  Buffer hidden_buffer(rows * config.hidden_size * DTypeSize(engine.weights.dtype));
  const Tensor hidden(hidden_buffer.data(), engine.weights.dtype, rows, config.hidden_size);
  std::vector<float> logits(rows * config.vocab_size);
  engine.decoder.ForwardPaged(engine.weights, step, cache, hidden);
  engine.decoder.Logits(engine.weights, hidden, Tensor(logits.data(), DType::kF32, rows, config.vocab_size));
  const float* row = logits.data();
  for (size_t m = 0; m < members.size(); ++m) {
    const size_t i = members[m];
    for (int64_t j = 0; j < step.sequences[m].row_count; ++j, row += config.vocab_size) {
      if (++(*done)[i] == sequences[i].size()) continue;
      const float lse = engine.ops.LogSumExp(row, config.vocab_size, kTemperature);
      (*result)[i].push_back(row[sequences[i][(*done)[i]]] * (1.0f / kTemperature) - lse);
    }
  }
}

// The rollout's passes: the first `batch` unfinished sequences advance by `chunk` tokens in each engine step.
LogProbs Paged(const Engine& engine, const Sequences& sequences, size_t batch, size_t chunk) {
  std::vector<std::vector<int32_t>> pages(sequences.size());
  int32_t next_page = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (size_t begin = 0; begin < sequences[i].size(); begin += kPageTokens) pages[i].push_back(next_page++);
  }
  const KvStorage cache(engine.weights.config, engine.weights.dtype, next_page);
  LogProbs result(sequences.size());
  std::vector<size_t> done(sequences.size(), 0);
  while (true) {
    std::vector<size_t> members;
    for (size_t i = 0; i < sequences.size() && members.size() < batch; ++i) {
      if (done[i] < sequences[i].size()) members.push_back(i);
    }
    if (members.empty()) return result;
    Step(engine, sequences, members, chunk, pages, cache, &done, &result);
  }
}

BatchShapeRow Compare(std::string shape, const LogProbs& yardstick, const LogProbs& other) {
  MismatchStats stats;
  double different = 0;
  for (size_t i = 0; i < yardstick.size(); ++i) {
    LOCKSTEP_CHECK(yardstick[i].size() == other[i].size(), "every shape computes the same tokens");
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(other[i].size())};
    stats.AddSequences(offsets, yardstick[i], other[i]);
    for (size_t t = 0; t < other[i].size(); ++t) different += yardstick[i][t] != other[i][t] ? 1 : 0;
  }
  const MismatchReport report = stats.Report();
  return {.shape = std::move(shape),
          .tokens = static_cast<int64_t>(stats.tokens),
          .outside = report.ratio_outside,
          .different = stats.tokens > 0 ? different / stats.tokens : 0,
          .mean_abs_log_ratio = report.mean_abs_log_ratio,
          .max_abs_log_ratio = report.max_abs_log_ratio};
}

}  // namespace

std::vector<BatchShapeRow> MeasureBatchShapes(const Weights& weights, Numerics numerics, int threads,
                                              const Sequences& sequences) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, threads);
  Decoder decoder(weights.config, weights.dtype, ops.get());
  const Engine engine = {weights, *ops, decoder};
  const LogProbs yardstick = Packed(engine, sequences, 1);
  const size_t all = sequences.size();
  std::vector<BatchShapeRow> rows;
  rows.push_back(Compare("training, 4 sequences a batch", yardstick, Packed(engine, sequences, 4)));
  rows.push_back(Compare("training, all in one batch", yardstick, Packed(engine, sequences, all)));
  rows.push_back(Compare("prefill, chunks of 16", yardstick, Paged(engine, sequences, 1, 16)));
  rows.push_back(Compare("prefill, chunks of 64", yardstick, Paged(engine, sequences, 1, 64)));
  rows.push_back(Compare("decode, 1 row", yardstick, Paged(engine, sequences, 1, 1)));
  rows.push_back(Compare("decode, 8 rows", yardstick, Paged(engine, sequences, 8, 1)));
  rows.push_back(Compare("decode, all rows", yardstick, Paged(engine, sequences, all, 1)));
  return rows;
}

Sequences RandomSequences(const ModelConfig& config, int count, int max_length, uint64_t seed) {
  Sequences sequences;
  for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i) {
    const uint32_t length = 2 + Philox4x32(seed, 0, i)[0] % static_cast<uint32_t>(std::max(1, max_length - 1));
    std::vector<int32_t>& tokens = sequences.emplace_back();
    for (uint32_t t = 0; t < length; ++t) {
      tokens.push_back(static_cast<int32_t>(Philox4x32(seed, 1 + t, i)[0] % static_cast<uint64_t>(config.vocab_size)));
    }
  }
  return sequences;
}

}  // namespace lockstep
