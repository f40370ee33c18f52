// Rows of an operation over threads.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_FOR_ROWS_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_FOR_ROWS_H_

#include <cstdint>

#include "engine/kernels/cpu/context.h"

namespace lockstep::cpu {

// Below this many elements a barrier costs more than the work.
inline constexpr int64_t kSerialElements = 4096;

// body(begin, end) over [0, rows), split over threads when there is enough work.
template <typename Body>
void ForRows(CpuContext& context, int64_t rows, int64_t row_elements, const Body& body) {
  if (rows * row_elements <= kSerialElements) {
    body(0, rows);
    return;
  }
  context.pool.Run([&](int thread, int threads) {
    const auto [begin, end] = StaticSplit(rows, 1, thread, threads);
    body(begin, end);
  });
}

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_FOR_ROWS_H_
