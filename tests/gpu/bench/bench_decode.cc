#include "tests/gpu/bench/bench_decode.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/cuda/decode_step.h"
#include "engine/cuda/device_decoder.h"
#include "engine/kernels/ops.h"
#include "tests/gpu/bench/bench_kernels.h"

namespace lockstep::cuda {
namespace {

// What all rows of a table share.
struct Model {
  ModelConfig config;
  DeviceWeights weights;
  DeviceKv cache;
  int64_t sequence_pages = 0;
};

absl::StatusOr<Model> MakeModel(const BenchOptions& options, const ModelConfig& config, const Stream& stream) {
  auto weights = DeviceWeights::Allocate(config, options.dtype, stream);
  if (!weights.ok()) return weights.status();
  absl::Status status = FillParameters(weights->layout(), weights->arena(), options.dtype, stream);
  if (!status.ok()) return status;
  const int64_t positions = options.context + options.decode_steps + 1;
  if (positions > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("a context of ", options.context, " is more than the model's ", config.max_position_embeddings));
  }
  const int64_t sequence_pages = (positions + kPageTokens - 1) / kPageTokens;
  const int64_t pages = sequence_pages * *std::max_element(options.batches.begin(), options.batches.end());
  auto cache = DeviceKv::Allocate(config, options.dtype, pages, stream);
  if (!cache.ok()) return cache.status();
  const int64_t row = config.num_kv_heads * config.head_dim * kPageTokens;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (void* half : {cache->keys(layer), cache->values(layer)}) {
      const cudaError_t error =
          FillUniform(Tensor(half, options.dtype, pages, row), static_cast<uint64_t>(layer), 0, 1, stream.get());
      if (error != cudaSuccess) return CudaStatus(error, "random keys and values");
    }
  }
  return Model{config, *std::move(weights), *std::move(cache), sequence_pages};
}

// Seconds of one step, mean of options.decode_steps that follow each other: the host reads each step while the next one
// runs.
absl::StatusOr<double> StepSeconds(const BenchOptions& options, const Model& model, DeviceDecoder& decoder,
                                   DecodeStep& step, int64_t batch) {
  std::vector<std::vector<int32_t>> pages(static_cast<size_t>(batch));
  std::vector<DecodeStep::Row> rows;
  const int64_t all_pages = batch * model.sequence_pages;
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t j = 0; j < model.sequence_pages; ++j) {  // spread over the cache, as after many requests
      pages[static_cast<size_t>(i)].push_back(static_cast<int32_t>((j * batch + (i + j) % batch) % all_pages));
    }
    rows.push_back({.from = -1,
                    .token = static_cast<int32_t>((i * 7919 + 1) % model.config.vocab_size),
                    .position = static_cast<int32_t>(options.context),
                    .pages = pages[static_cast<size_t>(i)],
                    .sampling = {.seed = 1, .group_id = static_cast<uint64_t>(i)}});
  }
  const auto run = [&]() -> absl::Status {
    uint64_t last = 0;
    for (int64_t i = 0; i < options.decode_steps; ++i) {
      const auto launched = step.Launch(model.weights);
      if (!launched.ok()) return launched.status();
      if (i > 0) {
        if (const auto draws = step.Read(last); !draws.ok()) return draws.status();
      }
      last = *launched;
    }
    return step.Read(last).status();
  };
  const auto seconds = MedianSeconds(decoder.stream(), options.repeats, run, [&]() -> absl::Status {
    absl::Status status = step.SetRows(rows);
    return status.ok() ? decoder.stream().Wait("the rows of a step") : status;
  });
  if (!seconds.ok()) return seconds.status();
  return *seconds / static_cast<double>(options.decode_steps);
}

// `beyond`: bytes of device memory that the steps took and nobody allocated: their graphs, kernels loaded meanwhile.
absl::StatusOr<double> StepSeconds(const BenchOptions& options, const Model& model, Numerics numerics, DeviceGemm& gemm,
                                   const Stream& stream, int64_t batch, size_t* beyond) {
  const DecodeStep::Limits limits = {.rows = batch, .sequence_pages = model.sequence_pages};
  auto decoder = DeviceDecoder::Create(model.config, options.dtype, numerics,
                                       DecodeStep::DecoderLimits(model.config, limits), &gemm, &stream);
  if (!decoder.ok()) return decoder.status();
  auto step = DecodeStep::Create(decoder->get(), &model.cache, limits);
  if (!step.ok()) return step.status();
  const auto before = ReadDeviceMemory();
  if (!before.ok()) return before.status();
  const auto seconds = StepSeconds(options, model, **decoder, **step, batch);
  const auto after = ReadDeviceMemory();
  if (!after.ok()) return after.status();
  *beyond = before->free_bytes - std::min(before->free_bytes, after->free_bytes);
  return seconds;
}

}  // namespace

absl::Status BenchDecode(const BenchOptions& options, const std::string& shape, const DeviceLimits& limits,
                         DeviceGemm* native, DeviceGemm& matched, const Stream& stream, Tables& tables,
                         StepSecondsTable* measured) {
  const auto config = ShapeOf(options, shape);
  if (!config.ok()) return config.status();
  const auto model = MakeModel(options, *config, stream);
  tables.Begin(
      absl::StrCat("Decode of ", shape, ", ", std::string(DTypeName(options.dtype)), ", context ", options.context),
      {"numerics", "batch", "step", "tokens/s", "limit by bytes", "of it", "limit by FLOP", "time against native"});
  if (!model.ok()) {
    tables.NoRow("no model", model.status());
    return absl::OkStatus();
  }
  // Of a step half way.
  const double context = static_cast<double>(options.context) + static_cast<double>(options.decode_steps) / 2;
  std::vector<std::string> beyonds;
  for (const int64_t batch : options.batches) {
    double native_seconds = 0;
    for (DeviceGemm* const gemm : {native, &matched}) {
      if (gemm == nullptr) continue;
      const bool is_native = gemm == native;
      const char* const name = is_native ? "native" : "matched";
      size_t beyond = 0;
      const auto seconds = StepSeconds(options, *model, is_native ? Numerics::kNative : Numerics::kMatched, *gemm,
                                       stream, batch, &beyond);
      if (!seconds.ok()) {
        tables.NoRow(absl::StrCat(name, ", batch ", batch), seconds.status());
        continue;
      }
      beyonds.push_back(absl::StrCat(name, " ", batch, ": ", beyond >> 20, " MiB"));
      (*measured)[{is_native, batch}] = *seconds;
      if (is_native) native_seconds = *seconds;
      const auto rows = static_cast<double>(batch);
      const double by_bytes = DecodeBytes(*config, options.dtype, rows, context) / limits.bandwidth();
      const double by_flop = DecodeFlop(*config, options.dtype, rows, context) / limits.matrix;
      tables.Row({name, absl::StrCat(batch), absl::StrCat(Number(*seconds * 1e3, 3), " ms"), Number(rows / *seconds, 0),
                  absl::StrCat(Number(by_bytes * 1e3, 3), " ms"), Percent(by_bytes / *seconds),
                  absl::StrCat(Number(by_flop * 1e3, 3), " ms"),
                  is_native || native_seconds == 0 ? "" : Number(*seconds / native_seconds, 3)});
    }
  }
  tables.Text(absl::StrCat(
      "Device memory that the steps of a row took beyond what they allocate (graphs, and kernels that were "
      "loaded for the first time): ",
      absl::StrJoin(beyonds, ", "), "."));
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
