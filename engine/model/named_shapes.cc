#include "engine/model/named_shapes.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/model/shapes.h"

namespace lockstep {
namespace {

ModelConfig DistillQwenShape15B() {
  ModelConfig config = Qwen25Shape15B();
  config.tie_word_embeddings = false;
  config.max_position_embeddings = 131072;
  config.rope_theta = 10000.0f;
  config.eos_token_ids = {151643};
  return config;
}

struct Named {
  const char* name;
  ModelConfig (*make)();
};

constexpr Named kShapes[] = {
    {"qwen2.5-0.5b", [] { return Qwen25Shape05B(); }},
    {"qwen2.5-1.5b", [] { return Qwen25Shape15B(); }},
    {"deepseek-r1-distill-qwen-1.5b", DistillQwenShape15B},
    {"quickstart", [] { return QuickstartShape(); }},
};

}  // namespace

absl::StatusOr<ModelConfig> NamedShape(std::string_view name) {
  std::string known;
  for (const Named& shape : kShapes) {
    if (name == shape.name) return shape.make();
    absl::StrAppend(&known, known.empty() ? "" : ", ", shape.name);
  }
  return absl::NotFoundError(
      absl::StrCat("shape '", std::string(name), "' is not known; these are: ", known, "; or give a config.json"));
}

}  // namespace lockstep
