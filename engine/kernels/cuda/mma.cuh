// Bricks for tensor cores: the 16 x 8 x 16 product, loads of its operands from shared memory, asynchronous copies into
// shared memory. Whole warps call Mma16816 and the LdMatrix functions, with all 32 threads.
//
// Operands (g = lane / 4, t = lane % 4; a pair has the lower index in the lower half):
//   a [16 rows][16 k]: a[0] (row g, k 2t, 2t+1), a[1] (g+8, 2t..), a[2] (g, 2t+8..), a[3] (g+8, 2t+8..)
//   b [16 k][8 columns]: b[0] (k 2t, 2t+1, column g), b[1] (k 2t+8, 2t+9, column g)
//   d [16 rows][8 columns]: d[0], d[1] (row g, columns 2t, 2t+1), d[2], d[3] (row g+8, the same columns)
// That is what LdMatrix4 gives for a where thread i names row i % 16 at k 8 (i / 16), and for b (two of them: columns
// 0..7 in r[0], r[1], columns 8..15 in r[2], r[3]) where it names column i % 8 + 8 (i / 16) at k 8 (i / 8 % 2).
//
// Arithmetic: products are exact, sums are FP32 by the hardware's own rule, which is not a chain of roundings to
// nearest: its result for an element depends on that element's d, its row of a and its column of b alone. The emulation
// (emulation/tensor_core.h) takes one fma chain over ascending k from d, so 16-bit products of device and CPU agree
// within a bound and not to the bit.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_MMA_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_MMA_CUH_

#include <tensor_core.h>

#include <bit>
#include <cstdint>

#include "engine/kernels/cuda/bricks.cuh"

namespace lockstep::cuda {

// d += a b. T: __half or __nv_bfloat16.
template <typename T>
__device__ inline void Mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  instructions::Mma(d, a, b, T{});
}

// Four 8 x 8 matrices of 16-bit elements: threads 8j .. 8j+7 name the 8 rows of matrix j, each 16 bytes in shared
// memory at a multiple of 16. A thread gets, of matrix j in r[j], row lane / 4, elements 2 (lane % 4) and the next; of
// the transposed form, elements [2 (lane % 4)][lane / 4] and [2 (lane % 4) + 1][lane / 4].
__device__ inline void LdMatrix4(uint32_t (&r)[4], const void* shared_row) {
  instructions::LoadMatrices(r, shared_row);
}
__device__ inline void LdMatrix4Trans(uint32_t (&r)[4], const void* shared_row) {
  instructions::LoadMatricesTransposed(r, shared_row);
}
// Two matrices, named by threads 0 .. 15; the others' pointers are not used.
__device__ inline void LdMatrix2(uint32_t (&r)[2], const void* shared_row) {
  instructions::LoadMatrices(r, shared_row);
}
__device__ inline void LdMatrix2Trans(uint32_t (&r)[2], const void* shared_row) {
  instructions::LoadMatricesTransposed(r, shared_row);
}

// Copies 16 bytes to shared memory while the thread goes on; both pointers are multiples of 16. Not valid: writes
// zeros and does not read `global`, which exists all the same. The bytes are there, for this thread, once CpAsyncWait
// says so, for others after a barrier behind that.
__device__ inline void CpAsync16(void* shared, const void* global, bool valid) {
  instructions::CopyAsync16(shared, global, valid);
}
// Ends a group: this thread's copies since the last commit; none is a group too.
__device__ inline void CpAsyncCommit() { instructions::CommitCopies(); }
// Waits until at most the kLeft latest groups of this thread are on their way.
template <int kLeft>
__device__ inline void CpAsyncWait() {
  instructions::WaitCopies<kLeft>();
}

// The launch's dynamic shared memory (LaunchShared in launch.h), at a multiple of 128 bytes.
__device__ inline unsigned char* DynamicShared() { return instructions::DynamicShared(); }

// Two values as one operand word, rounded to nearest even.
template <typename T>
__device__ inline uint32_t PackPair(float low, float high) {
  return uint32_t{std::bit_cast<uint16_t>(FromFloat<T>(low))} |
         (uint32_t{std::bit_cast<uint16_t>(FromFloat<T>(high))} << 16);
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_MMA_CUH_
