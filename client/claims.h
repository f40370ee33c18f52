// A report's comparison with what others claim: a JSON file,
//   {"title": "...", "claims": [{"id": "C1", "claim": "...", "paper_figure": "...", "ours": "...", "verdict": "...",
//                                "command": "..."}]}
// or the list alone. id and claim are needed; values are text or numbers.
#ifndef LOCKSTEP_CLIENT_CLAIMS_H_
#define LOCKSTEP_CLIENT_CLAIMS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lockstep {

struct Claim {
  std::string id, claim, paper_figure, ours, verdict, command;
};

struct Claims {
  std::string title;
  std::vector<Claim> claims;
};

// `name` stands for the file in errors, which name the entry and the key.
absl::StatusOr<Claims> ParseClaims(const std::string& json, const std::string& name);
absl::StatusOr<Claims> ReadClaims(const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_CLAIMS_H_
