// Problems from JSON lines, and the order in which a run takes them.
//
// A line is an object, with the names that data sets in use have:
//   problem   prompt, problem, question or input: text
//   answer    answer, label, solution, ground_truth, or verl's reward_model.ground_truth: text or a number. Of a text
//             with "####" (GSM8K) the answer is what follows the last one.
//   response  for supervised training: response or completion (TRL)
// The first name that is there and not null counts; other fields are carried along in `line`.
#ifndef LOCKSTEP_LEARNER_DATASET_H_
#define LOCKSTEP_LEARNER_DATASET_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/tokenizer.h"

namespace lockstep {

struct Problem {
  std::string answer;
  std::vector<int32_t> prompt_tokens;    // of the template with the problem in it
  std::vector<int32_t> response_tokens;  // supervised: the response and the end-of-text token
  std::string line;                      // the JSON as it came
};

struct DatasetOptions {
  std::string path;
  std::string prompt_template;      // see prompt_templates.h; empty: the problem as it is
  std::string model_dir;            // whose chat template the prompt_template "chat" is
  int64_t max_prompt_tokens = 0;    // 0: no limit
  int64_t max_sequence_tokens = 0;  // of the model; prompt and response of a supervised line must fit. 0: no limit
  uint64_t max_problems = 0;        // the first of the file; 0: all
  bool needs_answer = false;
  bool needs_response = false;
  int32_t eos_token_id = -1;  // ends a supervised response; -1: none
};

// Errors are one line: FILE:LINE: what is wrong.
absl::StatusOr<std::vector<Problem>> LoadDataset(const DatasetOptions& options, const Tokenizer& tokenizer);

// Position 0, 1, 2, ... of a run to an index into the data set. Each pass over the data is a permutation drawn by
// (seed, pass) alone, so a resumed run goes on exactly where it was: the position is all the state.
class DataOrder {
 public:
  DataOrder(uint64_t size, uint64_t seed, bool shuffle);
  uint64_t IndexAt(uint64_t position);

 private:
  uint64_t size_;
  uint64_t seed_;
  bool shuffle_;
  uint64_t pass_ = UINT64_MAX;  // whose permutation is in order_
  std::vector<uint64_t> order_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_DATASET_H_
