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
  carved.scratch = CarveDraws(std::min(limits.logit_rows, limits.outputs), config.vocab_size, carver);
  return carved;
}

size_t ResultBytes(const MixedStep::Limits& limits) {
  return static_cast<size_t>(limits.outputs) * (sizeof(int32_t) + sizeof(float));
}

}  // namespace

size_t MixedStep::Bytes(const ModelConfig& config, DType dtype, const Limits& limits) {
  Carver counter(nullptr, kAlignment);
  Carve(config, dtype, limits, counter);
  return counter.bytes() + ResultBytes(limits);
}

absl::StatusOr<MixedStep> MixedStep::Create(DeviceDecoder* decoder, const DeviceKv* cache, const Limits& limits) {
  MixedStep step;
  step.decoder_ = decoder;
  step.cache_ = cache;
  step.limits_ = limits;
  const size_t bytes = Bytes(decoder->config(), decoder->dtype(), limits);
  auto memory = DeviceBuffer::Allocate(bytes - ResultBytes(limits), "logits");
  if (!memory.ok()) return memory.status();
  auto results = DeviceBuffer::Allocate(ResultBytes(limits), "draws");
  if (!results.ok()) return results.status();
  auto host = PinnedBuffer::Allocate(ResultBytes(limits), "draws");
  if (!host.ok()) return host.status();
  step.memory_ = *std::move(memory);
  step.results_ = *std::move(results);
  step.host_results_ = *std::move(host);
  Carver carver(step.memory_.data(), kAlignment);
  const Carved carved = Carve(decoder->config(), decoder->dtype(), limits, carver);
  step.hidden_ = carved.hidden;
  step.scratch_ = carved.scratch;
  return step;
}

absl::StatusOr<MixedStep::Draws> MixedStep::Run(const DeviceWeights& weights, const PagedBatch& batch,
                                                std::span<const SamplingRow> sampling, std::string* routing) {
  const auto R = static_cast<int64_t>(batch.output_rows.size());
  const Stream& stream = decoder_->stream();
  LOCKSTEP_CHECK(static_cast<int64_t>(sampling.size()) == R && R <= limits_.outputs, "a draw for each wanted row");
  auto inputs = stage_.Put(decoder_->config(), batch, stream);
  if (!inputs.ok()) return inputs.status();
  sampling_.Begin();
  const auto transforms = sampling_.Add<SamplingRow>(R);
  const auto inverse = sampling_.Add<float>(R);
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
  if (status.ok() && record_.bytes() < record_bytes) {
    record_ = DeviceBuffer();
    auto record = DeviceBuffer::Allocate(record_bytes, "a step's routing");
    if (!record.ok()) return record.status();
    record_ = *std::move(record);
  }
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
  if (status.ok() && routing != nullptr) {
    routing->resize(record_bytes);
    status = stream.CopyToHost(routing->data(), record_.data(), record_bytes);
  }
  if (status.ok()) status = stream.Wait("a step");
  if (!status.ok()) return status;
  const int32_t* const drawn = host_results_.As<int32_t>();
  const auto* const drawn_log_probs = reinterpret_cast<const float*>(drawn + limits_.outputs);
  return Draws{{drawn, drawn + R}, {drawn_log_probs, drawn_log_probs + R}};
}

}  // namespace lockstep::cuda
