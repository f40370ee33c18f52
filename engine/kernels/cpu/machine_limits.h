// What this machine can do at most, measured in the same process as the kernels, so that a benchmark prints fractions
// of a limit and not bare numbers.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_MACHINE_LIMITS_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_MACHINE_LIMITS_H_

#include <cstddef>

#include "engine/kernels/cpu/thread_pool.h"

namespace lockstep::cpu {

// Far beyond the last-level cache of the machines this runs on.
inline constexpr size_t kReadBytes = size_t{768} << 20;

struct MachineLimits {
  int threads = 0;
  double read_bytes_per_second = 0;  // all threads together, each a contiguous part, best of the repeats
  double fma_flops_per_second = 0;   // FP32, 8 lanes, two flops a lane and fma
};

// Best of `repeats` passes over `bytes` of memory that was written first. 32-byte loads and nothing else.
double MeasureReadBandwidth(ThreadPool& pool, size_t bytes, int repeats);
// Best of `repeats` runs of 12 independent fma chains a thread, about a millisecond each.
double MeasureFmaPeak(ThreadPool& pool, int repeats);

MachineLimits MeasureMachineLimits(ThreadPool& pool);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_MACHINE_LIMITS_H_
