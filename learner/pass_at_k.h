// Estimators over n samples of one problem: plain arithmetic on counts.
#ifndef LOCKSTEP_LEARNER_PASS_AT_K_H_
#define LOCKSTEP_LEARNER_PASS_AT_K_H_

#include <cstdint>
#include <span>
#include <vector>

namespace lockstep {

// The probability that at least one of k samples, drawn without replacement from n of which c are correct, is correct:
// 1 - C(n - c, k) / C(n, k). Unbiased for the pass rate of k fresh samples (Chen et al. 2021, arXiv 2107.03374,
// equation 1). Needs 0 <= c <= n and 1 <= k <= n. As a product of k factors, so nothing overflows.
double PassAtK(int64_t n, int64_t c, int64_t k);

// What one sample says: samples whose answers mean the same share a class; kNoAnswer does not vote.
struct Vote {
  static constexpr int kNoAnswer = -1;
  int answer_class = kNoAnswer;
  bool correct = false;
};

// Majority vote over the first k votes (the samples are exchangeable, so any k of them are a fair draw): 1 when the
// class with most votes is correct. A tie is broken uniformly, so it gives the fraction of the tied classes that are
// correct. A class is correct when its first vote is. 0 without any answer.
double MajorityAtK(std::span<const Vote> votes, int64_t k);

// The k of a report on n samples: 1, 2, 4, ... below n, and n.
std::vector<uint32_t> ReportedKs(uint32_t n);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_PASS_AT_K_H_
