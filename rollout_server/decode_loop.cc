#include "rollout_server/decode_loop.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace lockstep {
namespace {

// How often a loop whose consumers are all behind looks at them again.
constexpr absl::Duration kBlockedPoll = absl::Milliseconds(10);

}  // namespace

DecodeLoop::DecodeLoop(std::unique_ptr<BatchEngine> engine, RolloutMetrics* metrics)
    : engine_(std::move(engine)), metrics_(metrics), stats_(engine_->stats()), thread_([this] { Run(); }) {}

DecodeLoop::~DecodeLoop() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

void DecodeLoop::Post(std::function<void(BatchEngine&)> command) {
  absl::MutexLock lock(&mutex_);
  commands_.push_back(std::move(command));
  idle_ = false;
}

absl::StatusOr<double> DecodeLoop::Flip(std::shared_ptr<const Weights> weights, const std::string& in_flight,
                                        absl::Duration timeout) {
  const absl::StatusOr<InFlight> policy = ParseInFlight(in_flight);
  if (!policy.ok()) return policy.status();
  // Shared with the command, which may run after this call has given up.
  struct Call {
    absl::Mutex mutex;
    bool abandoned ABSL_GUARDED_BY(mutex) = false;
    bool done ABSL_GUARDED_BY(mutex) = false;
    absl::Status status ABSL_GUARDED_BY(mutex);
    double seconds ABSL_GUARDED_BY(mutex) = 0;
  };
  auto call = std::make_shared<Call>();
  Post([call, weights = std::move(weights), policy = *policy](BatchEngine& engine) mutable {
    absl::MutexLock lock(&call->mutex);
    if (call->abandoned) return;
    const absl::Time begin = absl::Now();
    call->status = engine.SwitchWeights(std::move(weights), policy);
    call->seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    call->done = true;
  });
  absl::MutexLock lock(&call->mutex);
  if (!call->mutex.AwaitWithTimeout(absl::Condition(&call->done), timeout)) {
    call->abandoned = true;
    return absl::DeadlineExceededError(
        absl::StrCat("no engine step ended within ", absl::FormatDuration(timeout), "; the old weights stay"));
  }
  if (!call->status.ok()) return call->status;
  return call->seconds;
}

bool DecodeLoop::WaitUntilIdle(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&idle_), timeout);
}

EngineStats DecodeLoop::stats() const {
  absl::MutexLock lock(&mutex_);
  return stats_;
}

void DecodeLoop::Run() {
  bool stepped = false;
  std::deque<std::function<void(BatchEngine&)>> taken;
  while (TakeCommands(stepped, &taken)) {
    for (std::function<void(BatchEngine&)>& command : taken) command(*engine_);
    taken.clear();
    stepped = engine_->Step();
    Publish();
  }
}

bool DecodeLoop::TakeCommands(bool stepped, std::deque<std::function<void(BatchEngine&)>>* taken) {
  absl::MutexLock lock(&mutex_);
  if (!stepped) {
    const auto woken = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stop_ || !commands_.empty(); };
    mutex_.AwaitWithTimeout(absl::Condition(&woken), idle_ ? absl::InfiniteDuration() : kBlockedPoll);
  }
  taken->swap(commands_);
  return !stop_;
}

void DecodeLoop::Publish() {
  const EngineStats stats = engine_->stats();
  metrics_->requests_running.Set(stats.running);
  metrics_->requests_waiting.Set(stats.waiting);
  metrics_->kv_cache_blocks_used.Set(static_cast<double>(stats.pages_used));
  absl::MutexLock lock(&mutex_);
  stats_ = stats;
  idle_ = commands_.empty() && engine_->idle();
}

}  // namespace lockstep
