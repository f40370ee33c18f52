// What a run folder holds of a run, read without disturbing it: the steps and evaluations of its ledger (or of
// metrics.jsonl, where there is no ledger: supervised runs), its config, and what its learner said of each start.
#ifndef LOCKSTEP_CLIENT_RUN_DATA_H_
#define LOCKSTEP_CLIENT_RUN_DATA_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/figures.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct RunStart {
  std::string started_at;  // RFC 3339, UTC
  std::string version;     // empty: a run from before they were recorded; so are the others
  std::string processor;
  std::string gpus;  // names, comma-separated
  uint64_t cores = 0;
  double memory_gib = 0;
};

struct RunData {
  std::string path;
  std::string name;         // last part of path
  bool supervised = false;  // `lockstep pretrain`
  std::map<uint64_t, Figures> steps;
  std::map<uint64_t, Figures> evaluations;  // by the steps done before
  // Seconds since 1970 at which a step ended, from its start of the learner and the durations since: an estimate.
  std::map<uint64_t, double> step_times;
  std::optional<v1::RunConfig> config;
  std::vector<RunStart> starts;
};

// NOT_FOUND: the folder is not there, or is none of a run. A run without a step is read: it has none. The ledger is
// opened read-only, in one short read transaction, which does not keep the learner from writing.
absl::StatusOr<RunData> ReadRun(const std::string& path);

// Whether the folder has a ledger or a metrics.jsonl.
bool IsRunFolder(const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_RUN_DATA_H_
