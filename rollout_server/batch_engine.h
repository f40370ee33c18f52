// The batched decode engine without threads: sequences, KV cache and scheduler over a StepBackend, which computes.
// Step() is one engine step; everything else happens between two steps, so a step never sees two weight sets and a
// token is never computed with a mixture. Called by one thread (DecodeLoop's), but for Prepare.
//
// Where the backend can (StepBackend::launches_ahead), the step after one of decode rows alone is launched before that
// one is collected, so that a device does not wait for the host: if it is of decode rows alone as well when every row
// goes on but those that are known to end. Rows that turn out to have ended are thrown away when their step is
// collected, and their pages are held until then. So what becomes free by a row that ends unforeseen is given away one
// step later; nothing else depends on it, and no token, since draws have keys of their own. The one command that is not
// taken beside a step in flight is a weight switch, which collects it first.
//
// A backend that fails (a lost device) ends the engine: its consumers are told, nothing is computed any more, and
// status() says why.
//
// Weights: each sequence is bound to a weight set at its first admission. SwitchWeights makes a set current and treats
// what is in flight:
//   finish             bound sequences keep their set (counted pointer) to their end; new ones take the new set. At
//                      most kMaxWeightSets sets live: sequences of older ones go on as under `continue`.
//   continue           tokens stay, with their versions; the cache is dropped and recomputed with the new weights.
//   continue_stale_kv  tokens and cache stay; the sample is marked. Prompts in prefill begin anew.
//   restart            tokens are dropped; the sample begins anew (its next chunk has token_index 0).
// Prompt prefixes are shared within one weight set only.
#ifndef LOCKSTEP_ROLLOUT_SERVER_BATCH_ENGINE_H_
#define LOCKSTEP_ROLLOUT_SERVER_BATCH_ENGINE_H_

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/model/decoder.h"
#include "engine/model/routing.h"
#include "rollout_server/kv_cache.h"
#include "rollout_server/rollout_metrics.h"
#include "rollout_server/scheduler.h"
#include "rollout_server/sequence.h"
#include "rollout_server/step_backend.h"

namespace lockstep {

enum class InFlight : uint8_t { kFinish, kContinue, kContinueStaleKv, kRestart };
// "finish", "continue", "continue_stale_kv", "restart".
absl::StatusOr<InFlight> ParseInFlight(const std::string& name);

// Tokens of a sample that are gathered before they are sent; the end of the sample sends what there is.
inline constexpr size_t kChunkTokens = 16;
// Groups whose highest attempt is remembered, for the refusal of late lower ones.
inline constexpr size_t kMaxRememberedGroups = 65536;

struct BatchEngineOptions {
  SchedulerLimits limits;
  // A consumer that has been full for so long loses its samples.
  double stall_limit_seconds = 60;
  bool launch_ahead = true;  // where the backend can
};

struct EngineStats {
  uint32_t running = 0;  // samples in prefill or decoding
  uint32_t waiting = 0;  // samples that wait for their first or next pages
  int64_t pages_used = 0;
  uint64_t generated_tokens = 0;
  uint64_t preemptions = 0;
  uint64_t steps = 0;          // collected
  uint64_t steps_ahead = 0;    // of them launched ahead
  double decoder_seconds = 0;  // StepOutput's
  double step_seconds = 0;     // in Step and Drain
  uint64_t weight_epoch = 0;
  uint64_t weight_version = 0;
};

class BatchEngine {
 public:
  // `weights` is the first current set, which the backend has prepared. metrics outlives the engine.
  BatchEngine(const BatchEngineOptions& options, std::unique_ptr<StepBackend> backend,
              std::shared_ptr<const WeightSet> weights, RolloutMetrics* metrics);
  ~BatchEngine();

  // A group that passed CheckGroup. Refused (by a message to the sink) when the weights are older than it asks for or
  // its attempt is not the newest. A higher attempt ends a lower one that still runs.
  void Submit(v1::Group group, std::shared_ptr<ResultSink> sink);
  // Ends the group's samples as cancelled; nothing if it does not run.
  void Cancel(const ResultSink* sink, uint64_t group_id, uint32_t attempt);
  // Drops all samples of a consumer that is gone: nothing more is pushed to it.
  void Close(const ResultSink* sink);
  // Refused unless `weights` has the shape and dtype of the first set. Of any thread: what it does needs no pause of
  // SwitchWeights, which does it where it has not been called.
  absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) const;
  // Refused unless Prepare takes `weights` and its (epoch, version) is greater than the current set's.
  absl::Status SwitchWeights(std::shared_ptr<const WeightSet> weights, InFlight in_flight);

  // One engine step: launched if none is in flight, and collected after the next one has been launched ahead, if that
  // can be. False: nothing could be computed.
  bool Step();
  // Collects the step that the last one has launched ahead, if it did.
  void Drain();
  // Asks the backend whether it still computes; status() has the answer.
  void CheckBackend();
  bool idle() const { return sequences_.empty() && !flight_.launched; }
  // Not OK: the backend has failed.
  const absl::Status& status() const { return failure_; }

