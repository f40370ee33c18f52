// ThreadPool: a fixed set of threads that run one function together. The split of work is static, so that no result
// depends on timing. Waiting spins for some microseconds, then sleeps: several Lockstep processes may share the cores.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_THREAD_POOL_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"

namespace lockstep {

class ThreadPool {
 public:
  // threads >= 1; the caller of Run is one of them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(thread, threads) on every thread, the caller as thread 0; returns when all have returned. Not reentrant:
  // one thread calls Run at a time, and body does not call it.
  void Run(absl::FunctionRef<void(int thread, int threads)> body);

 private:
  void Work(int thread);

  const int threads_;
  const absl::FunctionRef<void(int, int)>* body_ = nullptr;  // published by generation_
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> unfinished_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// The part of [0, n) that a thread takes: contiguous, in thread order, multiples of `grain` but for the last.
inline std::pair<int64_t, int64_t> StaticSplit(int64_t n, int64_t grain, int thread, int threads) {
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t begin = grains * thread / threads * grain;
  const int64_t end = grains * (thread + 1) / threads * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_THREAD_POOL_H_
