#include "rollout_server/decode_loop.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace lockstep {
namespace {

// How often a loop whose consumers are all behind looks at them again.
constexpr std::chrono::milliseconds kBlockedPoll(10);

}  // namespace

DecodeLoop::DecodeLoop(std::unique_ptr<BatchEngine> engine, RolloutMetrics* metrics,
                       std::function<void(const absl::Status&)> on_failure)
    : engine_(std::move(engine)),
      metrics_(metrics),
      on_failure_(std::move(on_failure)),
      stats_(engine_->stats()),
      thread_([this] { Run(); }) {}

DecodeLoop::~DecodeLoop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void DecodeLoop::Post(std::function<void(BatchEngine&)> command) {
  const std::lock_guard lock(mutex_);
  commands_.push_back(std::move(command));
  idle_ = false;
  changed_.notify_all();
}

absl::StatusOr<double> DecodeLoop::Flip(std::shared_ptr<const WeightSet> weights, const std::string& in_flight,
                                        absl::Duration timeout) {
  const absl::StatusOr<InFlight> policy = ParseInFlight(in_flight);
  if (!policy.ok()) return policy.status();
  // Decoding goes on while a device takes the set.
  if (absl::Status status = engine_->Prepare(weights); !status.ok()) return status;
  // Shared with the command, which may run after this call has given up.
  struct Call {
    std::mutex mutex;  // guards the rest
    std::condition_variable ended;
    bool abandoned = false;
    bool done = false;
    absl::Status status;
    double seconds = 0;
  };
  auto call = std::make_shared<Call>();
  Post([call, weights = std::move(weights), policy = *policy](BatchEngine& engine) mutable {
    const std::lock_guard lock(call->mutex);
    if (call->abandoned) return;
    const absl::Time begin = absl::Now();
    call->status = engine.SwitchWeights(std::move(weights), policy);
    call->seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    call->done = true;
    call->ended.notify_all();
  });
  std::unique_lock lock(call->mutex);
  if (!call->ended.wait_for(lock, absl::ToChronoMilliseconds(timeout), [&call] { return call->done; })) {
    call->abandoned = true;
    return absl::DeadlineExceededError(
        absl::StrCat("no engine step ended within ", absl::FormatDuration(timeout), "; the old weights stay"));
  }
  if (!call->status.ok()) return call->status;
  return call->seconds;
}

bool DecodeLoop::WaitUntilIdle(absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [this] { return idle_; });
}

EngineStats DecodeLoop::stats() const {
  const std::lock_guard lock(mutex_);
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
    if (!engine_->status().ok() && on_failure_ != nullptr) {
      on_failure_(engine_->status());
      on_failure_ = nullptr;
    }
  }
}

bool DecodeLoop::TakeCommands(bool stepped, std::deque<std::function<void(BatchEngine&)>>* taken) {
  std::unique_lock lock(mutex_);
  if (!stepped) {
    const auto woken = [this] { return stop_ || !commands_.empty(); };
    if (idle_) {
      changed_.wait(lock, woken);
    } else {
      changed_.wait_for(lock, kBlockedPoll, woken);
    }
  }
  taken->swap(commands_);
  return !stop_;
}

void DecodeLoop::Publish() {
  const EngineStats stats = engine_->stats();
  metrics_->requests_running.Set(stats.running);
  metrics_->requests_waiting.Set(stats.waiting);
  metrics_->kv_cache_blocks_used.Set(static_cast<double>(stats.pages_used));
  const std::lock_guard lock(mutex_);
  stats_ = stats;
  idle_ = commands_.empty() && engine_->idle();
  if (idle_) changed_.notify_all();
}

}  // namespace lockstep
