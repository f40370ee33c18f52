// RUN/starts.jsonl: what ran, one line a start of the learner's rank 0, for reports.
//   {"mode": "rl", "epoch": 1, "step": 0, "started_at": "2026-01-31T12:00:00Z", "version": "0.1.0",
//    "machine": {"processor": "...", "cores": 2, "memory_bytes": 1, "gpus": ["..."]}}
#ifndef LOCKSTEP_LEARNER_RUN_START_H_
#define LOCKSTEP_LEARNER_RUN_START_H_

#include <cstdint>
#include <string>

namespace lockstep {

// Appends the line. epoch: the ledger's, 0 without one; step: the steps done before. A failure is logged: a run does
// not end for it.
void RecordStart(const std::string& run_dir, const std::string& mode, uint64_t epoch, uint64_t step);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_RUN_START_H_
