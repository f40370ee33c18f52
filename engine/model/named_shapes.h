// Shapes by the names that people use for them.
#ifndef LOCKSTEP_ENGINE_MODEL_NAMED_SHAPES_H_
#define LOCKSTEP_ENGINE_MODEL_NAMED_SHAPES_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace lockstep {

// "qwen2.5-0.5b", "qwen2.5-1.5b", "deepseek-r1-distill-qwen-1.5b", "quickstart". NOT_FOUND lists them.
absl::StatusOr<ModelConfig> NamedShape(std::string_view name);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_NAMED_SHAPES_H_
