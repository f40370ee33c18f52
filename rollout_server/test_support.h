// What the tests of the rollout server share: a tiny model with random weights, a sink that records, the log-probs of
// the training forward.
#ifndef LOCKSTEP_ROLLOUT_SERVER_TEST_SUPPORT_H_
#define LOCKSTEP_ROLLOUT_SERVER_TEST_SUPPORT_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernels/ops.h"
#include "engine/model/decoder.h"
#include "engine/model/routing.h"
#include "proto/rollout.pb.h"
#include "rollout_server/batch_engine.h"

namespace lockstep {

// 2 layers, 32 wide, 97 tokens, no eos.
ModelConfig TinyConfig();
// Random, by seed; large enough that distributions are far from uniform.
std::shared_ptr<const Weights> TinyWeights(uint64_t seed, uint64_t version = 0, DType dtype = DType::kF16);

// The same with mixtures of `experts` in both layers, top 2 of 4 or top 3 of more.
ModelConfig TinyMixtureConfig(int64_t experts);
std::shared_ptr<const Weights> TinyMixtureWeights(int64_t experts, uint64_t seed, uint64_t version = 0,
                                                  DType dtype = DType::kF16);

// Passes every call on, for backends of tests that change one.
class ForwardingBackend : public StepBackend {
 public:
  explicit ForwardingBackend(std::unique_ptr<StepBackend> backend) : backend_(std::move(backend)) {}
  int64_t num_pages() const override { return backend_->num_pages(); }
  int64_t max_sequence_tokens() const override { return backend_->max_sequence_tokens(); }
  absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) override { return backend_->Prepare(weights); }
  MakeShadow device_shadow() override { return backend_->device_shadow(); }
  absl::Status Launch(const WeightSet& weights, const StepInput& input) override {
    return backend_->Launch(weights, input);
  }
  absl::Status Collect(StepOutput* output) override { return backend_->Collect(output); }
  bool launches_ahead() const override { return backend_->launches_ahead(); }
  absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) override {
    return backend_->CopyPage(from, to, tokens);
  }
  absl::Status Check() override { return backend_->Check(); }

 private:
  const std::unique_ptr<StepBackend> backend_;
};

// A prompt of `tokens` tokens, by seed.
std::vector<int32_t> TinyPrompt(uint64_t seed, int64_t tokens);
v1::Group TinyGroup(uint64_t group_id, int64_t prompt_tokens, uint32_t num_samples, uint32_t max_tokens);

// A sample as put together from its chunks.
struct Received {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::vector<uint64_t> versions;
  std::string prompt_routing, routing;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  bool stale_kv_cache = false;
  int restarts = 0;

  // Same tokens, same bits.
  bool SameDraws(const Received& other) const { return tokens == other.tokens && log_probs == other.log_probs; }
};

// (group_id, sample_index) to what was received of it. Fails the test on a gap, on arrays of unequal length or on a
// chunk after the last.
class Samples {
 public:
  void Add(const v1::GenerateResponse& response);
  const Received& at(uint64_t group_id, uint32_t sample_index) const;
  size_t finished() const { return finished_; }
  size_t size() const { return samples_.size(); }
  const std::map<std::pair<uint64_t, uint32_t>, Received>& all() const { return samples_; }
  const std::vector<v1::GroupRefused>& refused() const { return refused_; }
  uint32_t credits() const { return credits_; }
  // Messages with the routing of a group's prompt.
  int prompt_routings(uint64_t group_id) const;

 private:
  std::map<std::pair<uint64_t, uint32_t>, Received> samples_;
  std::map<uint64_t, std::string> prompt_routing_;  // by group_id: the newest
  std::map<uint64_t, int> prompt_routings_;
  std::vector<v1::GroupRefused> refused_;
  size_t finished_ = 0;
  uint32_t credits_ = 0;
};

class RecordingSink : public ResultSink {
 public:
  void Push(v1::GenerateResponse response) override { samples.Add(response); }
  bool Full() const override { return full; }
  void Fail(const std::string& reason) override { failure = reason; }

  Samples samples;
  bool full = false;
  std::string failure;
};

// log pi of `response` after `prompt`, by the learner's packed forward.
std::vector<float> TrainingLogProbs(const Weights& weights, Ops* ops, const std::vector<int32_t>& prompt,
                                    const std::vector<int32_t>& response, float temperature);
// The experts of all positions but the last, by the same: rows of engine/model/routing.h.
std::string TrainingRouting(const Weights& weights, Ops* ops, const std::vector<int32_t>& prompt,
                            const std::vector<int32_t>& response);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_TEST_SUPPORT_H_
