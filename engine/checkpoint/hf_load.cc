// From a folder's tensors to an arena or to weights, over threads. The unit of work is a run of whole panels of one
// parameter, whatever Hugging Face tensors it comes from: no two threads write the same panel.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/checkpoint/hf_tensors.h"

namespace lockstep {
namespace {

constexpr int64_t kBlockElements = 1 << 20;
constexpr int64_t kPanelRows = 16;
constexpr float kMaxHalf = 65504.0f;
constexpr float kMaxBFloat16 = 3.3895314e38f;
constexpr int kMaxThreads = 64;

float LargestValue(DType dtype) {
  if (dtype == DType::kF16) return kMaxHalf;
  return dtype == DType::kBF16 ? kMaxBFloat16 : std::numeric_limits<float>::max();
}

// What a tensor has that the target type cannot hold.
struct ValueCheck {
  int64_t non_finite = 0;
  int64_t too_large = 0;
  float largest = 0;

  // Clamps what is too large when asked to.
  void Count(float* values, int64_t n, float limit, bool clamp) {
    for (int64_t i = 0; i < n; ++i) {
      const float magnitude = std::fabs(values[i]);
      if (magnitude <= limit) continue;
      if (!std::isfinite(magnitude)) {
        ++non_finite;
        continue;
      }
      ++too_large;
      largest = std::max(largest, magnitude);
      if (clamp) values[i] = std::copysign(limit, values[i]);
    }
  }
  void Add(const ValueCheck& other) {
    non_finite += other.non_finite;
    too_large += other.too_large;
    largest = std::max(largest, other.largest);
  }
};

// Rows [begin, end) of a parameter; of a vector: its elements, all of them.
struct Work {
  int param = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

class Loader {
 public:
  Loader(const ParamLayout& layout, const HfTensors& tensors, const LoadOptions& options,
         const std::vector<bool>& wanted = {})
      : layout_(layout), tensors_(tensors), options_(options), checks_(layout.hf_tensors.size()) {
    first_tensor_.assign(layout.params.size(), 0);
    for (size_t i = layout.hf_tensors.size(); i-- > 0;) first_tensor_[layout.hf_tensors[i].param] = i;
    for (int param = 0; param < static_cast<int>(layout.params.size()); ++param) {
      if (!wanted.empty() && !wanted[param]) continue;
      const ParamSpec& spec = layout.params[param];
      total_ += spec.size();
      if (spec.kind == ParamSpec::Kind::kVector) {
        work_.push_back({param, 0, spec.cols});
        continue;
      }
      const int64_t rows = std::max(kPanelRows, kBlockElements / spec.cols / kPanelRows * kPanelRows);
      for (int64_t row = 0; row < spec.rows; row += rows) {
        work_.push_back({param, row, std::min(spec.rows, row + rows)});
      }
    }
  }

  absl::Status Run(const TakeRows& take) {
    int count = options_.threads > 0 ? options_.threads : static_cast<int>(std::thread::hardware_concurrency());
    count = std::clamp(count, 1, std::min(kMaxThreads, static_cast<int>(work_.size())));
    std::vector<std::thread> threads;
    for (int i = 1; i < count; ++i) threads.emplace_back([&] { RunWork(take); });
    RunWork(take);
    for (std::thread& thread : threads) thread.join();
    return Result();
  }

 private:
  void RunWork(const TakeRows& take) {
    std::vector<float> values;
    for (size_t i = next_++; i < work_.size(); i = next_++) {
      const Work& work = work_[i];
      const ParamSpec& spec = layout_.params[work.param];
      const int64_t cols = spec.kind == ParamSpec::Kind::kVector ? 1 : spec.cols;
      values.resize(static_cast<size_t>((work.end - work.begin) * cols));
      absl::Status status = Read(work, cols, values.data());
      if (status.ok()) take(work.param, work.begin, work.end - work.begin, values.data());
      const std::lock_guard lock(mutex_);
      if (status_.ok()) status_ = status;
      done_ += static_cast<int64_t>(values.size());
      if (options_.progress) options_.progress(done_, total_);
    }
  }

  // The work's rows from all tensors that they are part of.
  absl::Status Read(const Work& work, int64_t cols, float* values) {
    for (size_t i = first_tensor_[work.param]; i < layout_.hf_tensors.size(); ++i) {
      const HfTensor& tensor = layout_.hf_tensors[i];
      if (tensor.param != work.param) break;
      const int64_t begin = std::max(work.begin, tensor.row_begin);
      const int64_t end = std::min(work.end, tensor.row_begin + tensor.shape[0]);
      if (begin >= end) continue;
      const TensorPlace& place = tensors_.places[i];
      float* to = values + (begin - work.begin) * cols;
      absl::Status status = place.file->ReadFloats(*place.entry, place.first + (begin - tensor.row_begin) * cols,
                                                   (end - begin) * cols, to);
      if (!status.ok()) return status;
      ValueCheck check;
      check.Count(to, (end - begin) * cols, LargestValue(options_.dtype), options_.clamp);
      const std::lock_guard lock(mutex_);
      checks_[i].Add(check);
    }
    return absl::OkStatus();
  }

