// Tests only: the threads of one block as fibers of the calling thread, with the barriers that CUDA's threads have.
// What would hang a GPU (a barrier that not all reach) or be undefined there (a shuffle from a thread outside of its
// mask) ends the process with one line.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_FIBERS_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_FIBERS_H_

#include <array>
#include <cstdint>
#include <functional>

namespace lockstep::emulation {

// In which order the fibers of a block, and the blocks of a grid, take their turns. A kernel's result must not depend
// on it.
enum class Order : uint8_t { kAscending = 0, kDescending = 1, kShuffled = 2 };
void SetOrder(Order order);

// Calls body(block, thread) for all threads of all blocks; `resume(thread)` before a fiber goes on after a wait. early:
// on a device the grid may begin before what precedes it has ended, so each thread has to call AwaitPrevious.
void RunGrid(unsigned blocks, unsigned threads, bool early, const std::function<void(unsigned, unsigned)>& body,
             const std::function<void(unsigned)>& resume);

// From inside of a fiber. Threads that have ended count as arrived, as on the device.
void SyncBlock();
// The lanes of `mask` must all come.
void SyncWarp(unsigned mask);
void AwaitPrevious();
// The value that lane `source` of this warp gave to the same call; the lanes of `mask` must all come.
uint64_t Exchange(unsigned mask, uint64_t value, unsigned source);
// Bits of the lanes of `mask` whose predicate holds.
unsigned Ballot(unsigned mask, bool predicate);

// What each lane of the warp gave to the same call, [32]; all lanes must come. Stays until the lane's next call.
using WarpWords = std::array<uint32_t, 6>;
const WarpWords* ExchangeWords(const WarpWords& words);

// 16 bytes from `from` (null: zeros) to `to`, made when this thread waits for them and no earlier, so that a missing
// wait shows; in the descending order of turns made at once, so that a place that is still read shows.
void CopyAsync(void* to, const void* from);
void CommitCopies();
// Makes the copies of all groups but the `left` latest. A thread that ends with copies not made ends the process.
void WaitCopies(int left);

}  // namespace lockstep::emulation

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_FIBERS_H_