  EngineStats stats() const;
  int64_t free_pages() const { return cache_.free_pages(); }
  const WeightSet& current_weights() const { return *current_; }

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  // A step between Launch and Collect. Samples that end meanwhile leave null behind.
  struct Flight {
    struct Rows {
      Sequence* sequence = nullptr;
      int64_t begin = 0;  // first position
      int64_t count = 0;
    };
    bool launched = false;
    bool ahead = false;          // while another was in flight
    bool decodes_alone = false;  // row i is drawers[i]'s, which are in the order of age
    bool wants_routing = false;
    std::shared_ptr<const WeightSet> weights;  // the backend reads them
    std::vector<Rows> rows;
    std::vector<int32_t> output_rows;
    std::vector<DrawRequest> draws;
    std::vector<Sequence*> drawers;  // of draws
    std::vector<PageTable> held;     // of samples that have ended meanwhile
    int64_t decode_rows = 0, prompt_tokens = 0;

    // Whether the sequence has rows in the step; it then has none any more.
    bool Forget(const Sequence& sequence);
    // The row of a step that decodes alone which is the sequence's, or -1. Asked in the order of age: *at (0 at first)
    // moves on.
    int32_t RowOf(const Sequence& sequence, size_t* at) const;
  };

  // The plan as things are; NextPlan's evicts until it is not an eviction.
  StepPlan PlanOnce();
  StepPlan NextPlan();
  // As the sequences will be when the step in flight, if there is one, has been collected and all its rows go on.
  void FillViews();
  uint64_t WeightsId(const WeightSet* weights) const;
  void ForgetUnusedWeights();

  // The step of a plan, or Fail.
  void Launch(const StepPlan& plan, Flight& flight);
  void LaunchAhead();
  // Of the step in flight; the one that was launched ahead then is. `begin`: since when its seconds count. False: Fail.
  bool CollectStep(double begin);
  void ReleaseHeld(Flight& flight);
  absl::Status PlacePages(const StepPlan& plan);
  void FillBatch(const StepPlan& plan, Flight& flight);
  // Ends everything that runs; `status` is the backend's.
  void Fail(absl::Status status);
  // The samples that one prefill will serve start with one weight set.
  void BindGroup(const ActiveGroup& group);
  // The draws of the samples that start with the sequence's output row; its own follows.
  void AddSiblings(const Sequence& sequence, Flight& flight);
  void AddDraw(Sequence& sequence, size_t token_index, Flight& flight);
  // Gives every draw of the step to its sequence.
  void TakeDraws(const Flight& flight);
  // Keeps the experts of the prompt positions that the step has computed.
  void RecordPrompts(const Flight& flight);
  // `drawers`: whose draws are of one row, the one that has computed it last.
  void EndNonfinite(std::span<Sequence* const> drawers);
  void CountFirstToken(ActiveGroup& group);
  // The prompt's last row serves all samples of the group that wait for it.
  void Fork(const Sequence& leader, Sequence& sibling);
  // routing: the experts of the row that was drawn from; null where no sample of the step asks for them.
  void Append(Sequence& sequence, const Draw& draw, const char* routing);
  // What the sink has not got of the sample yet.
  void Send(Sequence& sequence, v1::FinishReason reason);
  void CountStep(const Flight& flight, double seconds);
  void Finish(Sequence& sequence, v1::FinishReason reason);
  void Drop(Sequence& sequence);
  void Evict(Sequence& sequence);
  void RemoveFinished();
  void EndStalledConsumers();

  void SwitchSequence(Sequence& sequence, InFlight in_flight);
  // Back to the start of its life, bound to no weights.
  void StartAnew(Sequence& sequence);
  // The reason of a refusal, or OK after lower attempts have been ended.
  absl::Status AdmitAttempt(const v1::Group& group, const ResultSink* sink);

  const BatchEngineOptions options_;
  const std::unique_ptr<StepBackend> backend_;
  RolloutMetrics* const metrics_;
  const ModelConfig config_;
  const DType dtype_;
  const RoutingShape routing_shape_;
  KvCache cache_;
  absl::Status failure_;

  std::vector<SequencePtr> sequences_;  // by age, oldest first
  std::shared_ptr<const WeightSet> current_;
  std::vector<std::pair<std::shared_ptr<const WeightSet>, uint64_t>> weight_sets_;  // oldest first, with their ids
  uint64_t next_weights_id_ = 1;
  uint64_t last_weights_id_ = 0;
  uint64_t next_group_ = 1;

  using GroupKey = std::pair<std::string, uint64_t>;  // run_id, group_id
  using AttemptKey = std::pair<uint64_t, uint32_t>;   // min_weight_epoch, attempt
  absl::flat_hash_map<GroupKey, AttemptKey> attempts_;
  std::deque<GroupKey> attempts_order_;
  absl::flat_hash_map<const ResultSink*, double> full_since_;

  Flight flight_;
  Flight other_;  // launched ahead, until flight_ is collected; then the collected one

  // Scratch of a step.
  std::vector<SequenceView> views_;
  PagedBatch batch_;
  std::vector<int32_t> from_;
  StepOutput output_;
  EngineStats counted_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_BATCH_ENGINE_H_