  // The first tensor in the layout's order that has a value which cannot be loaded, and how many more there are.
  absl::Status Result() const {
    if (!status_.ok()) return status_;
    std::string first;
    int bad_tensors = 0;
    for (size_t i = 0; i < checks_.size(); ++i) {
      const ValueCheck& check = checks_[i];
      if (check.non_finite == 0 && check.too_large == 0) continue;
      const std::string tensor =
          absl::StrCat(tensors_.places[i].file->path(), ": tensor \"", layout_.hf_tensors[i].name, "\" has ");
      const std::string beyond =
          absl::StrCat(tensor, check.too_large, " values beyond ", LargestValue(options_.dtype), ", the largest of ",
                       std::string(DTypeName(options_.dtype)), " (up to ", check.largest, ")");
      if (check.non_finite == 0 && options_.clamp) {
        LogWarning(beyond, "; they are clamped to it");
        continue;
      }
      if (++bad_tensors > 1) continue;
      if (check.non_finite > 0) {
        first = absl::StrCat(tensor, check.non_finite, " values that are NaN or infinite");
      } else {
        const bool fp16 = options_.dtype == DType::kF16;
        first = absl::StrCat(beyond, "; use another dtype", fp16 ? ", or model.clamp_fp16: true to clamp them" : "");
      }
    }
    if (bad_tensors == 0) return absl::OkStatus();
    if (bad_tensors > 1) absl::StrAppend(&first, "; so have ", bad_tensors - 1, " more tensors");
    return absl::InvalidArgumentError(first);
  }

  const ParamLayout& layout_;
  const HfTensors& tensors_;
  const LoadOptions& options_;
  std::vector<size_t> first_tensor_;  // [params] index of a parameter's first tensor; the others follow it
  std::vector<Work> work_;
  std::atomic<size_t> next_ = 0;
  std::mutex mutex_;  // guards what follows
  std::vector<ValueCheck> checks_;
  absl::Status status_;
  int64_t done_ = 0;
  int64_t total_ = 0;  // elements of the work
};

}  // namespace

struct HfFolderReader::Impl {
  explicit Impl(const ModelConfig& config) : layout(config) {}
  ParamLayout layout;
  HfTensors tensors;
};

HfFolderReader::HfFolderReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HfFolderReader::~HfFolderReader() = default;

absl::StatusOr<std::unique_ptr<HfFolderReader>> HfFolderReader::Open(const std::string& dir,
                                                                     const ModelConfig& config) {
  auto impl = std::make_unique<Impl>(config);
  auto tensors = OpenHfTensors(dir, config, impl->layout);
  if (!tensors.ok()) return tensors.status();
  impl->tensors = *std::move(tensors);
  return std::unique_ptr<HfFolderReader>(new HfFolderReader(std::move(impl)));
}

absl::Status HfFolderReader::Read(const std::vector<bool>& wanted, const LoadOptions& options,
                                  const TakeRows& take) const {
  const absl::Status status = Loader(impl_->layout, impl_->tensors, options, wanted).Run(take);
  for (const auto& file : impl_->tensors.files) file->ReleasePages();
  return status;
}

absl::Status LoadHfArena(const std::string& dir, const ModelConfig& config, float* arena, const LoadOptions& options) {
  const ParamLayout layout(config);
  const auto tensors = OpenHfTensors(dir, config, layout);
  if (!tensors.ok()) return tensors.status();
  return Loader(layout, *tensors, options).Run([&](int param, int64_t row, int64_t rows, const float* values) {
    const ParamSpec& spec = layout.params[param];
    const int64_t cols = spec.kind == ParamSpec::Kind::kVector ? 1 : spec.cols;
    std::copy(values, values + rows * cols, arena + spec.offset + row * cols);
  });
}

absl::StatusOr<std::shared_ptr<Weights>> LoadHfWeights(const std::string& dir, DType dtype,
                                                       const LoadOptions& options) {
  const auto config = ReadHfConfig(dir);
  if (!config.ok()) return config.status();
  const ParamLayout layout(*config);
  const auto tensors = OpenHfTensors(dir, *config, layout);  // before anything of the model's size is allocated
  if (!tensors.ok()) return tensors.status();
  auto weights = std::make_shared<Weights>(*config, dtype);
  LoadOptions own = options;
  own.dtype = dtype;
  const absl::Status status =
      Loader(layout, *tensors, own).Run([&](int param, int64_t row, int64_t rows, const float* values) {
        const ParamSpec& spec = layout.params[param];
        const bool is_vector = spec.kind == ParamSpec::Kind::kVector;
        Tensor view(const_cast<float*>(values), DType::kF32, is_vector ? 1 : rows, is_vector ? rows : spec.cols);
        weights->SetParamRows(param, row, view);
      });
  if (!status.ok()) return status;
  return weights;
}

std::function<void(int64_t, int64_t)> LogLoadProgress(const std::string& dir) {
  constexpr std::chrono::seconds kInterval(5);
  auto last = std::make_shared<std::chrono::steady_clock::time_point>(std::chrono::steady_clock::now());
  return [dir, last, kInterval](int64_t done, int64_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (now - *last < kInterval) return;
    *last = now;
    LogInfo("loading ", dir, ": ", done * 100 / total, " % of ", total / 1000000, " million parameters");
  };
}

}  // namespace lockstep
