// What every algorithm.name stands for: the constants, advantage and aggregation that a run takes where its file says
// 0 or "auto", and which settings mean something to it. The one list of names: the client checks run files against it,
// the learner has a function for each (learner/objective.cc). docs/objectives.md explains them.
#ifndef LOCKSTEP_PROTO_ALGORITHMS_H_
#define LOCKSTEP_PROTO_ALGORITHMS_H_

#include <string>
#include <string_view>
#include <vector>

#include "proto/run_config.pb.h"

namespace lockstep {

struct AlgorithmSpec {
  std::string_view name;
  float is_clip = 0;   // C, the upper bound of the importance weight; 0: the weight has no bound, or there is none
  float is_low = 0;    // the lower bound of a two-sided mask; 0: there is none
  float clip_low = 0;  // the ratio's clip range [1 - clip_low, 1 + clip_high]; 0 and 0: it has none
  float clip_high = 0;
  bool uses_old = false;  // the log-probs of pi_old enter
  bool uses_mu = false;   // log mu enters: a difference between mu and pi is corrected
  std::string_view advantage = "mean";
  std::string_view aggregation = "constant";
  bool fixed = false;  // advantage and aggregation are what the name means: others are refused

  bool clips() const { return clip_low > 0 || clip_high > 0; }
  // The weight pi_old / mu, which is 1 where pi_old is taken to be mu.
  bool corrects_old() const { return uses_old && uses_mu; }
};

const std::vector<AlgorithmSpec>& Algorithms();
// Null: there is none of this name.
const AlgorithmSpec* FindAlgorithm(std::string_view name);
// "pg, reinforce, ..."
std::string AlgorithmNames();

// Puts the algorithm's own values where 0 or "auto" (or nothing) stands. An unknown name is left as it is.
void ResolveAlgorithm(v1::AlgorithmConfig* algorithm);

}  // namespace lockstep

#endif  // LOCKSTEP_PROTO_ALGORITHMS_H_
