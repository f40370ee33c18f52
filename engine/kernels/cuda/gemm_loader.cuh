// Brings an operand's tiles to shared memory, kDepth of the reduction at a time, and takes fragments from there.
//
// A tile lies as the operand does in memory: by lines of i (kDepth elements each) or, by_reduction, by kDepth lines of
// r (kExtent elements each). Lines are whole 16-byte chunks; chunk c of line l lies in the place of chunk c ^ (l % 8),
// so that the eight rows of an ldmatrix, in eight lines one below the other, hit all banks.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_LOADER_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_LOADER_CUH_

#include "engine/kernels/cuda/gemm_product.h"
#include "engine/kernels/cuda/mma.cuh"

namespace lockstep::cuda {

struct alignas(16) Chunk {
  uint32_t words[4];
};

// Eight elements to shared memory, of which `count` exist (none: count <= 0); the others become 0. None at all goes the
// fast way too: else the threads of rows that are not there would send their warp both ways, step after step. Their
// copies read nothing, but name `somewhere`, which exists.
__device__ inline void CopyChunk(void* shared, const uint16_t* from, int count, bool aligned, const void* somewhere) {
  if (aligned && (count >= kVector || count <= 0)) {
    CpAsync16(shared, count > 0 ? from : somewhere, count > 0);
    return;
  }
  Chunk chunk;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const uint32_t low = 2 * e < count ? from[2 * e] : 0, high = 2 * e + 1 < count ? from[2 * e + 1] : 0;
    chunk.words[e] = low | (high << 16);
  }
  *static_cast<Chunk*>(shared) = chunk;
}

// A tile of kExtent (of i or j; by_reduction a multiple of 64) x kDepth, which kThreads threads load.
template <int kExtent, bool kByReduction, int kThreads>
class Tile {
 public:
  static constexpr int kBytes = kExtent * kDepth * 2;

  // From element `first` of `extent` on, and from reduction_begin on.
  __device__ Tile(const uint16_t* data, const ProductOperand& operand, unsigned thread, int first, int extent,
                  int reduction_begin, int reduction_end)
      : stride_(operand.stride), line_(thread / kChunks), chunk_(thread % kChunks), aligned_(operand.aligned) {
    const int r = reduction_begin + static_cast<int>(kByReduction ? line_ : chunk_ * kVector);
    const int i = first + static_cast<int>(kByReduction ? chunk_ * kVector : line_);
    from_ = data + (kByReduction ? r * stride_ + i : i * stride_ + r);
    lines_left_ = kByReduction ? reduction_end - r : extent - i;
    elements_left_ = kByReduction ? extent - i : reduction_end - r;
  }

  // The next kDepth of the reduction, to `tile`. start: the operand's.
  __device__ void Load(unsigned char* tile, const void* start) {
#pragma unroll
    for (unsigned u = 0; u < kLines / kLinesAtOnce; ++u) {
      CopyChunk(tile + Offset(line_ + u * kLinesAtOnce, chunk_), from_ + u * kLinesAtOnce * stride_,
                static_cast<int>(u * kLinesAtOnce) < lines_left_ ? elements_left_ : 0, aligned_, start);
    }
    from_ += kByReduction ? kDepth * stride_ : kDepth;
    (kByReduction ? lines_left_ : elements_left_) -= kDepth;
  }

  // Asks for the first steps of the reduction, which ends after `length`, to be brought to the L2 cache. Before Load.
  __device__ void PrefetchSteps(int steps, int length) const {
    constexpr int kOfLine = kThreads / kExtent;  // threads
    static_assert(!kByReduction && kOfLine >= 1);
    const int thread = static_cast<int>(line_ * kChunks + chunk_);
    const int line = thread / kOfLine - static_cast<int>(line_);
    if (line >= lines_left_) return;
    const uint16_t* const from = from_ + line * stride_ - static_cast<int>(chunk_) * kVector;
    for (int step = thread % kOfLine; step < steps && step * kDepth < length; step += kOfLine) {
      PrefetchToL2(from + step * kDepth);
    }
  }

  // Operands of Mma16816 from elements [at, at + 16) and step k (a multiple of 16) of `tile`: as a; as b, twice; as b
  // of [at, at + 8), not by_reduction.
  static __device__ void LoadA(uint32_t (&a)[4], const unsigned char* tile, unsigned at, unsigned k) {
    const unsigned lane = threadIdx.x % kWarp, low = lane % 8, middle = lane / 8 % 2, high = lane / 16;
    if constexpr (kByReduction) {
      LdMatrix4Trans(a, tile + Offset(k + low + 8 * high, at / 8 + middle));
    } else {
      LdMatrix4(a, tile + Offset(at + low + 8 * middle, k / 8 + high));
    }
  }
  static __device__ void LoadB(uint32_t (&b)[4], const unsigned char* tile, unsigned at, unsigned k) {
    const unsigned lane = threadIdx.x % kWarp, low = lane % 8, middle = lane / 8 % 2, high = lane / 16;
    if constexpr (kByReduction) {
      LdMatrix4Trans(b, tile + Offset(k + low + 8 * middle, at / 8 + high));
    } else {
      LdMatrix4(b, tile + Offset(at + low + 8 * high, k / 8 + middle));
    }
  }
  static __device__ void LoadB(uint32_t (&b)[2], const unsigned char* tile, unsigned at, unsigned k) {
    static_assert(!kByReduction);
    const unsigned lane = threadIdx.x % kWarp;
    LdMatrix2(b, tile + Offset(at + lane % 8, k / 8 + lane / 8 % 2));
  }

 private:
  static constexpr unsigned kChunks = (kByReduction ? kExtent : kDepth) / kVector;  // of a line
  static constexpr unsigned kLines = kByReduction ? kDepth : kExtent;
  static constexpr unsigned kLinesAtOnce = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kLines % kLinesAtOnce == 0 && kChunks % 8 == 0);

  static __device__ unsigned Offset(unsigned line, unsigned chunk) {
    return (line * kChunks + (chunk ^ (line % 8))) * static_cast<unsigned>(sizeof(Chunk));
  }

  const uint16_t* from_;
  int64_t stride_;
  int lines_left_, elements_left_;
  unsigned line_, chunk_;
  bool aligned_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_LOADER_CUH_
