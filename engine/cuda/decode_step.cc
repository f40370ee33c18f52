#include "engine/cuda/decode_step.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/model/routing.h"

namespace lockstep::cuda {
namespace {

constexpr size_t kAlignment = 256;
// Context lengths come in powers of two of so many positions.
constexpr int64_t kContextBucket = 256;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct Carved {
  int32_t* tokens;
  Tensor hidden;
  DrawScratch scratch;
  int32_t* drawn;
  float* log_probs;
  uint8_t* routing;
};

Carved Carve(const ModelConfig& config, DType dtype, int64_t rows, Carver& carver) {
  Carved carved;
  carved.tokens = carver.TakeArray<int32_t>(rows);
  carved.hidden = carver.Take(dtype, rows, config.hidden_size);
  carved.scratch = CarveDraws(rows, config.vocab_size, carver);
  carved.drawn = carver.TakeArray<int32_t>(rows);
  carved.log_probs = carver.TakeArray<float>(rows);
  carved.routing = carver.TakeArray<uint8_t>(rows * static_cast<int64_t>(RoutingShape(config).row_bytes()));
  return carved;
}

// Bytes from `drawn` to the end of `routing`.
size_t ResultBytes(const ModelConfig& config, int64_t rows) {
  Carver counter(nullptr, kAlignment);
  counter.TakeArray<int32_t>(rows);
  counter.TakeArray<float>(rows);
  counter.TakeArray<uint8_t>(rows * static_cast<int64_t>(RoutingShape(config).row_bytes()));
  return counter.bytes();
}

bool Same(const SamplingRow& a, const SamplingRow& b) {
  return a.temperature == b.temperature && a.top_p == b.top_p && a.top_k == b.top_k &&
         a.sample_index == b.sample_index && a.token_index == b.token_index && a.seed == b.seed &&
         a.group_id == b.group_id;
}

}  // namespace

int64_t DecodeBucket(int64_t rows) {
  for (const int64_t bucket : {1, 2, 4}) {
    if (rows <= bucket) return bucket;
  }
  return rows <= 256 ? RoundUp(rows, 8) : RoundUp(rows, 64);
}

PagedLimits DecodeStep::DecoderLimits(const ModelConfig& config, const Limits& limits) {
  const int64_t rows = DecodeBucket(limits.rows);
  return {.rows = rows,
          .decode_rows = rows,
          .max_position = std::min(limits.sequence_pages * kPageTokens, config.max_position_embeddings) - 1};
}

size_t DecodeStep::Bytes(const ModelConfig& config, DType dtype, const Limits& limits) {
  const int64_t rows = DecodeBucket(limits.rows);
  Carver counter(nullptr, kAlignment);
  Carve(config, dtype, rows, counter);
  InputBlock inputs;
  for (int i = 0; i < 5; ++i) inputs.Add<int32_t>(rows);
  inputs.Add<SamplingRow>(rows);
  inputs.Add<float>(rows);
  inputs.Add<int32_t>(rows * limits.sequence_pages);
  return counter.bytes() + inputs.bytes();
}

absl::StatusOr<std::unique_ptr<DecodeStep>> DecodeStep::Create(DeviceDecoder* decoder, const DeviceKv* cache,
                                                               const Limits& limits, bool graphs) {
  const ModelConfig& config = decoder->config();
  std::unique_ptr<DecodeStep> step(new DecodeStep);
  DecodeStep& s = *step;
  s.decoder_ = decoder;
  s.cache_ = cache;
  s.limits_ = limits;
  s.limits_.rows = DecodeBucket(limits.rows);
  s.use_graphs_ = graphs;
  s.row_bytes_ = RoutingShape(config).row_bytes();
  const int64_t rows = s.limits_.rows;

  InputBlock& block = s.block_;
  block.Begin();
  s.from_ = block.Add<int32_t>(rows);
  s.given_ = block.Add<int32_t>(rows);
  s.positions_ = block.Add<int32_t>(rows);
  s.slots_ = block.Add<int32_t>(rows);
  s.row_sequence_ = block.Add<int32_t>(rows);
  s.sampling_ = block.Add<SamplingRow>(rows);
  s.inverse_temperature_ = block.Add<float>(rows);
  s.table_ = block.Add<int32_t>(rows * limits.sequence_pages);  // last: only the rows that are set are copied
  if (absl::Status status = block.Reserve(); !status.ok()) return status;

  Carver counter(nullptr, kAlignment);
  Carve(config, decoder->dtype(), rows, counter);
  auto memory = DeviceBuffer::Allocate(counter.bytes(), "a decode step");
  if (!memory.ok()) return memory.status();
  s.memory_ = *std::move(memory);
  Carver carver(s.memory_.data(), kAlignment);
  const Carved carved = Carve(config, decoder->dtype(), rows, carver);
  s.tokens_ = carved.tokens;
  s.hidden_ = carved.hidden;
  s.scratch_ = carved.scratch;
  s.drawn_ = carved.drawn;
  s.log_probs_ = carved.log_probs;
  s.routing_ = carved.routing;
  for (Results& results : s.results_) {
    auto host = PinnedBuffer::Allocate(ResultBytes(config, rows), "draws");
    if (!host.ok()) return host.status();
    auto event = Event::Create();
    if (!event.ok()) return event.status();
    results.host = *std::move(host);
    results.copied = *std::move(event);
  }
  return step;
}

// What AdvanceRows has made of the rows that were sent last, which the block still has.
bool DecodeStep::GoOn(std::span<const Row> rows) const {
  if (advanced_ == 0 || static_cast<int64_t>(rows.size()) != rows_) return false;
  const int64_t stride = limits_.sequence_pages;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    SamplingRow sampling = block_.Host(sampling_)[i];
    sampling.token_index += static_cast<uint32_t>(advanced_);
    if (row.from != static_cast<int32_t>(i) || row.position != block_.Host(positions_)[i] + advanced_ ||
        row.position >= static_cast<int64_t>(row.pages.size()) * kPageTokens || !Same(row.sampling, sampling)) {
      return false;
    }
    const std::span table(block_.Host(table_) + static_cast<int64_t>(i) * stride, static_cast<size_t>(stride));
    if (row.pages.size() > table.size() || !std::equal(row.pages.begin(), row.pages.end(), table.begin()) ||
        (row.pages.size() < table.size() && table[row.pages.size()] != -1)) {
      return false;
    }
  }
  return true;
}

