// What every CPU kernel is handed: threads, numerics and the scratch that grows to the largest call and stays.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_CONTEXT_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_CONTEXT_H_

#include <cstddef>

#include "engine/kernels/cpu/thread_pool.h"
#include "engine/kernels/ops.h"
#include "engine/tensor/tensor.h"

namespace lockstep::cpu {

// A buffer that keeps its largest size. Contents are undefined after Get.
class Scratch {
 public:
  template <typename T>
  T* Get(size_t count) {
    if (buffer_.bytes() < count * sizeof(T)) buffer_ = Buffer(count * sizeof(T) + count * sizeof(T) / 4);
    return buffer_.As<T>();
  }
  size_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
};

struct CpuContext {
  CpuContext(Numerics numerics, int threads) : numerics(numerics), pool(threads) {}

  const Numerics numerics;
  ThreadPool pool;
  Scratch gemm_a;         // packed rows of the left operand
  Scratch gemm_tile;      // accumulators and repacked panels, one part a thread
  Scratch attention;      // free for the attention kernels
  Scratch attention_kv;   // packed keys and values of training attention
  Scratch log_prob;       // logits chunks
  Scratch log_prob_grad;  // their gradients
  Scratch general;        // norms, reductions over threads
};

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_CONTEXT_H_
