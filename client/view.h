// What a person sees of a run: a block that is redrawn on a terminal, plain lines otherwise.
#ifndef LOCKSTEP_CLIENT_VIEW_H_
#define LOCKSTEP_CLIENT_VIEW_H_

#include <cstdio>
#include <string>

#include "proto/learner.pb.h"

namespace lockstep {

// One line of a finished step: step, reward, length, KL(mu||pi), loss scale, tokens/s, staleness, time left.
std::string StepLine(const v1::RunStatus& status);
// One line of a held-out evaluation: pass@1, pass@n, maj@n, length, fraction cut by length.
std::string EvalLine(const v1::EvalSummary& eval);
// The block of `status` and of the terminal view, one string a line.
std::string StatusBlock(const v1::RunStatus& status);
std::string PhaseName(v1::RunPhase phase);
// "1h02m", "3m05s", "12s"; "?" for a negative time.
std::string Duration(double seconds);

class View {
 public:
  // terminal: redraw in place; otherwise print each finished step and message once.
  View(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}
  void Show(const v1::RunStatus& status);
  // A line that stays (an error, a restart), above the block.
  void Note(const std::string& line);

 private:
  void Erase();
  std::FILE* const out_;
  const bool terminal_;
  int drawn_lines_ = 0;
  int64_t last_step_ = -1;
  int64_t last_eval_step_ = -1;
  std::string last_message_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_VIEW_H_
