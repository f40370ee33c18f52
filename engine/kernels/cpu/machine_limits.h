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
  double read_bytes_per_second = 0;  // all threads together
  double fma_flops_per_second = 0;   // FP32, 8 lanes, two flops a lane and fma
};

// All threads read `bytes` of memory (a multiple of 96 MiB, written before) `repeats` times, in slices of 96 MiB; the
// best slice counts, so that other load on the machine enters little. 32-byte loads and nothing else.
double MeasureReadBandwidth(ThreadPool& pool, size_t bytes, int repeats);
// The sum over threads, running at once, of each thread's best of `repeats` runs of 12 independent fma chains, half a
// millisecond each.
double MeasureFmaPeak(ThreadPool& pool, int repeats);

MachineLimits MeasureMachineLimits(ThreadPool& pool);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_MACHINE_LIMITS_H_
