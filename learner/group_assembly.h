// The samples of one group put together from token chunks that may come twice, late, from a superseded attempt, or not
// at all. Pure: no clock, no RPC. Every array that leaves here is checked.
#ifndef LOCKSTEP_LEARNER_GROUP_ASSEMBLY_H_
#define LOCKSTEP_LEARNER_GROUP_ASSEMBLY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/routing.h"
#include "learner/trajectory.h"
#include "proto/rollout.pb.h"

namespace lockstep {

class GroupAssembly {
 public:
  enum class Outcome {
    kAppended,    // tokens of a sample that goes on
    kSampleDone,  // a sample is complete; others are missing
    kGroupDone,   // the last sample is complete
    kStale,       // of a superseded attempt, or tokens that are here already: not counted
    kCancelled,   // the server gave the sample up: issue the group again
  };

  // request: the whole group (no sample_indices); its attempt is not used. routing: of the run's model, where the
  // request asks for it.
  explicit GroupAssembly(v1::Group request, const RoutingShape& routing = {});

  // The group as it must be sent now: attempt 1, 2, 3, ... and the samples that are missing. Tokens of samples that are
  // not complete are dropped: the next attempt draws them again, equal for equal weights.
  v1::Group NextIssue();
  // An error says what the server sent that cannot be: the attempt must be given up.
  absl::StatusOr<Outcome> Add(const v1::TokenChunk& chunk);
  // A piece of the prompt's routing; it counts for the samples whose first chunk is still to come. Errors as of Add.
  absl::Status AddPromptRouting(const v1::PromptRouting& piece);

  uint32_t attempt() const { return attempt_; }
  uint32_t samples_done() const { return samples_done_; }
  bool done() const { return samples_done_ == request_.num_samples(); }
  const v1::Group& request() const { return request_; }
  // Once done: ascending by sample_index.
  std::vector<Sample> TakeSamples() { return std::move(samples_); }

 private:
  absl::Status CheckChunk(const v1::TokenChunk& chunk, const Sample& sample) const;
  absl::Status CheckChunkRouting(const v1::TokenChunk& chunk) const;
  // Back to before its first token.
  void Clear(Sample* sample) const;
  size_t prompt_routing_bytes() const {
    return static_cast<size_t>(request_.prompt_token_ids_size() - 1) * routing_.row_bytes();
  }

  v1::Group request_;
  RoutingShape routing_;
  std::shared_ptr<std::string> prompt_routing_;  // of this attempt: the newest; null: none has come
  uint32_t attempt_ = 0;
  uint32_t samples_done_ = 0;
  std::vector<Sample> samples_;
  std::vector<bool> done_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_GROUP_ASSEMBLY_H_
