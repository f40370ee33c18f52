// The page of data: what a model is. One decoder definition serves every family of engine/model/families: RMSNorm, RoPE
// (plain or of Llama 3.1), GQA, optional qkv bias, optional q/k norms, SwiGLU or a mixture of SwiGLU experts,
// optionally tied embedding.
#ifndef LOCKSTEP_ENGINE_MODEL_MODEL_H_
#define LOCKSTEP_ENGINE_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/model/weight_set.h"
#include "engine/tensor/tensor.h"

namespace lockstep {

// One parameter as the engine holds it. q, k, v are one matrix, as are gate and up.
struct ParamSpec {
  enum class Kind { kEmbedding, kVector, kMatrix };
  // "embed", "layers.3.qkv", "layers.3.qkv_bias", "layers.3.input_norm", "layers.3.experts.7.down", ...
  std::string name;
  Kind kind = Kind::kMatrix;
  int64_t rows = 0;  // vectors: 1
  int64_t cols = 0;
  int64_t offset = 0;  // of its first element in a flat FP32 arena of all parameters (row-major)
  bool weight_decay = false;
  int64_t layer = -1;  // -1: of no layer
  int64_t size() const { return rows * cols; }
};

// A Hugging Face tensor is rows [row_begin, row_begin + rows) of a parameter (a bias or norm: columns of a vector, with
// row_begin counting elements).
struct HfTensor {
  std::string name;  // "model.layers.3.self_attn.q_proj.weight"
  int param = 0;     // index into ParamLayout::params
  int64_t row_begin = 0;
  std::vector<int64_t> shape;
  // An expert's tensor may instead be rows [stacked_row, stacked_row + shape[0]) of this tensor, seen as a matrix: all
  // experts of a layer in one. Empty: there is no such layout.
  std::string stacked_name;
  std::vector<int64_t> stacked_shape;
  int64_t stacked_row = 0;
};

struct ParamLayout {
  std::vector<ParamSpec> params;  // canonical order: embed, layers ascending, final_norm, lm_head if not tied
  std::vector<HfTensor> hf_tensors;
  int64_t total_size = 0;  // elements of the arena

  // Where each parameter stands in `params`; -1: the model has none.
  struct LayerParams {
    int input_norm = -1;
    int qkv = -1;
    int qkv_bias = -1;
    int q_norm = -1;
    int k_norm = -1;
    int o = -1;
    int post_norm = -1;
    int gate_up = -1;  // -1 in a layer with experts, as is down
    int down = -1;
    int router = -1;   // -1 in a layer without experts
    int experts = -1;  // of expert e: gate_up at experts + 2 e, down behind it
    int expert_gate_up(int64_t expert) const { return experts + 2 * static_cast<int>(expert); }
    int expert_down(int64_t expert) const { return expert_gate_up(expert) + 1; }
  };
  int embed = 0;
  std::vector<LayerParams> layers;
  int final_norm = -1;
  int lm_head = -1;  // -1 when tied: then `output` is embed
  int output() const { return lm_head < 0 ? embed : lm_head; }

  explicit ParamLayout(const ModelConfig& config);
  ParamLayout() = default;
};

struct ExpertWeights {
  PackedMatrix gate_up;  // [2M, D]: gate rows, then up
  PackedMatrix down;     // [D, M]
};

struct LayerWeights {
  Buffer input_norm, post_norm;        // vectors in the weights' dtype
  Buffer qkv_bias, q_norm, k_norm;     // [(H + 2G) E], [E], [E]; empty where the model has none
  PackedMatrix qkv;                    // [(H + 2G) E, D]: q rows, then k, then v
  PackedMatrix o;                      // [D, H E]
  PackedMatrix gate_up;                // [2F, D]: gate rows, then up; empty in a layer with experts, as is down
  PackedMatrix down;                   // [D, F]
  PackedMatrix router;                 // [N, D]; empty in a layer without experts
  std::vector<ExpertWeights> experts;  // [N]
};

// A set in host memory, packed for the CPU.
struct Weights : WeightSet {
  ParamLayout layout;
  PackedMatrix embed;                // [V, D]
  std::vector<LayerWeights> layers;  // [L]
  Buffer final_norm;                 // [D]
  PackedMatrix lm_head;              // [V, D]; empty when tied

  // All zeros, allocated.
  Weights(const ModelConfig& config, DType dtype);
  const PackedMatrix& output() const { return config.tie_word_embeddings ? embed : lm_head; }
  // Writes rows [row_begin, row_begin + rows.rows) of parameter `param` from row-major `rows` (any dtype; rounded). Of
  // a vector: elements [row_begin, row_begin + rows.cols) from rows [1, n], as HfTensor::row_begin counts them.
  void SetParamRows(int param, int64_t row_begin, const Tensor& rows);
  void GetParamRows(int param, int64_t row_begin, const Tensor& rows) const;
  // All parameters from / to a flat FP32 arena in the layout's order.
  void SetFromArena(const float* arena);
  void CopyToArena(float* arena) const;
  size_t bytes() const;
};

// Where the values of all parameters are read: a flat FP32 arena in the layout's order, or weights. One of the two is
// set; what it points at outlives the source.
struct ParamSource {
  ParamSource() = default;
  ParamSource(const float* arena) : arena(arena) {}  // a source is what either is passed as
  ParamSource(const Weights* weights) : weights(weights) {}
  const float* arena = nullptr;
  const Weights* weights = nullptr;
};

// Random initialisation of an arena: matrices N(0, std), down and o scaled by 1/sqrt(2L), norms 1, biases 0. By seed.
void InitializeArena(const ModelConfig& config, uint64_t seed, float std, float* arena);
// The same values, elements [first, first + count) of one parameter, for models that are never whole in memory.
void InitializeElements(const ModelConfig& config, const ParamLayout& layout, uint64_t seed, float std, int param,
                        int64_t first, int64_t count, float* out);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_MODEL_H_
