// Tests only: what engine/kernels/cuda/ptx/launch_order.h is on the device. Kernels run one after the other here; that
// each waits where it has to is checked (fibers.h), and that it touches nothing before (races.h).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_LAUNCH_ORDER_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_LAUNCH_ORDER_H_

#include "engine/kernels/cuda/emulation/fibers.h"

namespace lockstep::cuda {

inline void AwaitPrevious() { emulation::AwaitPrevious(); }
inline void PrefetchToL2(const void*) {}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_LAUNCH_ORDER_H_