absl::Status DecodeStep::SetRows(std::span<const Row> rows) {
  if (GoOn(rows)) return absl::OkStatus();
  const auto count = static_cast<int64_t>(rows.size()), stride = limits_.sequence_pages;
  const ModelConfig& config = decoder_->config();
  LOCKSTEP_CHECK(count <= limits_.rows, "more rows than the step was made for");
  const int64_t bucket = DecodeBucket(count);
  if (absl::Status status = block_.Reserve(); !status.ok()) return status;  // the host may write
  max_position_ = 0;
  for (int64_t i = 0; i < bucket; ++i) {
    const bool padded = i >= count;
    const Row row = padded ? Row{.pages = {}, .sampling = {.temperature = 0}} : rows[static_cast<size_t>(i)];
    const auto pages = static_cast<int64_t>(row.pages.size());
    LOCKSTEP_CHECK(row.from < rows_, "a row goes on from a row of the last step");
    LOCKSTEP_CHECK(row.token >= 0 && row.token < config.vocab_size, "token id outside the vocabulary");
    LOCKSTEP_CHECK(row.position >= 0 && row.position < config.max_position_embeddings && pages <= stride &&
                       (padded || row.position < pages * kPageTokens),
                   "a row's position has a page, and its pages fit the table");
    int32_t* const table = block_.Host(table_) + i * stride;
    std::copy(row.pages.begin(), row.pages.end(), table);
    std::fill(table + pages, table + stride, -1);
    block_.Host(from_)[i] = row.from;
    block_.Host(given_)[i] = row.token;
    block_.Host(positions_)[i] = row.position;
    block_.Host(row_sequence_)[i] = padded ? -1 : static_cast<int32_t>(i);
    block_.Host(slots_)[i] =
        padded ? -1
               : row.pages[static_cast<size_t>(row.position / kPageTokens)] * static_cast<int32_t>(kPageTokens) +
                     row.position % static_cast<int32_t>(kPageTokens);
    block_.Host(sampling_)[i] = row.sampling;
    block_.Host(inverse_temperature_)[i] = row.sampling.temperature == 0 ? 1.0f : 1.0f / row.sampling.temperature;
    max_position_ = std::max<int64_t>(max_position_, row.position);
  }
  rows_ = count;
  advanced_ = 0;
  ++uploads_;
  const Stream& stream = decoder_->stream();
  const size_t table_bytes = static_cast<size_t>(bucket * stride) * sizeof(int32_t);
  absl::Status status = block_.CopyFirst(table_.offset + table_bytes, stream);
  if (!status.ok()) return status;
  return CudaStatus(TakeTokens(block_.Device(from_), block_.Device(given_), drawn_, bucket, tokens_, stream.get()),
                    "the tokens of a new batch");
}

// Bounds the positions of the step that comes; one of few, since a graph is made for each.
int64_t DecodeStep::PositionBound() const {
  const int64_t longest = DecoderLimits(decoder_->config(), limits_).max_position;
  int64_t bound = kContextBucket;
  while (bound <= max_position_ && bound <= longest) bound *= 2;
  return std::min(bound - 1, longest);
}

