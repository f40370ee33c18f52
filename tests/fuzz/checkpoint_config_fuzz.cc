// config.json: any text is refused in one line, or gives a valid config that survives being written and read again.
// fuzz sources: engine/checkpoint/hf_config.cc engine/base/json.cc engine/base/process.cc engine/base/digest.cc
// fuzz sources: engine/model/model_config.cc engine/model/param_layout.cc engine/model/families/llama.cc
// fuzz sources: engine/model/families/qwen2.cc engine/model/families/qwen3.cc engine/model/families/qwen3_moe.cc
// fuzz sources: engine/model/families/registry.cc
// fuzz seeds: engine/checkpoint/testdata/*/config.json
#include <cstdlib>
#include <string>

#include "engine/checkpoint/hf_folder.h"

namespace {

void Require(bool condition) {
  if (!condition) abort();
}

constexpr int64_t kLayoutTensors = 20000;  // a larger layout is only slow

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = lockstep::ParseHfConfig(text, "config.json");
  if (!config.ok()) {
    Require(config.status().message().find('\n') == std::string_view::npos);
    return 0;
  }
  Require(config->Validate().ok());
  const auto again = lockstep::ParseHfConfig(lockstep::HfConfigJson(*config, lockstep::DType::kF16), "again");
  Require(again.ok());
  Require(again->Hash() == config->Hash());
  Require(again->eos_token_ids == config->eos_token_ids);
  if (config->num_layers * std::max<int64_t>(1, config->num_experts) > kLayoutTensors) return 0;
  const lockstep::ParamLayout layout(*config);
  int64_t offset = 0;
  for (const lockstep::ParamSpec& spec : layout.params) {
    Require(spec.offset == offset && spec.rows > 0 && spec.cols > 0);
    offset += spec.size();
  }
  Require(offset == layout.total_size);
  return 0;
}
