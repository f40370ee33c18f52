// Tests only: what engine/kernels/cuda/ptx/tensor_core.h is on the device, in scalar code over the fibers of a warp.
// The product is one fma chain over ascending k, which the hardware's is not (mma.cuh); asynchronous copies are made as
// late, or in one order of turns as early, as the device may make them (fibers.h).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_TENSOR_CORE_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_TENSOR_CORE_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/fibers.h"

namespace lockstep::cuda::instructions {

inline float LowHalf(uint32_t pair, __half) { return HalfToFloat(static_cast<uint16_t>(pair)); }
inline float LowHalf(uint32_t pair, __nv_bfloat16) { return BFloat16ToFloat(static_cast<uint16_t>(pair)); }

template <typename T>
void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  emulation::WarpWords words = {};
  for (size_t i = 0; i < 4; ++i) words[i] = a[i];
  for (size_t i = 0; i < 2; ++i) words[4 + i] = b[i];
  const emulation::WarpWords* lanes = emulation::ExchangeWords(words);
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto half = [&](uint32_t pair, unsigned k) { return LowHalf(k % 2 == 0 ? pair : pair >> 16, type); };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned below = i / 2, column = 2 * t + i % 2;  // of 8 rows each
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned owner = k % 8 / 2, high = k / 8;
      const float left = half(lanes[4 * g + owner][2 * high + below], k);
      const float right = half(lanes[4 * column + owner][4 + high], k);
      d[i] = std::fma(left, right, d[i]);
    }
  }
}

template <size_t kMatrices>
void LoadRows(uint32_t (&r)[kMatrices], const void* row, bool transposed) {
  const uint64_t address = std::bit_cast<uint64_t>(row);
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  LOCKSTEP_CHECK(lane >= 8 * kMatrices || address % 16 == 0,
                 "a row of ldmatrix does not lie at a multiple of 16 bytes");
  const emulation::WarpWords* lanes =
      emulation::ExchangeWords({static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)});
  for (unsigned j = 0; j < kMatrices; ++j) {
    const auto element = [&](unsigned matrix_row, unsigned column) {
      const emulation::WarpWords& from = lanes[8 * j + matrix_row];
      uint16_t value;
      std::memcpy(&value, std::bit_cast<const char*>(uint64_t{from[0]} | (uint64_t{from[1]} << 32)) + 2 * column, 2);
      return uint32_t{value};
    };
    r[j] = transposed ? element(2 * t, g) | (element(2 * t + 1, g) << 16)
                      : element(g, 2 * t) | (element(g, 2 * t + 1) << 16);
  }
  // The warp reads as one: nobody goes on to overwrite what others have not read. No barrier for memory (__syncwarp).
  emulation::Ballot(0xFFFFFFFFu, false);
}

inline void LoadMatrices(uint32_t (&r)[4], const void* row) { LoadRows(r, row, false); }
inline void LoadMatrices(uint32_t (&r)[2], const void* row) { LoadRows(r, row, false); }
inline void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) { LoadRows(r, row, true); }
inline void LoadMatricesTransposed(uint32_t (&r)[2], const void* row) { LoadRows(r, row, true); }

inline void CopyAsync16(void* shared, const void* global, bool valid) {
  LOCKSTEP_CHECK(std::bit_cast<uint64_t>(shared) % 16 == 0 && std::bit_cast<uint64_t>(global) % 16 == 0,
                 "an asynchronous copy does not lie at multiples of 16 bytes");
  // What a copy of nothing names has to exist: whether a device looks at the address is nowhere written.
  static_cast<void>(*static_cast<const volatile unsigned char*>(global));
  emulation::CopyAsync(shared, valid ? global : nullptr);
}
inline void CommitCopies() { emulation::CommitCopies(); }
template <int kLeft>
void WaitCopies() {
  emulation::WaitCopies(kLeft);
}

inline unsigned char* DynamicShared() { return emulated_dynamic_shared; }

}  // namespace lockstep::cuda::instructions

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_TENSOR_CORE_H_
