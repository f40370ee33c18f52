#include "engine/cuda/mixed_step.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/model/routing.h"

namespace lockstep::cuda {
namespace {

constexpr size_t kAlignment = 256;

struct Carved {
  Tensor hidden;
  DrawScratch scratch;
};
Carved Carve(const ModelConfig& config, DType dtype, const MixedStep::Limits& limits, Carver& carver) {
  Carved carved;
  carved.hidden = carver.Take(dtype, limits.outputs, config.hidden_size);
  if (limits.logit_rows == 0) return carved;
  carved.scratch = CarveDraws(std::min(limits.logit_rows, limits.outputs), config.vocab_size, carver);
  return carved;
}

size_t ResultBytes(const MixedStep::Limits& limits) {
  return static_cast<size_t>(limits.outputs) * (sizeof(int32_t) + sizeof(float));
}

PagedStage::Limits StageLimits(const MixedStep::Limits& limits) {
  return {.rows = limits.rows, .outputs = limits.outputs, .sequence_pages = limits.sequence_pages};
}

// What is drawn, in a block.
struct DrawInputs {
  InputBlock::Array<SamplingRow> transforms;
  InputBlock::Array<float> inverse_temperature;
};
DrawInputs AddDraws(int64_t outputs, InputBlock& block) {
  block.Begin();
  DrawInputs draws;
  draws.transforms = block.Add<SamplingRow>(outputs);
  draws.inverse_temperature = block.Add<float>(outputs);
  return draws;
}

}  // namespace

size_t MixedStep::Bytes(const ModelConfig& config, DType dtype, const Limits& limits) {
  Carver counter(nullptr, kAlignment);
  Carve(config, dtype, limits, counter);
  InputBlock draws;
  AddDraws(limits.outputs, draws);
  return counter.bytes() + ResultBytes(limits) + PagedStage::Bytes(StageLimits(limits)) + draws.bytes();
}

absl::StatusOr<MixedStep> MixedStep::Create(DeviceDecoder* decoder, const DeviceKv* cache, const Limits& limits,
                                            const DrawScratch* scratch) {
  LOCKSTEP_CHECK((limits.logit_rows == 0) == (scratch != nullptr),
                 "logits are made in scratch of one's own, or shared");
  MixedStep step;
  step.decoder_ = decoder;
  step.cache_ = cache;
  step.limits_ = limits;
  Carver counter(nullptr, kAlignment);
  Carve(decoder->config(), decoder->dtype(), limits, counter);
  auto memory = DeviceBuffer::Allocate(counter.bytes(), "logits");
  if (!memory.ok()) return memory.status();
  auto results = DeviceBuffer::Allocate(ResultBytes(limits), "draws");
  if (!results.ok()) return results.status();
  auto host = PinnedBuffer::Allocate(ResultBytes(limits), "draws");
  if (!host.ok()) return host.status();
  AddDraws(limits.outputs, step.sampling_);
  absl::Status status = step.sampling_.Reserve();
  if (status.ok()) status = step.stage_.Reserve(StageLimits(limits));
  if (!status.ok()) return status;
  step.memory_ = *std::move(memory);
  step.results_ = *std::move(results);
  step.host_results_ = *std::move(host);
  Carver carver(step.memory_.data(), kAlignment);
  const Carved carved = Carve(decoder->config(), decoder->dtype(), limits, carver);
  step.hidden_ = carved.hidden;
  step.scratch_ = scratch != nullptr ? *scratch : carved.scratch;
  return step;
}

absl::Status MixedStep::ReserveRecord(size_t bytes) {
  if (bytes <= record_.bytes()) return absl::OkStatus();
  bytes = std::max(bytes, static_cast<size_t>(limits_.rows) * RoutingShape(decoder_->config()).row_bytes());
  record_ = DeviceBuffer();
  host_record_ = PinnedBuffer();
  auto record = DeviceBuffer::Allocate(bytes, "a step's routing");
  if (!record.ok()) return record.status();
  auto host = PinnedBuffer::Allocate(bytes, "a step's routing");
  if (!host.ok()) return host.status();
  record_ = *std::move(record);
  host_record_ = *std::move(host);
  return absl::OkStatus();
}

absl::StatusOr<MixedStep::Draws> MixedStep::Run(const DeviceWeights& weights, const PagedBatch& batch,
                                                std::span<const SamplingRow> sampling, std::string* routing) {
  const auto R = static_cast<int64_t>(batch.output_rows.size());
  const Stream& stream = decoder_->stream();
  LOCKSTEP_CHECK(static_cast<int64_t>(sampling.size()) == R && R <= limits_.outputs, "a draw for each wanted row");
  auto inputs = stage_.Put(decoder_->config(), batch, stream);
  if (!inputs.ok()) return inputs.status();
  const auto [transforms, inverse] = AddDraws(R, sampling_);
  absl::Status status = sampling_.Reserve();
  if (!status.ok()) return status;
  std::copy(sampling.begin(), sampling.end(), sampling_.Host(transforms));
  for (int64_t i = 0; i < R; ++i) {
    const float temperature = sampling[static_cast<size_t>(i)].temperature;
    sampling_.Host(inverse)[i] = temperature == 0 ? 1.0f : 1.0f / temperature;
  }
  status = sampling_.Copy(stream);
  const size_t record_bytes =
      routing == nullptr ? 0 : batch.tokens.size() * RoutingShape(decoder_->config()).row_bytes();
  if (status.ok()) status = ReserveRecord(record_bytes);
  if (!status.ok()) return status;

  const Tensor hidden = hidden_.Rows(0, R);
  int32_t* const tokens = results_.As<int32_t>();
  auto* const log_probs = reinterpret_cast<float*>(tokens + limits_.outputs);
  status =
      decoder_->ForwardPaged(weights, *inputs, *cache_, hidden, record_bytes == 0 ? nullptr : record_.As<uint8_t>());
  if (status.ok()) {
    status = Draw(*decoder_, weights, hidden,
                  {sampling_.Device(transforms), sampling_.Device(inverse), tokens, log_probs}, scratch_);
  }
  if (status.ok()) status = stream.CopyToHost(host_results_.data(), results_.data(), results_.bytes());
  if (status.ok() && record_bytes > 0) status = stream.CopyToHost(host_record_.data(), record_.data(), record_bytes);
  if (status.ok()) status = stream.Wait("a step");
  if (!status.ok()) return status;
  if (routing != nullptr) routing->assign(host_record_.As<char>(), record_bytes);
  const int32_t* const drawn = host_results_.As<int32_t>();
  const auto* const drawn_log_probs = reinterpret_cast<const float*>(drawn + limits_.outputs);
  return Draws{{drawn, drawn + R}, {drawn_log_probs, drawn_log_probs + R}};
}

}  // namespace lockstep::cuda
