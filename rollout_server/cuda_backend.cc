#include "rollout_server/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/cuda/decode_step.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_kv.h"
#include "engine/cuda/device_weights.h"
#include "engine/cuda/mixed_step.h"
#include "engine/cuda/serving.h"

namespace lockstep {
namespace {

// A set in device memory. `host` is who it is of; once that is gone, the memory is free for the next set.
struct PreparedSet {
  explicit PreparedSet(cuda::DeviceWeights weights) : weights(std::move(weights)) {}
  std::weak_ptr<const Weights> host;
  cuda::DeviceWeights weights;
};

cuda::ServingShape ShapeOf(const DeviceBackendOptions& options) {
  return {.config = options.config,
          .dtype = options.dtype,
          .numerics = options.numerics,
          .max_decode_rows = options.max_decode_rows,
          .prefill_chunk_tokens = options.prefill_chunk_tokens,
          .max_sequence_tokens = options.max_sequence_tokens};
}

class CudaBackend final : public StepBackend {
 public:
  CudaBackend(const DeviceBackendOptions& options, cuda::OwnedGemm gemm)
      : options_(options), shape_(ShapeOf(options)), limits_(cuda::ServingLimitsOf(shape_)), gemm_(std::move(gemm)) {}
  absl::Status Create();

  int64_t num_pages() const override { return cache_->num_pages(); }
  int64_t max_sequence_tokens() const override { return options_.max_sequence_tokens; }
  absl::Status Prepare(const std::shared_ptr<const Weights>& weights) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Step(const Weights& weights, const StepInput& input, StepOutput* output) override;
  absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) override {
    if (absl::Status status = UseDevice(); !status.ok()) return status;
    return cache_->CopyPage(from, to, tokens, stream_);
  }
  absl::Status Check() override {
    if (absl::Status status = UseDevice(); !status.ok()) return status;
    const cudaError_t error = cudaStreamQuery(stream_.get());
    return error == cudaErrorNotReady ? absl::OkStatus() : cuda::CudaStatus(error, "asking an idle device");
  }

 private:
  // A device is a thread's, and calls come from several.
  absl::Status UseDevice() const { return cuda::CudaStatus(cudaSetDevice(options_.device), "choosing the device"); }
  absl::StatusOr<int64_t> PlanPages() const;
  const cuda::DeviceWeights& Find(const Weights& weights) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether the step is one of decode rows, each drawn from once.
  bool IsDecodeStep(const StepInput& input) const;
  absl::Status Decode(const cuda::DeviceWeights& weights, const StepInput& input, StepOutput* output);
  absl::Status Mix(const cuda::DeviceWeights& weights, const StepInput& input, StepOutput* output);

  const DeviceBackendOptions options_;
  const cuda::ServingShape shape_;
  const cuda::ServingLimits limits_;
  cuda::Stream stream_;
  const cuda::OwnedGemm gemm_;
  std::unique_ptr<cuda::DeviceDecoder> decoder_;
  std::optional<cuda::DeviceKv> cache_;
  std::unique_ptr<cuda::DecodeStep> decode_step_;
  std::optional<cuda::MixedStep> mixed_step_;

  // Scratch of a step.
  std::vector<cuda::DecodeStep::Row> rows_;
  std::vector<cuda::SamplingRow> sampling_;
  PagedBatch batch_;

