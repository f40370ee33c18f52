// How a kernel and the ones before and after it in its stream share the device. On the device a kernel that
// LaunchBehind (launch.h) has started may begin while the one before it ends ("programmatic dependent launch", PTX
// griddepcontrol, sm_90). Builds for the device find this by <launch_order.h> in third_party/nvcc.flags, emulated ones
// the header of the same name in engine/kernels/cuda/emulation.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_PTX_LAUNCH_ORDER_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_PTX_LAUNCH_ORDER_H_

#include <cuda_runtime.h>

namespace lockstep::cuda {

// Waits until the kernels before this one have ended and all that they wrote can be seen; from then on the next one may
// begin, to wait in its turn. Before it a kernel reads its parameters alone and writes no global memory. Every thread
// of a kernel that LaunchBehind starts calls it; anywhere else it does nothing.
__device__ inline void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900  // sm_80's code has no such instruction, and LaunchBehind waits for the kernel before
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for the cache line of `global` to be brought to the L2 cache, which all kernels see memory through: right before
// AwaitPrevious too, whoever writes there.
__device__ inline void PrefetchToL2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(global)));
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_PTX_LAUNCH_ORDER_H_
