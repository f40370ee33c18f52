// Which experts the tokens of a mixture of experts went to, as bytes: what a rollout records and a training pass
// replays (rollout routing replay, arXiv 2510.11370).
//
// A row is one token: [layers with experts, ascending][K] ids, in ascending order within a layer; one byte an id where
// the model has at most 256 experts, else two (little-endian). Layers without experts are left out.
#ifndef LOCKSTEP_ENGINE_MODEL_ROUTING_H_
#define LOCKSTEP_ENGINE_MODEL_ROUTING_H_

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "engine/model/model.h"

namespace lockstep {

struct RoutingShape {
  int64_t layers = 0;       // that have experts; 0: a dense model, which has no routing
  int64_t top_k = 0;        // K
  int64_t num_experts = 0;  // N

  RoutingShape() = default;
  explicit RoutingShape(const ModelConfig& config);
  size_t id_bytes() const { return num_experts <= 256 ? 1 : 2; }
  size_t row_bytes() const { return static_cast<size_t>(layers * top_k) * id_bytes(); }
};

// experts [K] of one layer (the index counts layers with experts) from / to a row.
void GetExperts(const RoutingShape& shape, const char* row, int64_t layer, int32_t* experts);
void PutExperts(const RoutingShape& shape, const int32_t* experts, int64_t layer, char* row);

// Whether `bytes` are whole rows whose ids exist and differ within a layer. INVALID_ARGUMENT names the first row that
// is wrong.
absl::Status CheckRouting(const RoutingShape& shape, std::string_view bytes);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_ROUTING_H_
