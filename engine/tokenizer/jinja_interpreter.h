// Runs a parsed chat template.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_JINJA_INTERPRETER_H_
#define LOCKSTEP_ENGINE_TOKENIZER_JINJA_INTERPRETER_H_

#include <ctime>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/jinja_ast.h"

namespace lockstep::jinja {

struct RunLimits {
  int64_t steps = 5'000'000;
  int64_t bytes = int64_t{256} << 20;  // of all values made on the way
  size_t output_bytes = size_t{16} << 20;
};

// Errors are one line, "line 3: ...". `now` is what strftime_now tells; without it the function is undefined.
absl::StatusOr<std::string> RunTemplate(const Statement::Body& body,
                                        const std::vector<std::pair<std::string, Value>>& variables,
                                        const std::optional<std::tm>& now, const RunLimits& limits, Budget* budget);

}  // namespace lockstep::jinja

#endif  // LOCKSTEP_ENGINE_TOKENIZER_JINJA_INTERPRETER_H_
