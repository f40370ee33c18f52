// Storage types and their conversions. fp16 and bf16 are storage only: arithmetic is FP32, results are rounded to
// nearest even where they are stored (DESIGN.md section 3).
#ifndef LOCKSTEP_ENGINE_TENSOR_DTYPE_H_
#define LOCKSTEP_ENGINE_TENSOR_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep {

// "fp32", "fp16", "bf16": the names of the run file.
std::string_view DTypeName(DType dtype);
absl::StatusOr<DType> ParseDType(std::string_view name);

// Bit-exact scalar conversions, round to nearest even; overflow goes to infinity, NaN stays NaN (quiet), subnormals are
// kept. These are the reference of the vector versions below.
float HalfToFloat(uint16_t bits);
uint16_t FloatToHalf(float value);
float BFloat16ToFloat(uint16_t bits);
uint16_t FloatToBFloat16(float value);

// n elements, any alignment; source and destination do not overlap. Same bits as the scalar versions.
void ConvertToFloat(DType source_dtype, const void* source, float* destination, size_t n);
void ConvertFromFloat(DType destination_dtype, const float* source, void* destination, size_t n);

// value rounded to dtype and back.
float RoundTo(DType dtype, float value);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TENSOR_DTYPE_H_
