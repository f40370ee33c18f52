#include "learner/pass_at_k.h"

#include <algorithm>
#include <map>

#include "engine/base/check.h"

namespace lockstep {

double PassAtK(int64_t n, int64_t c, int64_t k) {
  LOCKSTEP_CHECK(c >= 0 && c <= n && k >= 1 && k <= n, "pass@k needs 0 <= c <= n and 1 <= k <= n");
  if (n - c < k) return 1;  // any k samples hold a correct one
  // C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i)
  double all_wrong = 1;
  for (int64_t i = 0; i < k; ++i) all_wrong *= static_cast<double>(n - c - i) / static_cast<double>(n - i);
  return 1 - all_wrong;
}

double MajorityAtK(std::span<const Vote> votes, int64_t k) {
  LOCKSTEP_CHECK(k >= 1 && k <= static_cast<int64_t>(votes.size()), "maj@k needs 1 <= k <= the number of votes");
  struct Class {
    int64_t votes = 0;
    bool correct = false;
  };
  std::map<int, Class> classes;
  int64_t most = 0;
  for (const Vote& vote : votes.first(static_cast<size_t>(k))) {
    if (vote.answer_class == Vote::kNoAnswer) continue;
    Class& voted = classes[vote.answer_class];
    if (voted.votes == 0) voted.correct = vote.correct;
    most = std::max(most, ++voted.votes);
  }
  double leaders = 0, correct = 0;
  for (const auto& [answer_class, counted] : classes) {
    if (counted.votes < most) continue;
    ++leaders;
    correct += counted.correct ? 1 : 0;
  }
  return leaders > 0 ? correct / leaders : 0;
}

std::vector<uint32_t> ReportedKs(uint32_t n) {
  std::vector<uint32_t> ks;
  for (uint64_t k = 1; k < n; k *= 2) ks.push_back(static_cast<uint32_t>(k));
  if (n > 0) ks.push_back(n);
  return ks;
}

}  // namespace lockstep
