// The one matrix product of the CPU engine, C[m, n] = sum_k A[m, k] B[k, n], FP32 accumulation.
//
// A is packed to FP32 blocks of at most 6 rows, [blocks][K][rows]; B is panels of 16 columns, [panels][K][16] in fp16,
// bf16 or fp32, converted as it is loaded. The tile is 6 rows x 16 columns in 12 YMM accumulators (Haswell to Zen: 4
// cycles FMA latency x 2 ports need 8 chains; 12 leave 4 registers for B, the broadcast and spare). Blocking: 512 of k
// (a B slice of 16 panels in fp16 is 256 KiB, half of a small L2; an A block is 12 KiB in L1), 16 panels, 1,024 rows.
//
// Reduction order. Matched: every output is one fma chain over ascending k from 0, whatever m, n, the blocking and the
// threads (the accumulator is reloaded between k blocks). Native: up to 16 rows against packed B are such chains too;
// beyond, each block of 512 k is a chain of its own from 0, and the partial sums are added in ascending order. So native
// bits depend on the row count, not on the threads.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_GEMM_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_GEMM_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "engine/kernels/cpu/context.h"

namespace lockstep::cpu {

// Copies rows [row, row + count) of A into destination [K][count] FP32. Called from several threads at once.
using PackRows = absl::FunctionRef<void(int64_t row, int64_t count, float* destination)>;
// Takes the finished accumulators of columns [column, column + count) of one row. Called from several threads at once,
// for disjoint outputs.
using Epilogue = absl::FunctionRef<void(int64_t row, int64_t column, int64_t count, const float* accumulators)>;
// Copies B rows [k_begin, k_begin + k_count) of panel `panel` into destination [k_count][16] in B's dtype.
using PackPanel = absl::FunctionRef<void(int64_t panel, int64_t k_begin, int64_t k_count, void* destination)>;

struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
  DType b_dtype = DType::kF32;
};

// B lies packed already: panel p begins at b + p * k * 16 elements.
void GemmPackedB(CpuContext& context, const GemmShape& shape, PackRows pack_a, const void* b, Epilogue epilogue);
// B is packed slice by slice as it is needed (backward passes).
void GemmPackingB(CpuContext& context, const GemmShape& shape, PackRows pack_a, PackPanel pack_b, Epilogue epilogue);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_GEMM_H_
