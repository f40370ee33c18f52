// The learner's end of a reward service (proto/reward.proto). Threads of its own call it, so that the run loop goes on
// while a slow service thinks.
//
// A batch holds at most kMaxRewardBatch samples (or the service's own limit) and kMaxRewardBatchBytes. A call has the
// deadline `timeout`. UNAVAILABLE is tried again with a back-off of 0.1 s doubling to 2 s, for as long as the service
// has been away for less than `timeout`; after that each batch is tried once, so an outage costs its timeout once and
// not once a batch. Any other failure of a call, a reward that is missing, not finite or an error, drops the samples it
// is about: a sample never gets a reward that the service did not give.
#ifndef LOCKSTEP_LEARNER_REWARD_CLIENT_H_
#define LOCKSTEP_LEARNER_REWARD_CLIENT_H_

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/metrics.h"
#include "engine/base/mutex.h"
#include "proto/reward.grpc.pb.h"

namespace lockstep {

inline constexpr size_t kMaxRewardBatch = 64;
// Half of what a message may have.
inline constexpr size_t kMaxRewardBatchBytes = size_t{32} << 20;
inline constexpr int kRewardThreads = 4;

struct RewardClientOptions {
  std::string address;  // host:port
  std::string run_id;
  absl::Duration timeout = absl::Seconds(60);
};

class RewardClient {
 public:
  // `metrics` may be null.
  RewardClient(const RewardClientOptions& options, MetricsRegistry* metrics);
  // Cancels calls in progress.
  ~RewardClient();

  // Asks the service who it is, for at most `timeout`. UNAVAILABLE names the address and the reason. Call it first.
  absl::Status Connect();

  // Samples that belong together, under a number of the caller's.
  void Submit(uint64_t key, std::vector<v1::RewardSample> samples) ABSL_LOCKS_EXCLUDED(mutex_);
  struct Scored {
    uint64_t key = 0;
    std::vector<absl::StatusOr<double>> rewards;  // one a sample, in the order of Submit
  };
  // What is complete, in order of completion; nothing when none came within `wait`.
  std::optional<Scored> Next(absl::Duration wait) ABSL_LOCKS_EXCLUDED(mutex_);
  // Submitted and not yet taken by Next.
  size_t pending() const ABSL_LOCKS_EXCLUDED(mutex_);
  // One line while the service is away, for the run's status; else empty.
  std::string trouble() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Work {
    uint64_t key = 0;
    std::vector<v1::RewardSample> samples;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  // Rewards of samples [begin, end), appended to `rewards`.
  void ScoreBatch(const std::vector<v1::RewardSample>& samples, size_t begin, size_t end,
                  std::vector<absl::StatusOr<double>>* rewards) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<v1::ScoreSamplesResponse> Call(const v1::ScoreSamplesRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  grpc::Status CallOnce(const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Count(const char* outcome, double samples);

  const RewardClientOptions options_;
  MetricsRegistry* const metrics_;
  std::unique_ptr<v1::RewardService::Stub> stub_;
  size_t max_batch_ = kMaxRewardBatch;

  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);  // in progress
  std::deque<Work> queue_ ABSL_GUARDED_BY(mutex_);
  std::deque<Scored> scored_ ABSL_GUARDED_BY(mutex_);
  size_t pending_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time away_since_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();  // of an outage
  std::string away_why_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_REWARD_CLIENT_H_