  // Held for a whole Prepare: one set is brought over at a time. A list, since a step reads a set without the lock.
  mutable std::mutex prepare_mutex_;
  cuda::Stream upload_stream_;
  std::optional<cuda::Staging> staging_;
  mutable std::mutex mutex_;  // of the list and of each set's host
  std::list<PreparedSet> sets_ ABSL_GUARDED_BY(mutex_);
};

cuda::SamplingRow SamplingOf(const DrawRequest& request) {
  return {.temperature = request.transform.temperature,
          .top_p = request.transform.top_p,
          .top_k = request.transform.top_k,
          .sample_index = request.key.sample_index,
          .token_index = request.key.token_index,
          .seed = request.key.seed,
          .group_id = request.key.group_id};
}

// A row that is not finite has a log-prob that is not a number (engine/cuda/drawing.h).
void TakeDraw(int32_t token, float log_prob, int64_t output_row, size_t draw, StepOutput* output) {
  output->draws[draw] = {token, log_prob};
  output->finite[static_cast<size_t>(output_row)] = std::isnan(log_prob) ? 0 : 1;
}

absl::Status CudaBackend::Create() {
  if (absl::Status status = UseDevice(); !status.ok()) return status;
  auto stream = cuda::Stream::Create();
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  auto upload_stream = cuda::Stream::Create();
  if (!upload_stream.ok()) return upload_stream.status();
  upload_stream_ = *std::move(upload_stream);
  auto staging = cuda::Staging::Create();
  if (!staging.ok()) return staging.status();
  staging_ = *std::move(staging);
  auto decoder = cuda::DeviceDecoder::Create(options_.config, options_.dtype, options_.numerics, limits_.decoder,
                                             gemm_.gemm.get(), &stream_);
  if (!decoder.ok()) return decoder.status();
  decoder_ = *std::move(decoder);
  const absl::StatusOr<int64_t> pages = PlanPages();
  if (!pages.ok()) return pages.status();
  auto cache = cuda::DeviceKv::Allocate(options_.config, options_.dtype, *pages, stream_);
  if (!cache.ok()) return cache.status();
  cache_ = *std::move(cache);
  auto decode_step = cuda::DecodeStep::Create(decoder_.get(), &*cache_, limits_.decode);
  if (!decode_step.ok()) return decode_step.status();
  decode_step_ = *std::move(decode_step);
  auto mixed_step = cuda::MixedStep::Create(decoder_.get(), &*cache_, limits_.mixed);
  if (!mixed_step.ok()) return mixed_step.status();
  mixed_step_ = *std::move(mixed_step);
  return stream_.Wait("preparing the KV cache");
}

absl::StatusOr<int64_t> CudaBackend::PlanPages() const {
  const auto memory = cuda::ReadDeviceMemory();
  if (!memory.ok()) return memory.status();
  return cuda::ServingPages(shape_, options_.kv_cache_mib, memory->free_bytes);
}

absl::Status CudaBackend::Prepare(const std::shared_ptr<const Weights>& weights) {
  const std::lock_guard one_at_a_time(prepare_mutex_);
  if (absl::Status status = UseDevice(); !status.ok()) return status;
  PreparedSet* target = nullptr;
  {
    const std::lock_guard lock(mutex_);
    for (PreparedSet& set : sets_) {
      const std::shared_ptr<const Weights> host = set.host.lock();
      if (host == weights) return absl::OkStatus();
      if (host == nullptr) target = &set;
    }
    if (target != nullptr) target->host.reset();
  }
  if (target == nullptr) {
    auto made = cuda::DeviceWeights::Allocate(options_.config, options_.dtype, upload_stream_);
    if (!made.ok()) return made.status();
    const std::lock_guard lock(mutex_);
    target = &sets_.emplace_back(*std::move(made));
  }
  absl::Status status = target->weights.Load(weights.get(), upload_stream_, *staging_);
  if (status.ok()) status = upload_stream_.Wait("bringing weights to the device");
  if (!status.ok()) return status;
  const std::lock_guard lock(mutex_);
  target->host = weights;
  return absl::OkStatus();
}

const cuda::DeviceWeights& CudaBackend::Find(const Weights& weights) const {
  const std::lock_guard lock(mutex_);
  for (const PreparedSet& set : sets_) {
    if (set.host.lock().get() == &weights) return set.weights;
  }
  LOCKSTEP_CHECK(false, "Prepare comes before the steps of a set");
  return sets_.front().weights;
}

absl::Status CudaBackend::Step(const Weights& weights, const StepInput& input, StepOutput* output) {
  if (absl::Status status = UseDevice(); !status.ok()) return status;
  output->draws.resize(input.draws.size());
  output->finite.resize(input.batch.output_rows.size());
  output->routing.clear();
  const cuda::DeviceWeights& set = Find(weights);
  return IsDecodeStep(input) ? Decode(set, input, output) : Mix(set, input, output);
}

bool CudaBackend::IsDecodeStep(const StepInput& input) const {
  const size_t rows = input.batch.tokens.size();
  if (static_cast<int64_t>(rows) > options_.max_decode_rows || input.batch.output_rows.size() != rows ||
      input.draws.size() != rows || input.batch.sequences.size() != rows) {
    return false;
  }
  return std::all_of(input.batch.sequences.begin(), input.batch.sequences.end(), [this](const PagedSequence& sequence) {
    return sequence.row_count == 1 && static_cast<int64_t>(sequence.pages.size()) <= limits_.decode.sequence_pages;
  });
}

absl::Status CudaBackend::Decode(const cuda::DeviceWeights& weights, const StepInput& input, StepOutput* output) {
  rows_.clear();
  for (size_t i = 0; i < input.batch.tokens.size(); ++i) {
    rows_.push_back({.from = -1,
                     .token = input.batch.tokens[i],
                     .position = input.batch.positions[i],
                     .pages = input.batch.sequences[i].pages,
                     .sampling = SamplingOf(input.draws[i])});
  }
  if (absl::Status status = decode_step_->SetRows(rows_); !status.ok()) return status;
  const absl::StatusOr<uint64_t> step = decode_step_->Launch(weights);
  if (!step.ok()) return step.status();
  const auto draws = decode_step_->Read(*step);
  if (!draws.ok()) return draws.status();
  for (size_t i = 0; i < rows_.size(); ++i) {
    TakeDraw(draws->tokens[i], draws->log_probs[i], static_cast<int64_t>(i), i, output);
  }
  if (input.wants_routing) {
    output->routing.assign(reinterpret_cast<const char*>(draws->routing.data()), draws->routing.size());
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Mix(const cuda::DeviceWeights& weights, const StepInput& input, StepOutput* output) {
  batch_.tokens = input.batch.tokens;
  batch_.positions = input.batch.positions;
  batch_.sequences = input.batch.sequences;
  size_t first = 0;
  do {
    const size_t count = std::min<size_t>(input.draws.size() - first, static_cast<size_t>(limits_.mixed.outputs));
    batch_.output_rows.clear();
    sampling_.clear();
    for (const DrawRequest& request : input.draws.subspan(first, count)) {
      batch_.output_rows.push_back(input.batch.output_rows[static_cast<size_t>(request.output_row)]);
      sampling_.push_back(SamplingOf(request));
    }
    const auto draws = mixed_step_->Run(weights, batch_, sampling_, input.wants_routing ? &output->routing : nullptr);
    if (!draws.ok()) return draws.status();
    for (size_t i = 0; i < count; ++i) {
      const size_t draw = first + i;
      TakeDraw(draws->tokens[i], draws->log_probs[i], input.draws[draw].output_row, draw, output);
    }
    first += count;
  } while (first < input.draws.size());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StepBackend>> MakeCudaStepBackend(const DeviceBackendOptions& options,
                                                                 cuda::OwnedGemm gemm) {
  auto backend = std::make_unique<CudaBackend>(options, std::move(gemm));
  if (absl::Status status = backend->Create(); !status.ok()) return status;
  return backend;
}

}  // namespace lockstep