absl::Status DecodeStep::Enqueue(const DeviceWeights& weights, int64_t bucket, int64_t max_position) {
  const PagedInputs inputs = {.rows = bucket,
                              .decode_rows = bucket,
                              .outputs = bucket,
                              .table_stride = limits_.sequence_pages,
                              .max_position = max_position,
                              .tokens = tokens_,
                              .positions = block_.Device(positions_),
                              .slots = block_.Device(slots_),
                              .row_sequence = block_.Device(row_sequence_),
                              .block_table = block_.Device(table_)};
  const Tensor hidden = hidden_.Rows(0, bucket);
  absl::Status status = decoder_->ForwardPaged(weights, inputs, *cache_, hidden, row_bytes_ == 0 ? nullptr : routing_);
  if (!status.ok()) return status;
  const DrawRows draws = {block_.Device(sampling_), block_.Device(inverse_temperature_), drawn_, log_probs_};
  status = Draw(*decoder_, weights, hidden, draws, scratch_);
  if (!status.ok()) return status;
  const DecodeRows rows = {.tokens = tokens_,
                           .positions = block_.Device(positions_),
                           .slots = block_.Device(slots_),
                           .row_sequence = block_.Device(row_sequence_),
                           .sampling = block_.Device(sampling_),
                           .block_table = block_.Device(table_),
                           .table_stride = limits_.sequence_pages,
                           .max_positions = decoder_->config().max_position_embeddings};
  return CudaStatus(AdvanceRows(rows, bucket, drawn_, decoder_->stream().get()), "the next step's inputs");
}

absl::Status DecodeStep::RunKind(const DeviceWeights& weights, int64_t bucket, int64_t max_position) {
  const Kind kind = {bucket, max_position, weights.arena()};
  const auto found = graphs_.find(kind);
  if (!use_graphs_ || found == graphs_.end()) {
    graphs_[kind] = {};
    return Enqueue(weights, bucket, max_position);
  }
  std::optional<Graph>& graph = found->second.graph;
  found->second.used = steps_;
  if (!graph.has_value()) {
    DropOldestGraph();
    auto captured = Graph::Capture(decoder_->stream(), [&] { return Enqueue(weights, bucket, max_position); });
    if (!captured.ok()) return captured.status();
    graph = *std::move(captured);
    ++graphs_captured_;
  }
  return graph->Launch(decoder_->stream());
}

// A graph that still runs is freed by the driver when it has ended (cuGraphExecDestroy).
void DecodeStep::DropOldestGraph() {
  auto oldest = graphs_.end();
  int64_t kept = 0;
  for (auto it = graphs_.begin(); it != graphs_.end(); ++it) {
    if (!it->second.graph.has_value()) continue;
    ++kept;
    if (oldest == graphs_.end() || it->second.used < oldest->second.used) oldest = it;
  }
  if (kept >= limits_.graphs) graphs_.erase(oldest);
}

absl::StatusOr<uint64_t> DecodeStep::Launch(const DeviceWeights& weights) {
  LOCKSTEP_CHECK(rows_ > 0, "a step has rows");
  const Stream& stream = decoder_->stream();
  Results& results = results_[steps_ % kResults];
  absl::Status status = results.copied.Wait();  // the host runs at most kResults steps ahead
  if (status.ok()) status = RunKind(weights, DecodeBucket(rows_), PositionBound());
  const size_t bytes =
      static_cast<size_t>(routing_ - reinterpret_cast<uint8_t*>(drawn_)) + static_cast<size_t>(rows_) * row_bytes_;
  if (status.ok()) status = stream.CopyToHost(results.host.data(), drawn_, bytes);
  if (status.ok()) status = results.copied.Record(stream);
  if (!status.ok()) return status;
  ++max_position_;
  ++advanced_;
  results.rows = rows_;
  results.step = steps_;
  return steps_++;
}

absl::StatusOr<DecodeStep::Draws> DecodeStep::Read(uint64_t step) const {
  const Results& results = results_[step % kResults];
  LOCKSTEP_CHECK(step < steps_ && results.step == step, "the results of a step are kept for a few steps");
  if (absl::Status status = results.copied.Wait(); !status.ok()) return status;
  const auto rows = static_cast<size_t>(results.rows);
  const char* const host = results.host.As<char>();
  const auto offset = [&](const void* device) {
    return static_cast<const char*>(device) - reinterpret_cast<const char*>(drawn_);
  };
  return Draws{{reinterpret_cast<const int32_t*>(host), rows},
               {reinterpret_cast<const float*>(host + offset(log_probs_)), rows},
               {reinterpret_cast<const uint8_t*>(host + offset(routing_)), rows * row_bytes_}};
}

void DecodeStep::Forget(const DeviceWeights& weights) {
  std::erase_if(graphs_, [&](const auto& entry) { return std::get<2>(entry.first) == weights.arena(); });
}

}  // namespace lockstep::cuda
