#include "rollout_server/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <memory>
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
#include "rollout_server/cuda_shadow.h"
#include "rollout_server/reuse_pool.h"

namespace lockstep {
namespace {

using SetMemory = std::shared_ptr<const cuda::DeviceWeights>;

// The copy of a set that the host has; once that is gone, the memory is free for the next set.
struct PreparedSet {
  std::weak_ptr<const WeightSet> host;
  SetMemory memory;
};

// Writers of updates: one, and one that an ended update may not have let go of.
constexpr size_t kMaxWriters = 2;

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
      : options_(options),
        shape_(ShapeOf(options)),
        limits_(cuda::ServingLimitsOf(shape_)),
        gemm_(std::move(gemm)),
        memories_("sets of weights on the device", kMaxWeightSets + 1),
        writers_("writers of weight updates", kMaxWriters) {}
  absl::Status Create();

  int64_t num_pages() const override { return cache_->num_pages(); }
  int64_t max_sequence_tokens() const override { return options_.max_sequence_tokens; }
  absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) override ABSL_LOCKS_EXCLUDED(mutex_);
  MakeShadow device_shadow() override {
    return [this](const BucketPlan& plan, WeightId id) { return BeginShadow(plan, id); };
  }
  absl::Status Step(const WeightSet& weights, const StepInput& input, StepOutput* output) override;
  absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) override {
    if (absl::Status status = UseDevice(); !status.ok()) return status;
    return cache_->CopyPage(from, to, tokens, stream_);
  }

 private:
  // A device is a thread's, and calls come from several.
  absl::Status UseDevice() const { return cuda::CudaStatus(cudaSetDevice(options_.device), "choosing the device"); }
  absl::StatusOr<int64_t> PlanPages() const;
  absl::StatusOr<std::unique_ptr<Shadow>> BeginShadow(const BucketPlan& plan, WeightId id);
  // Memory that no set is in and no step reads.
  absl::StatusOr<std::shared_ptr<cuda::DeviceWeights>> TakeMemory() ABSL_LOCKS_EXCLUDED(mutex_);
  // Brings a set of the host to the device, unless it is there.
  absl::Status Upload(const std::shared_ptr<const Weights>& weights) ABSL_LOCKS_EXCLUDED(mutex_);
  SetMemory Find(const WeightSet& weights) const ABSL_LOCKS_EXCLUDED(mutex_);
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

  // Memory is not freed while the backend lives, so that graphs, which are an arena's, stay good for the next set in
  // it.
  ReusePool<cuda::DeviceWeights> memories_;
  ReusePool<cuda::SetWriter> writers_;

  // Held for a whole Upload: one set is brought over at a time.
  std::mutex upload_mutex_;
  cuda::Stream upload_stream_;
  std::optional<cuda::Staging> staging_;
  mutable std::mutex mutex_;
  std::vector<PreparedSet> sets_ ABSL_GUARDED_BY(mutex_);  // of the host
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

absl::StatusOr<std::shared_ptr<cuda::DeviceWeights>> CudaBackend::TakeMemory() {
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(sets_, [](const PreparedSet& set) { return set.host.expired(); });
  }
  return memories_.Take([this]() -> absl::StatusOr<std::unique_ptr<cuda::DeviceWeights>> {
    auto stream = cuda::Stream::Create();
    if (!stream.ok()) return stream.status();
    auto made = cuda::DeviceWeights::Allocate(options_.config, options_.dtype, *stream);
    if (!made.ok()) return made.status();
    // Who writes it does not know of this stream.
    if (absl::Status status = stream->Wait("clearing device memory"); !status.ok()) return status;
    return std::make_unique<cuda::DeviceWeights>(*std::move(made));
  });
}

absl::Status CudaBackend::Prepare(const std::shared_ptr<const WeightSet>& weights) {
  if (dynamic_cast<const CudaWeightSet*>(weights.get()) != nullptr) return absl::OkStatus();
  const auto host = std::dynamic_pointer_cast<const Weights>(weights);
  if (host == nullptr) return absl::InvalidArgumentError("a set of weights is neither the host's nor this device's");
  return Upload(host);
}

absl::Status CudaBackend::Upload(const std::shared_ptr<const Weights>& weights) {
  const std::lock_guard one_at_a_time(upload_mutex_);
  {
    const std::lock_guard lock(mutex_);
    for (const PreparedSet& set : sets_) {
      if (set.host.lock() == weights) return absl::OkStatus();
    }
  }
  if (absl::Status status = UseDevice(); !status.ok()) return status;
  auto memory = TakeMemory();
  if (!memory.ok()) return memory.status();
  absl::Status status = (*memory)->Load(weights.get(), upload_stream_, *staging_);
  const absl::Status done = upload_stream_.Wait("bringing weights to the device");  // also where it failed
  if (status.ok()) status = done;
  if (!status.ok()) return status;
  const std::lock_guard lock(mutex_);
  sets_.push_back({weights, *std::move(memory)});
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Shadow>> CudaBackend::BeginShadow(const BucketPlan& plan, WeightId id) {
  if (absl::Status status = UseDevice(); !status.ok()) return status;
  auto memory = TakeMemory();
  if (!memory.ok()) return memory.status();
  auto writer = writers_.Take(cuda::SetWriter::Create);
  if (!writer.ok()) return writer.status();
  return MakeCudaShadow(options_.device, plan, id, *std::move(memory), *std::move(writer));
}

SetMemory CudaBackend::Find(const WeightSet& weights) const {
  if (const auto* of_device = dynamic_cast<const CudaWeightSet*>(&weights)) return of_device->memory;
  const std::lock_guard lock(mutex_);
  for (const PreparedSet& set : sets_) {
    if (set.host.lock().get() == &weights) return set.memory;
  }
  LOCKSTEP_CHECK(false, "Prepare comes before the steps of a set");
  return nullptr;
}

absl::Status CudaBackend::Step(const WeightSet& weights, const StepInput& input, StepOutput* output) {
  if (absl::Status status = UseDevice(); !status.ok()) return status;
  output->draws.resize(input.draws.size());
  output->finite.resize(input.batch.output_rows.size());
  output->routing.clear();
  const SetMemory set = Find(weights);
  return IsDecodeStep(input) ? Decode(*set, input, output) : Mix(*set, input, output);
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
