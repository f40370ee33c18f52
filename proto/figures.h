// The figures of a step or a held-out evaluation by name, as metrics.jsonl and the ledger have them, and the tag that
// TensorBoard shows each under. One list for who writes them (the learner) and who reads them (the client).
//
// Names of a step: the fields of StepSummary, and "seconds.PHASE". Names of an evaluation: "pass@K", "maj@K" and the
// other fields of EvalSummary.
#ifndef LOCKSTEP_PROTO_FIGURES_H_
#define LOCKSTEP_PROTO_FIGURES_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/event_file.h"

namespace lockstep {

using Figures = std::map<std::string, double>;

struct FigureSpec {
  std::string_view name;
  std::string_view tag;     // "group/name" in TensorBoard; empty: not shown (it is the step itself)
  bool supervised = false;  // a supervised step has it too
};

// Every field of StepSummary, except the map `seconds`.
const std::vector<FigureSpec>& StepFigureSpecs();

struct LineFigures {
  uint64_t step = 0;
  bool evaluation = false;
  Figures figures;  // null (a number that is not finite) is NaN; booleans are 0 and 1
};

// A line of metrics.jsonl, or a summary of the ledger's table steps. INVALID_ARGUMENT when it is not a JSON object with
// a step.
absl::StatusOr<LineFigures> ParseFigures(const std::string& json);
// A summary of the ledger's table evaluations (EvalSummary in protobuf's own JSON).
absl::StatusOr<LineFigures> ParseLedgerEvaluation(const std::string& json);

// In TensorBoard's order of tags. supervised: only what a supervised step has.
std::vector<Scalar> StepScalars(const Figures& figures, bool supervised);
std::vector<Scalar> EvaluationScalars(const Figures& figures);

}  // namespace lockstep

#endif  // LOCKSTEP_PROTO_FIGURES_H_
