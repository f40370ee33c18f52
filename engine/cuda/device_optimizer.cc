#include "engine/cuda/device_optimizer.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace lockstep::cuda {

std::vector<DecayRange> DecayRanges(const ArenaLayout& layout) {
  // By offset: experts are not in the parameters' order, but all of them decay, as the router before them does.
  std::vector<std::pair<int64_t, bool>> begins;
  for (size_t param = 0; param < layout.offsets.size(); ++param) {
    begins.emplace_back(layout.offsets[param], layout.params.params[param].weight_decay);
  }
  std::sort(begins.begin(), begins.end());
  std::vector<DecayRange> ranges;
  for (const auto& [begin, decay] : begins) {
    if (!ranges.empty() && ranges.back().decay == decay) continue;
    if (!ranges.empty()) ranges.back().end = begin;
    ranges.push_back({begin, 0, decay});
  }
  ranges.back().end = layout.size;
  return ranges;
}

size_t DeviceOptimizer::Bytes(int64_t size) {
  return static_cast<size_t>(size) * 4 * sizeof(float) + static_cast<size_t>(GradNormScratch(size)) * sizeof(double) +
         sizeof(StepControl);
}

StepControl* DeviceOptimizer::control() const {
  static_assert(alignof(StepControl) == alignof(double));
  return reinterpret_cast<StepControl*>(partial() + GradNormScratch(size_));
}

absl::StatusOr<DeviceOptimizer> DeviceOptimizer::Create(int64_t size, std::vector<DecayRange> ranges,
                                                        const Stream& stream) {
  int64_t covered = 0;
  for (const DecayRange& range : ranges) {
    LOCKSTEP_CHECK(range.begin == covered && range.end >= range.begin, "the ranges of an arena follow each other");
    covered = range.end;
  }
  LOCKSTEP_CHECK(covered == size, "the ranges of an arena cover it");
  DeviceOptimizer optimizer;
  optimizer.size_ = size;
  optimizer.ranges_ = std::move(ranges);
  const std::pair<DeviceBuffer*, const char*> arenas[] = {{&optimizer.master_, "the FP32 master weights"},
                                                          {&optimizer.gradient_, "the FP32 gradient"},
                                                          {&optimizer.moment1_, "AdamW's first moment"},
                                                          {&optimizer.moment2_, "AdamW's second moment"}};
  for (const auto& [arena, purpose] : arenas) {
    auto memory = DeviceBuffer::Allocate(static_cast<size_t>(size) * sizeof(float), purpose);
    if (!memory.ok()) return memory.status();
    *arena = *std::move(memory);
    if (absl::Status status = arena->Zero(stream); !status.ok()) return status;
  }
  auto partial = DeviceBuffer::Allocate(
      static_cast<size_t>(GradNormScratch(size)) * sizeof(double) + sizeof(StepControl), "the gradient's norm");
  if (!partial.ok()) return partial.status();
  optimizer.partial_ = *std::move(partial);
  auto host = PinnedBuffer::Allocate(sizeof(StepControl), "the gradient's norm");
  if (!host.ok()) return host.status();
  optimizer.host_control_ = *std::move(host);
  return optimizer;
}

absl::Status DeviceOptimizer::Norm(double scale, double limit, const Stream& stream) {
  return CudaStatus(GradNorm(gradient(), size_, scale, limit, partial(), control(), stream.get()),
                    "the gradient's norm");
}

absl::Status DeviceOptimizer::Step(const AdamWParams& params, DType copy_dtype, void* copy, const Stream& stream) {
  Calls run;
  for (const DecayRange& range : ranges_) {
    AdamWParams of_range = params;
    if (!range.decay) of_range.weight_decay = 0;
    const int64_t at = range.begin;
    char* const to = copy == nullptr ? nullptr : static_cast<char*>(copy) + at * DTypeSize(copy_dtype);
    run(AdamW(of_range, control(), master() + at, moment1() + at, moment2() + at, gradient() + at, range.end - at,
              copy_dtype, to, stream.get()),
        "AdamW");
  }
  return run.status();
}

absl::StatusOr<StepControl> DeviceOptimizer::ReadControl(const Stream& stream) {
  absl::Status status = stream.CopyToHost(host_control_.data(), control(), sizeof(StepControl));
  if (status.ok()) status = stream.Wait("the gradient's norm");
  if (!status.ok()) return status;
  return *host_control_.As<StepControl>();
}

}  // namespace lockstep::cuda
