#include "tests/gpu/bench/timing.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace lockstep::cuda {
namespace {

// An event that keeps its time, which engine/cuda's does not.
class TimedEvent {
 public:
  TimedEvent() { error_ = cudaEventCreateWithFlags(&event_, cudaEventDefault); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  ~TimedEvent() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }
  absl::Status Record(const Stream& stream) const {
    return CudaStatus(error_ != cudaSuccess ? error_ : cudaEventRecord(event_, stream.get()), "recording an event");
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

absl::StatusOr<double> MedianSeconds(const Stream& stream, const Repeats& repeats,
                                     absl::FunctionRef<absl::Status()> body,
                                     absl::FunctionRef<absl::Status()> prepare) {
  const TimedEvent begin, end;
  std::vector<float> times;
  for (int i = 0; i < repeats.warm_up + repeats.measured; ++i) {
    absl::Status status = prepare();
    if (status.ok()) status = begin.Record(stream);
    if (status.ok()) status = body();
    if (status.ok()) status = end.Record(stream);
    if (status.ok()) status = stream.Wait("what is measured");
    float milliseconds = 0;
    if (status.ok()) status = CudaStatus(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "reading a time");
    if (!status.ok()) return status;
    if (i >= repeats.warm_up) times.push_back(milliseconds);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e-3;
}

absl::Status Tables::Open(const std::string& path) {
  file_ = std::fopen(path.c_str(), "w");
  return file_ != nullptr ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrCat(path, " cannot be written"));
}

Tables::~Tables() {
  if (file_ != nullptr) std::fclose(file_);
}

void Tables::Line(const std::string& line) {
  for (std::FILE* to : {stdout, file_}) {
    if (to == nullptr) continue;
    std::fprintf(to, "%s\n", line.c_str());
    std::fflush(to);
  }
}

void Tables::Text(absl::string_view paragraph) { Line(absl::StrCat("\n", paragraph)); }

void Tables::Begin(absl::string_view heading, const std::vector<std::string>& columns) {
  columns_ = columns.size();
  Line(absl::StrCat("\n### ", heading, "\n"));
  Row(columns);
  Row(std::vector<std::string>(columns.size(), "---"));
}

void Tables::Row(const std::vector<std::string>& cells) { Line(absl::StrCat("| ", absl::StrJoin(cells, " | "), " |")); }

void Tables::NoRow(absl::string_view what, const absl::Status& status) {
  std::vector<std::string> cells(columns_);
  cells[0] = absl::StrCat(what, ": ", status.message());
  Row(cells);
  ++missing_;
}

std::string Number(double value, int decimals) { return absl::StrFormat("%.*f", decimals, value); }
std::string Percent(double fraction) { return absl::StrFormat("%.0f%%", fraction * 100); }

}  // namespace lockstep::cuda
