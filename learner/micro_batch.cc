#include "learner/micro_batch.h"

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/model/routing.h"

namespace lockstep {
namespace {

// The sample's routing as rows of the batch; the last position has none.
void AppendRouting(const TrainSample& sample, size_t row_bytes, PackedBatch* packed) {
  const size_t rows = static_cast<size_t>(SampleTokens(sample)), given = sample.routing.size() / row_bytes;
  LOCKSTEP_CHECK(sample.routing.empty() || (given == rows - 1 && sample.routing.size() == given * row_bytes),
                 "routing has a row for each position but the last");
  packed->routing += sample.routing;
  packed->routing.resize(packed->routing.size() + (rows - given) * row_bytes, '\0');
  packed->has_routing.insert(packed->has_routing.end(), given, 1);
  packed->has_routing.insert(packed->has_routing.end(), rows - given, 0);
}

}  // namespace

int64_t SampleTokens(const TrainSample& sample) {
  return static_cast<int64_t>(sample.prompt.size() + sample.response.size());
}

MicroBatch BuildMicroBatch(std::span<const TrainSample> samples, std::span<const float> loss_weights,
                           size_t routing_row_bytes) {
  MicroBatch batch;
  batch.packed.cu_seqlens.push_back(0);
  for (size_t i = 0; i < samples.size(); ++i) {
    const TrainSample& sample = samples[i];
    auto& tokens = batch.packed.tokens;
    const int32_t first_loss_row = static_cast<int32_t>(tokens.size() + sample.prompt.size()) - 1;
    tokens.insert(tokens.end(), sample.prompt.begin(), sample.prompt.end());
    tokens.insert(tokens.end(), sample.response.begin(), sample.response.end());
    batch.packed.cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
    if (routing_row_bytes > 0) AppendRouting(sample, routing_row_bytes, &batch.packed);
    for (size_t t = 0; t < sample.response.size(); ++t) {
      batch.packed.loss_rows.push_back(first_loss_row + static_cast<int32_t>(t));
      batch.packed.targets.push_back(sample.response[t]);
    }
    batch.offsets.push_back(static_cast<int32_t>(batch.packed.targets.size()));
    batch.log_mu.insert(batch.log_mu.end(), sample.log_mu.begin(), sample.log_mu.end());
    batch.log_pi_old.insert(batch.log_pi_old.end(), sample.log_pi_old.begin(), sample.log_pi_old.end());
    batch.log_ref.insert(batch.log_ref.end(), sample.log_ref.begin(), sample.log_ref.end());
    batch.advantage.push_back(sample.advantage);
    batch.loss_weight.push_back(loss_weights[i]);
  }
  return batch;
}

absl::StatusOr<size_t> RoutingRowBytes(const std::string& router_replay, const ModelConfig& model) {
  if (router_replay.empty() || router_replay == "off") return 0;
  if (router_replay != "measure" && router_replay != "replay") {
    return absl::InvalidArgumentError(
        absl::StrCat("learner.router_replay is '", router_replay, "'; known are off, measure, replay"));
  }
  const RoutingShape shape(model);
  if (shape.layers > 0) return shape.row_bytes();
  return absl::InvalidArgumentError(absl::StrCat("learner.router_replay: '", router_replay, "' needs a model with ",
                                                 "experts, and this ", model.architecture, " has none; set it to off"));
}

std::vector<std::pair<size_t, size_t>> PackMicroBatches(std::span<const TrainSample> samples, int64_t max_tokens) {
  std::vector<std::pair<size_t, size_t>> ranges;
  int64_t tokens = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const int64_t size = SampleTokens(samples[i]);
    if (ranges.empty() || tokens + size > max_tokens) {
      ranges.emplace_back(i, i);
      tokens = 0;
    }
    ranges.back().second = i + 1;
    tokens += size;
  }
  return ranges;
}

}  // namespace lockstep
