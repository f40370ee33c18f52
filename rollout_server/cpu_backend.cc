#include "rollout_server/cpu_backend.h"

#include <cmath>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/steady_seconds.h"
#include "engine/model/paged_logits.h"

namespace lockstep {
namespace {

class CpuBackend final : public StepBackend {
 public:
  CpuBackend(const ModelConfig& config, DType dtype, int64_t num_pages, Ops* ops, std::unique_ptr<Ops> owned)
      : owned_ops_(std::move(owned)),
        ops_(ops),
        vocab_size_(config.vocab_size),
        max_sequence_tokens_(config.max_position_embeddings),
        decoder_(config, dtype, ops),
        storage_(config, dtype, num_pages) {}

  int64_t num_pages() const override { return storage_.num_pages(); }
  int64_t max_sequence_tokens() const override { return max_sequence_tokens_; }
  absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) override {
    if (dynamic_cast<const Weights*>(weights.get()) != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError("a set of weights is not in host memory, where this backend computes");
  }
  absl::Status Step(const WeightSet& weights, const StepInput& input, StepOutput* output) override;
  absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) override {
    storage_.CopyPage(from, to, tokens);
    return absl::OkStatus();
  }

 private:
  bool NextLogits(const Weights& weights, PagedLogits::Chunk* chunk, double* seconds);
  // Draws all that is wanted of a row; false: it is not finite.
  bool SampleRow(const float* logits, std::span<const DrawRequest> requests, Draw* draws);

  const std::unique_ptr<Ops> owned_ops_;  // may be null
  Ops* const ops_;
  const int64_t vocab_size_;
  const int64_t max_sequence_tokens_;
  Decoder decoder_;
  KvStorage storage_;
  PagedLogits logits_;
  Sampler sampler_;
};

absl::Status CpuBackend::Step(const WeightSet& set, const StepInput& input, StepOutput* output) {
  const auto* const host = dynamic_cast<const Weights*>(&set);
  LOCKSTEP_CHECK(host != nullptr, "Prepare comes before the steps of a set");
  const Weights& weights = *host;
  const double begin = SteadySeconds();
  output->routing.clear();
  logits_.Forward(decoder_, weights, input.batch, storage_, input.wants_routing ? &output->routing : nullptr);
  output->decoder_seconds = SteadySeconds() - begin;
  output->draws.resize(input.draws.size());
  output->finite.resize(input.batch.output_rows.size());
  size_t next = 0;
  for (PagedLogits::Chunk chunk; NextLogits(weights, &chunk, &output->decoder_seconds);) {
    for (int64_t row = chunk.first; row < chunk.first + chunk.count; ++row) {
      const size_t first = next;
      while (next < input.draws.size() && input.draws[next].output_row == row) ++next;
      output->finite[static_cast<size_t>(row)] =
          SampleRow(chunk.row(row - chunk.first), input.draws.subspan(first, next - first), &output->draws[first]);
    }
  }
  LOCKSTEP_CHECK(next == input.draws.size(), "draws are in the order of the output rows");
  return absl::OkStatus();
}

bool CpuBackend::NextLogits(const Weights& weights, PagedLogits::Chunk* chunk, double* seconds) {
  const double begin = SteadySeconds();
  const bool more = logits_.Next(decoder_, weights, chunk);
  *seconds += SteadySeconds() - begin;
  return more;
}

bool CpuBackend::SampleRow(const float* logits, std::span<const DrawRequest> requests, Draw* draws) {
  LOCKSTEP_CHECK(!requests.empty(), "an output row is drawn from");
  const SamplingTransform& transform = requests.front().transform;
  if (!AllFinite(logits, vocab_size_)) return false;
  float lse = 0;
  if (transform.temperature != 0) {
    lse = ops_->LogSumExp(logits, vocab_size_, transform.temperature);
    if (!std::isfinite(lse)) return false;
  }
  sampler_.SetRow(logits, vocab_size_, transform, lse);
  for (const DrawRequest& request : requests) *draws++ = sampler_.Sample(request.key);
  return true;
}

}  // namespace

std::unique_ptr<StepBackend> MakeCpuBackend(const ModelConfig& config, DType dtype, int64_t num_pages, Ops* ops) {
  return std::make_unique<CpuBackend>(config, dtype, num_pages, ops, nullptr);
}

std::unique_ptr<StepBackend> MakeCpuBackend(const ModelConfig& config, DType dtype, int64_t num_pages,
                                            std::unique_ptr<Ops> ops) {
  Ops* const borrowed = ops.get();
  return std::make_unique<CpuBackend>(config, dtype, num_pages, borrowed, std::move(ops));
}

}  // namespace lockstep
