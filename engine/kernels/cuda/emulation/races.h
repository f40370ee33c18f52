// Tests only: races between the threads of a launch. Code that is compiled with -fsanitize=thread tells of every access
// to memory (race_hooks.cc takes the place of ThreadSanitizer's runtime); a second access to the same bytes by another
// thread, one of the two a write, ends the process with one line unless something orders them. As on the device:
//
//   __syncthreads    orders what the block's threads did before it and do after it
//   __syncwarp       the same, for the threads of its mask
//   nothing else     shuffles, ballots and tensor-core instructions order no memory; blocks are not ordered at all
//   cp.async         writes from its start until its thread has waited for it: until then nobody may touch the place,
//                    afterwards others need a barrier as with any write
//   a launch         is ordered behind everything before it, from AwaitPrevious on where it may begin early
//
// Shared memory (the module's variables) counts for one block, other memory for the launch. What is not seen: accesses
// of code that is not compiled so, and a reader that is neither the last nor the last but one before a write.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_RACES_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_RACES_H_

#include <cstddef>
#include <cstdint>

namespace lockstep::emulation::races {

// Called by fibers.cc, which knows threads and barriers.
void BeginGrid(bool early);
void BeginBlock(unsigned block, unsigned threads);
// `stack`: of the thread that runs from here on; null: the scheduler does, whose accesses are nobody's.
void RunThread(unsigned thread, const char* stack, size_t stack_bytes);
// The running thread is in the kernel from here on, to there: what is around it is the emulation's own.
void EnterKernel();
void LeaveKernel();
// The running thread may touch global memory from here on, in a grid that begins early.
void AwaitPrevious();
// The running thread has come to a barrier of the block, or ends.
void PassBarrier();
// All threads of `mask` in the running thread's warp have met.
void JoinWarp(unsigned mask);
// Of the running thread: a copy begins, and has landed.
void BeginCopy(const void* to, const void* from);
void EndCopy(const void* to, const void* from);

// Called by the hooks. at: where in the code.
void Access(const void* address, size_t bytes, bool write, const void* at);

// By race_hooks.cc, before main: without it all of the above does nothing.
void Enable();
bool Enabled();

}  // namespace lockstep::emulation::races

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_RACES_H_
