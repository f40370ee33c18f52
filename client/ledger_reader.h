// The steps and evaluations of a run's ledger (tables: learner/ledger.h), read-only.
#ifndef LOCKSTEP_CLIENT_LEDGER_READER_H_
#define LOCKSTEP_CLIENT_LEDGER_READER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

struct LedgerStep {
  uint64_t step = 0;
  uint64_t epoch = 0;
  std::string summary;  // JSON
};

struct LedgerContents {
  std::map<uint64_t, std::string> epochs;  // started_at
  std::vector<LedgerStep> steps;           // ascending
  std::vector<std::string> evaluations;    // JSON, ascending by step
};

// One read transaction, as long as the reading takes: a writer goes on meanwhile. Nothing is written where the ledger
// was closed; beside one that is in use (or was left by a kill) SQLite keeps its shared-memory file. DATA_LOSS: not a
// ledger, or damaged.
absl::StatusOr<LedgerContents> ReadLedger(const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_LEDGER_READER_H_
