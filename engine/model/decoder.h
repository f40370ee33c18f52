// The decoder: one list of operations that rollout and learner both walk. mu == pi under matched numerics is a property
// of this file: the paged and the packed forward differ in the attention call alone.
#ifndef LOCKSTEP_ENGINE_MODEL_DECODER_H_
#define LOCKSTEP_ENGINE_MODEL_DECODER_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/kernels/ops.h"
#include "engine/model/low_rank.h"
#include "engine/model/model.h"

namespace lockstep {

// Rows of an inference step: any mixture of prefill chunks and decode rows.
struct PagedBatch {
  std::vector<int32_t> tokens;     // [T]
  std::vector<int32_t> positions;  // [T]
  std::vector<PagedSequence> sequences;
  std::vector<int32_t> output_rows;  // rows whose final hidden state is wanted, ascending
};

// Storage of the KV cache of all layers.
class KvStorage {
 public:
  KvStorage(const ModelConfig& config, DType dtype, int64_t num_pages);
  KvPages layer(int64_t layer) const;
  int64_t num_pages() const { return num_pages_; }
  static size_t BytesPerPage(const ModelConfig& config, DType dtype);
  // Copies the first `tokens` positions of a page in every layer (copy-on-write of a shared, partly filled page).
  void CopyPage(int32_t from, int32_t to, int64_t tokens);

 private:
  DType dtype_;
  int64_t num_pages_;
  int64_t num_kv_heads_;
  int64_t head_dim_;
  size_t layer_bytes_;  // keys of one layer; values have as many
  std::vector<Buffer> layers_;
};

// Sequences packed end to end for training; each starts at position 0.
struct PackedBatch {
  std::vector<int32_t> tokens;      // [T]
  std::vector<int32_t> cu_seqlens;  // [sequences + 1]
  // Rows whose next-token log-prob is wanted (ascending), and the token that it is of.
  std::vector<int32_t> loss_rows;
  std::vector<int32_t> targets;

  // Router replay. The experts of the tokens as another engine chose them: [T] rows of engine/model/routing.h, checked
  // by the caller (CheckRouting); empty: none are given.
  std::string routing;
  // [T] where `routing` is given; 0: the row has no meaning, and the routers choose (a last token has none, since the
  // rollout never computed it).
  std::vector<uint8_t> has_routing;
  // Whether the given experts compute, with this pass's own router probabilities as their weights. False: the routers
  // choose, and the difference is only counted.
  bool replay_routing = true;
};

// What the routers of one ForwardPacked did.
struct RoutingTrace {
  std::string experts;  // [T] rows of engine/model/routing.h: those that computed
  // Pairs of a token and a layer with given experts, and those of them where this pass's routers would have chosen
  // another set. With replay a layer sees what the given experts of the layers before have computed.
  int64_t choices = 0;
  int64_t differing = 0;
};

// Gradients: a flat FP32 arena in the layout's order, added to.
using GradientArena = float*;

// Gradients of low-rank updates alone, added to. `weights` of the pass are those with the updates merged in; all other
// parameters are frozen, and nothing is computed for them.
struct LowRankGradients {
  const LowRankLayout* layout = nullptr;
  const float* adapters = nullptr;  // [layout->total_size] A and B
  float* gradients = nullptr;       // [layout->total_size]
};

class Decoder {
 public:
  // ops must outlive the decoder. rope tables are built here, in double, rounded once to FP32.
  Decoder(const ModelConfig& config, DType dtype, Ops* ops);
  ~Decoder();

  // final_hidden [output_rows, D] in the dtype, final norm applied. Scratch grows to the largest batch seen, then no
  // call allocates. routing (may be null) takes the experts of the tokens: [T] rows of engine/model/routing.h.
  void ForwardPaged(const Weights& weights, const PagedBatch& batch, const KvStorage& cache, const Tensor& final_hidden,
                    std::string* routing = nullptr);
  // logits FP32 [output_rows, V].
  void Logits(const Weights& weights, const Tensor& final_hidden, const Tensor& logits);

  // log_prob, entropy (may be null) of targets at loss_rows, at the temperature. recompute: keep layer inputs only.
  // trace (may be null) takes what the routers did.
  void ForwardPacked(const Weights& weights, const PackedBatch& batch, float temperature, bool recompute,
                     float* log_prob, float* entropy, RoutingTrace* trace = nullptr);
  // Gradient of sum_i coefficient[i] * log_prob[i] (of the last ForwardPacked), times nothing: the caller folds the
  // loss scale and sign into coefficient. Adds into `gradients`. An activation gradient that overflows the dtype
  // becomes infinite and reaches `gradients`, where the loss scaler finds it.
  void Backward(const Weights& weights, const PackedBatch& batch, float temperature, const float* coefficient,
                GradientArena gradients);
  // The same for adapters, by the chain rule through W = W_base + scale B A. The [n, k] gradient of W is never formed.
  void Backward(const Weights& weights, const PackedBatch& batch, float temperature, const float* coefficient,
                const LowRankGradients& gradients);

  // Bytes that ForwardPacked + Backward hold at most for `tokens` packed tokens, all of them loss rows: activations,
  // their gradients and the scratch of the operations. Weights and the gradient arena come on top.
  static size_t TrainingBytes(const ModelConfig& config, DType dtype, int64_t tokens, bool recompute);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_DECODER_H_
