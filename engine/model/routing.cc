#include "engine/model/routing.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace lockstep {

RoutingShape::RoutingShape(const ModelConfig& config)
    : top_k(config.experts_per_token), num_experts(config.num_experts) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) layers += config.HasExperts(layer) ? 1 : 0;
}

void GetExperts(const RoutingShape& shape, const char* row, int64_t layer, int32_t* experts) {
  const auto* ids = reinterpret_cast<const uint8_t*>(row) + static_cast<size_t>(layer * shape.top_k) * shape.id_bytes();
  for (int64_t j = 0; j < shape.top_k; ++j) {
    experts[j] = shape.id_bytes() == 1 ? ids[j] : ids[2 * j] | ids[2 * j + 1] << 8;
  }
}

void PutExperts(const RoutingShape& shape, const int32_t* experts, int64_t layer, char* row) {
  auto* ids = reinterpret_cast<uint8_t*>(row) + static_cast<size_t>(layer * shape.top_k) * shape.id_bytes();
  for (int64_t j = 0; j < shape.top_k; ++j) {
    if (shape.id_bytes() == 1) {
      ids[j] = static_cast<uint8_t>(experts[j]);
    } else {
      ids[2 * j] = static_cast<uint8_t>(experts[j]);
      ids[2 * j + 1] = static_cast<uint8_t>(experts[j] >> 8);
    }
  }
}

absl::Status CheckRouting(const RoutingShape& shape, std::string_view bytes) {
  if (shape.row_bytes() == 0) {
    if (bytes.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("routing of a model without experts");
  }
  if (bytes.size() % shape.row_bytes() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("routing of ", bytes.size(), " bytes is not whole rows of ",
                                                   shape.row_bytes(), " (", shape.layers, " layers, ", shape.top_k,
                                                   " of ", shape.num_experts, " experts)"));
  }
  std::vector<int32_t> experts(static_cast<size_t>(shape.top_k));
  for (size_t row = 0; row < bytes.size() / shape.row_bytes(); ++row) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      GetExperts(shape, bytes.data() + row * shape.row_bytes(), layer, experts.data());
      int32_t last = -1;
      for (const int32_t expert : experts) {
        if (expert > last && expert < shape.num_experts) {
          last = expert;
          continue;
        }
        return absl::InvalidArgumentError(absl::StrCat("routing row ", row, ", layer ", layer, ": expert ", expert,
                                                       expert >= shape.num_experts
                                                           ? absl::StrCat(", the model has ", shape.num_experts)
                                                           : absl::StrCat(" after ", last, "; ids ascend")));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep
