#include "engine/kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include "engine/base/check.h"

namespace lockstep {
namespace {

// About 20 microseconds: the gap between two kernels of a decode step is shorter, a wait for other work is longer.
constexpr int kSpins = 600;

void WaitWhileEqual(std::atomic<uint32_t>& value, uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  LOCKSTEP_CHECK(threads >= 1, "a thread pool has at least the caller's thread");
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(absl::FunctionRef<void(int, int)> body) {
  if (threads_ == 1) {
    body(0, 1);
    return;
  }
  body_ = &body;
  unfinished_.store(static_cast<uint32_t>(threads_ - 1), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  body(0, threads_);
  while (true) {
    const uint32_t left = unfinished_.load(std::memory_order_acquire);
    if (left == 0) return;
    WaitWhileEqual(unfinished_, left);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  while (true) {
    WaitWhileEqual(generation_, seen);
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    (*body_)(thread, threads_);
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  }
}

}  // namespace lockstep
