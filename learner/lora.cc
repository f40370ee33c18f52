#include "learner/lora.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/digest.h"
#include "engine/base/log.h"

namespace lockstep {
namespace {

constexpr int64_t kDigestElements = 1 << 20;

void SetRows(Weights* weights, int param, int64_t row, int64_t rows, const float* values) {
  const ParamSpec& spec = weights->layout.params[param];
  const bool is_vector = spec.kind == ParamSpec::Kind::kVector;
  float* const data = const_cast<float*>(values);  // only read
  weights->SetParamRows(param, row, Tensor(data, DType::kF32, is_vector ? 1 : rows, is_vector ? rows : spec.cols));
}

// Of all parameters in row-major order, in the weights' dtype.
uint64_t DigestOf(const Weights& weights) {
  uint64_t digest = 0;
  std::vector<char> block;
  for (int param = 0; param < static_cast<int>(weights.layout.params.size()); ++param) {
    const ParamSpec& spec = weights.layout.params[param];
    const int64_t step = std::max<int64_t>(1, kDigestElements / spec.cols);
    for (int64_t row = 0; row < spec.rows; row += step) {
      const int64_t rows = std::min(step, spec.rows - row);
      block.resize(static_cast<size_t>(rows * spec.cols) * DTypeSize(weights.dtype));
      weights.GetParamRows(param, row, Tensor(block.data(), weights.dtype, rows, spec.cols));
      digest = Digest(block.data(), block.size(), digest);
    }
  }
  return digest;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoraBase>> LoraBase::Load(const LoraOptions& options, int threads, Weights* weights) {
  auto layout = MakeLowRankLayout(weights->config, options.config.rank(), options.config.alpha(),
                                  {options.config.target_modules().begin(), options.config.target_modules().end()});
  if (!layout.ok()) return layout.status();
  std::unique_ptr<LoraBase> base(new LoraBase);
  base->layout_ = *std::move(layout);
  auto reader = HfFolderReader::Open(options.base_dir, weights->config);
  if (!reader.ok()) return reader.status();
  base->reader_ = *std::move(reader);
  base->load_.dtype = weights->dtype;
  base->load_.clamp = options.clamp_fp16 && weights->dtype == DType::kF16;
  base->load_.threads = threads;
  base->load_.progress = LogLoadProgress(options.base_dir);
  if (absl::Status status = base->LoadBase(weights); !status.ok()) return status;
  base->load_.progress = nullptr;
  for (const std::vector<int>& adapters : base->layout_.of_param) base->adapted_.push_back(!adapters.empty());
  base->fingerprint_ =
      absl::StrCat("rank ", base->layout_.rank, " alpha ", options.config.alpha(), " modules ",
                   absl::StrJoin(base->layout_.target_modules, ","), " base ", DigestHex(DigestOf(*weights)));
  LogInfo("LoRA on ", base->layout_.adapters.size(), " modules: ", base->layout_.total_size,
          " parameters are trained, ", weights->layout.total_size, " are frozen (", options.base_dir, ")");
  return base;
}

absl::Status LoraBase::LoadBase(Weights* weights) const {
  return reader_->Read({}, load_, [&](int param, int64_t row, int64_t rows, const float* values) {
    SetRows(weights, param, row, rows, values);
  });
}

absl::Status LoraBase::Merge(const float* adapters, Weights* weights) const {
  return reader_->Read(adapted_, load_, [&](int param, int64_t row, int64_t rows, const float* values) {
    const int64_t cols = weights->layout.params[param].cols;
    thread_local std::vector<float> merged;
    merged.assign(values, values + rows * cols);
    AddLowRank(layout_, adapters, param, row, rows, cols, merged.data());
    SetRows(weights, param, row, rows, merged.data());
  });
}

}  // namespace lockstep
