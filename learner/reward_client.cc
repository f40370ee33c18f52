#include "learner/reward_client.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kMaxBackoff = absl::Seconds(2);

size_t Bytes(const v1::RewardSample& sample) { return sample.ByteSizeLong() + 16; }

// The reward of `sample_id`, or why it has none.
absl::StatusOr<double> RewardOf(const std::map<std::string, const v1::SampleReward*>& rewards,
                                const std::string& sample_id) {
  const auto it = rewards.find(sample_id);
  if (it == rewards.end()) return absl::DataLossError("the reward service left it out");
  const v1::SampleReward& reward = *it->second;
  if (reward.has_error()) return absl::InternalError(absl::StrCat("the reward service: ", reward.error()));
  if (!reward.has_reward()) return absl::DataLossError("the reward service sent neither reward nor error");
  if (!std::isfinite(reward.reward())) {
    return absl::DataLossError(absl::StrCat("the reward service sent ", reward.reward()));
  }
  return reward.reward();
}

}  // namespace

RewardClient::RewardClient(const RewardClientOptions& options, MetricsRegistry* metrics)
    : options_(options), metrics_(metrics), stub_(v1::RewardService::NewStub(MakeChannel(options.address))) {
  for (int i = 0; i < kRewardThreads; ++i) threads_.emplace_back([this] { Run(); });
}

RewardClient::~RewardClient() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status RewardClient::Connect() {
  const absl::Time deadline = absl::Now() + options_.timeout;
  v1::RewardInfo info;
  grpc::Status status;
  while (true) {
    grpc::ClientContext context;
    SetDeadline(context, absl::ToDoubleSeconds(std::max(deadline - absl::Now(), kFirstBackoff)));
    status = stub_->GetRewardInfo(&context, {}, &info);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE || absl::Now() + kFirstBackoff > deadline) break;
    absl::SleepFor(kFirstBackoff);
  }
  if (!status.ok()) {
    return absl::UnavailableError(absl::StrCat("data.reward_address: the reward service ", options_.address,
                                               " does not answer: ", status.error_message(),
                                               "; start it, or correct the address"));
  }
  if (info.max_batch_size() > 0) max_batch_ = std::min<size_t>(max_batch_, info.max_batch_size());
  LogInfo("rewards come from ", info.name().empty() ? "a service" : info.name(), " at ", options_.address);
  return absl::OkStatus();
}

void RewardClient::Submit(uint64_t key, std::vector<v1::RewardSample> samples) {
  MutexLock lock(&mutex_);
  queue_.push_back({key, std::move(samples)});
  ++pending_;
  changed_.SignalAll();
}

std::optional<RewardClient::Scored> RewardClient::Next(absl::Duration wait) {
  const absl::Time deadline = absl::Now() + wait;
  MutexLock lock(&mutex_);
  while (scored_.empty()) {
    if (changed_.WaitWithDeadline(&mutex_, deadline) && scored_.empty()) return std::nullopt;
  }
  Scored scored = std::move(scored_.front());
  scored_.pop_front();
  --pending_;
  return scored;
}

size_t RewardClient::pending() const {
  MutexLock lock(&mutex_);
  return pending_;
}

std::string RewardClient::trouble() const {
  MutexLock lock(&mutex_);
  if (away_since_ == absl::InfiniteFuture()) return "";
  const bool waits = absl::Now() - away_since_ < options_.timeout;
  return absl::StrCat("the reward service ", options_.address, " is away since ",
                      absl::FormatTime("%H:%M:%S", away_since_, absl::UTCTimeZone()), " UTC (", away_why_,
                      "); samples ", waits ? "wait for it up to " : "are dropped after ",
                      absl::FormatDuration(options_.timeout));
}

void RewardClient::Run() {
  while (true) {
    Work work;
    {
      MutexLock lock(&mutex_);
      while (queue_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    Scored scored;
    scored.key = work.key;
    for (size_t begin = 0; begin < work.samples.size();) {
      size_t end = begin, bytes = 0;
      while (end < work.samples.size() && end - begin < max_batch_ &&
             (end == begin || bytes + Bytes(work.samples[end]) <= kMaxRewardBatchBytes)) {
        bytes += Bytes(work.samples[end++]);
      }
      ScoreBatch(work.samples, begin, end, &scored.rewards);
      begin = end;
    }
    MutexLock lock(&mutex_);
    scored_.push_back(std::move(scored));
    changed_.SignalAll();
  }
}

void RewardClient::ScoreBatch(const std::vector<v1::RewardSample>& samples, size_t begin, size_t end,
                              std::vector<absl::StatusOr<double>>* rewards) {
  v1::ScoreSamplesRequest request;
  request.set_run_id(options_.run_id);
  for (size_t i = begin; i < end; ++i) *request.add_samples() = samples[i];
  const absl::Time start = absl::Now();
  const auto response = Call(request);
  if (metrics_ != nullptr) {
    metrics_->Histogram("rl_learner_reward_request_seconds").Observe(absl::ToDoubleSeconds(absl::Now() - start));
  }
  if (!response.ok()) {
    rewards->insert(rewards->end(), end - begin, response.status());
    Count("failed", static_cast<double>(end - begin));
    return;
  }
  std::map<std::string, const v1::SampleReward*> by_id;
  for (const v1::SampleReward& reward : response->rewards()) by_id.emplace(reward.sample_id(), &reward);
  for (size_t i = begin; i < end; ++i) {
    rewards->push_back(RewardOf(by_id, samples[i].sample_id()));
    Count(rewards->back().ok() ? "scored" : "refused", 1);
  }
}

absl::StatusOr<v1::ScoreSamplesResponse> RewardClient::Call(const v1::ScoreSamplesRequest& request) {
  absl::Duration backoff = kFirstBackoff;
  while (true) {
    v1::ScoreSamplesResponse response;
    const grpc::Status status = CallOnce(request, &response);
    MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("the learner ends");
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) {
      away_since_ = absl::InfiniteFuture();
      if (status.ok()) return response;
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                          absl::StrCat("the reward service ", options_.address, ": ", status.error_message()));
    }
    const absl::Time now = absl::Now();
    if (away_since_ == absl::InfiniteFuture()) {
      away_since_ = now;
      LogWarning("the reward service ", options_.address, " is away: ", status.error_message());
    }
    away_why_ = status.error_message();
    if (now - away_since_ >= options_.timeout) {
      return absl::UnavailableError(absl::StrCat("the reward service ", options_.address, " is away for ",
                                                 absl::FormatDuration(now - away_since_), ": ", away_why_));
    }
    const absl::Time until = std::min(now + backoff, away_since_ + options_.timeout);
    while (!stopping_ && !changed_.WaitWithDeadline(&mutex_, until)) {
    }
    backoff = std::min(2 * backoff, kMaxBackoff);
  }
}

grpc::Status RewardClient::CallOnce(const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response) {
  grpc::ClientContext context;
  SetDeadline(context, absl::ToDoubleSeconds(options_.timeout));
  {
    MutexLock lock(&mutex_);
    if (stopping_) return grpc::Status::CANCELLED;
    calls_.insert(&context);
  }
  const grpc::Status status = stub_->ScoreSamples(&context, request, response);
  MutexLock lock(&mutex_);
  calls_.erase(&context);
  return status;
}

void RewardClient::Count(const char* outcome, double samples) {
  if (metrics_ != nullptr) {
    metrics_->Counter("rl_learner_reward_samples_total", {{"outcome", outcome}}).Increment(samples);
  }
}

}  // namespace lockstep
