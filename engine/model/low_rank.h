// Low-rank updates of linear layers (LoRA, Hu et al. 2021): W = W_base + scale B A with scale = alpha / rank. Both
// engines compute with the merged W, rounded once, so nothing in a forward pass knows of adapters.
#ifndef LOCKSTEP_ENGINE_MODEL_LOW_RANK_H_
#define LOCKSTEP_ENGINE_MODEL_LOW_RANK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace lockstep {

inline constexpr int64_t kMaxLowRank = 1024;

// The update of one Hugging Face module: rows [row_begin, row_begin + rows) of a parameter.
struct LowRankAdapter {
  std::string module;  // "model.layers.3.self_attn.q_proj"
  int param = 0;       // index into ParamLayout::params
  int64_t row_begin = 0;
  int64_t rows = 0;      // n, outputs
  int64_t cols = 0;      // k, inputs
  int64_t a_offset = 0;  // of A [rank, k] in a flat FP32 arena of all adapters
  int64_t b_offset = 0;  // of B [n, rank]
};

struct LowRankLayout {
  int64_t rank = 0;
  float scale = 0;
  std::vector<std::string> target_modules;  // "q_proj", ...: in the canonical order
  std::vector<LowRankAdapter> adapters;     // in the order of ParamLayout::hf_tensors; of each A, then B in the arena
  std::vector<std::vector<int>> of_param;   // [params] indices into adapters
  int64_t total_size = 0;                   // elements of the arena

  Tensor A(const LowRankAdapter& adapter, float* arena) const {
    return Tensor(arena + adapter.a_offset, DType::kF32, rank, adapter.cols);
  }
  Tensor B(const LowRankAdapter& adapter, float* arena) const {
    return Tensor(arena + adapter.b_offset, DType::kF32, adapter.rows, rank);
  }
};

// target_modules: names of linear layers, q_proj k_proj v_proj o_proj gate_proj up_proj down_proj, each at most once;
// empty: all that the model has outside of its experts. INVALID_ARGUMENT, one line: a name that is none of these, one
// of a mixture of experts, a rank out of range, an alpha that is not above 0.
absl::StatusOr<LowRankLayout> MakeLowRankLayout(const ModelConfig& config, int64_t rank, float alpha,
                                                const std::vector<std::string>& target_modules);

// As PEFT begins: A uniform in +-1/sqrt(k) (Kaiming with a = sqrt(5)), B 0. Element i of adapter j depends on (seed, j,
// i) alone.
void InitializeLowRank(const LowRankLayout& layout, uint64_t seed, float* arena);

// values += scale B A on rows [row_begin, row_begin + rows) of a parameter; values [rows, cols of the parameter]. An
// element is base + scale * (one fma chain over ascending rank from 0), so it does not depend on the split into rows.
void AddLowRank(const LowRankLayout& layout, const float* arena, int param, int64_t row_begin, int64_t rows,
                int64_t cols, float* values);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_LOW_RANK_H_
