// Time on the device, and what it is reported as.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_TIMING_H_
#define LOCKSTEP_TESTS_GPU_BENCH_TIMING_H_

#include <cstdio>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/cuda/device.h"

namespace lockstep::cuda {

struct Repeats {
  int warm_up = 3;
  int measured = 11;
};

// Median seconds of `body`, which puts work on the stream and may wait for it, between a CUDA event before it and one
// behind it. Where the host is late the device waits, and the time counts. `prepare` runs before each, unmeasured.
absl::StatusOr<double> MedianSeconds(
    const Stream& stream, const Repeats& repeats, absl::FunctionRef<absl::Status()> body,
    absl::FunctionRef<absl::Status()> prepare = [] { return absl::OkStatus(); });

// Tables as Markdown, line by line to stdout and to the file of Open.
class Tables {
 public:
  absl::Status Open(const std::string& path);
  ~Tables();
  void Text(absl::string_view paragraph);
  void Begin(absl::string_view heading, const std::vector<std::string>& columns);
  void Row(const std::vector<std::string>& cells);
  // A row of the table that could not be measured: why.
  void NoRow(absl::string_view what, const absl::Status& status);
  // How many of those there were.
  int missing() const { return missing_; }

 private:
  void Line(const std::string& line);
  std::FILE* file_ = nullptr;
  size_t columns_ = 0;
  int missing_ = 0;
};

// "1.234", with so many decimals; "81%".
std::string Number(double value, int decimals);
std::string Percent(double fraction);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_TIMING_H_
