// The offline analysis of arXiv 2510.26788 figure 2, after the engines have spoken: pairs of a training and a rollout
// precision, and what their log-probs of the same tokens say.
#ifndef LOCKSTEP_LEARNER_MISMATCH_PAIRS_H_
#define LOCKSTEP_LEARNER_MISMATCH_PAIRS_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/ops.h"
#include "engine/tensor/dtype.h"

namespace lockstep {

// One engine's arithmetic.
struct Precision {
  DType dtype = DType::kBF16;
  Numerics numerics = Numerics::kNative;
  bool operator==(const Precision&) const = default;
  std::string Name() const;  // "bf16 native"
};

struct PrecisionPair {
  Precision learner, rollout;
  std::string Name() const;  // "bf16/fp16" (native) or "bf16/fp16@matched"
};

// "LEARNER/ROLLOUT[@native|@matched],...": dtypes fp16, bf16, fp32; native where nothing is said. Each pair once.
absl::StatusOr<std::vector<PrecisionPair>> ParsePrecisionPairs(const std::string& text);

// [sequence][response token].
using LogProbLists = std::vector<std::vector<float>>;

// A line fitted by least squares to a dot a response: x its length in thousands of tokens, y = log(pi / mu) of the
// whole response, in nats. `slope` is in nats per 1,000 tokens.
struct LengthFit {
  bool has_slope = false;  // false: all lengths are equal, and only the line through the origin means something
  double slope = 0, intercept = 0;
  double slope_through_origin = 0;
};
LengthFit FitLength(const std::vector<double>& lengths, const std::vector<double>& log_ratios);

// `count` indices of [0, of), evenly spaced, ascending, beginning with 0; all of them when count >= of. Depends on
// nothing else.
std::vector<size_t> EvenIndices(size_t of, size_t count);

// The figures and points of a pair as JSON; docs/mismatch.md describes each field. Both lists have the same shape, and
// their values are finite. At most max_token_points token points.
nlohmann::ordered_json PairReport(const PrecisionPair& pair, const LogProbLists& log_mu, const LogProbLists& log_pi,
                                  size_t max_token_points);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MISMATCH_PAIRS_H_
