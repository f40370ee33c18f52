#include "engine/model/test_util.h"

#include <cstring>
#include <fstream>
#include <iterator>

#include "engine/base/check.h"

namespace lockstep::testing {
namespace {

constexpr uint64_t kTokenStream = 5000;

// Takes values off the front of a file's bytes.
class Reader {
 public:
  explicit Reader(std::string bytes) : bytes_(std::move(bytes)) {}
  template <typename T>
  std::vector<T> Take(size_t count) {
    LOCKSTEP_CHECK(bytes_.size() - at_ >= count * sizeof(T), "golden is too short");
    std::vector<T> values(count);
    std::memcpy(values.data(), bytes_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
    return values;
  }
  bool done() const { return at_ == bytes_.size(); }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

}  // namespace

uint32_t Hash32(uint64_t stream, uint64_t index) {
  uint32_t h = static_cast<uint32_t>(index * 0x9E3779B9u + (stream + 1) * 0x85EBCA6Bu);
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

std::vector<float> TestArena(const ModelConfig& config) {
  const ParamLayout layout(config);
  std::vector<float> arena(layout.total_size);
  for (size_t i = 0; i < layout.params.size(); ++i) {
    const ParamSpec& spec = layout.params[i];
    const bool is_bias = spec.name.ends_with("_bias"), is_norm = spec.name.ends_with("_norm");
    const float scale = spec.kind == ParamSpec::Kind::kEmbedding ? 2.0f : is_bias ? 1.0f : 0.5f;
    for (int64_t j = 0; j < spec.size(); ++j) {
      const uint32_t h = Hash32(i, j);
      const float norm = 0.5f + static_cast<float>(h >> 28) / 16.0f;
      arena[spec.offset + j] = is_norm ? norm : scale * (static_cast<float>(h >> 24) / 256.0f - 0.5f);
    }
  }
  return arena;
}

Weights TestWeights(const ModelConfig& config, DType dtype) {
  Weights weights(config, dtype);
  weights.SetFromArena(TestArena(config).data());
  return weights;
}

ModelConfig SmallConfig() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 101;
  config.hidden_size = 40;
  config.num_layers = 3;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_size = 52;
  config.max_position_embeddings = 512;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

PackedBatch TestBatch(const ModelConfig& config, const std::vector<int>& lengths, uint64_t stream) {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  for (int length : lengths) batch.cu_seqlens.push_back(batch.cu_seqlens.back() + length);
  const int32_t tokens = batch.cu_seqlens.back();
  for (int32_t i = 0; i < tokens; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(Hash32(kTokenStream + stream, i) % config.vocab_size));
    batch.loss_rows.push_back(i);
  }
  for (int32_t i = 0; i < tokens; ++i) batch.targets.push_back(batch.tokens[(i + 1) % tokens]);
  return batch;
}

Golden LoadGolden(const std::string& name) {
  std::ifstream file("engine/model/testdata/" + name + ".golden", std::ios::binary);
  LOCKSTEP_CHECK(file.good(), "golden is not there");
  Reader reader(std::string(std::istreambuf_iterator<char>(file), {}));
  LOCKSTEP_CHECK(reader.Take<uint32_t>(1)[0] == 0x3247534Cu, "not a golden");  // "LSG2"
  const std::vector<int32_t> ints = reader.Take<int32_t>(13);
  const std::vector<int32_t> parts = reader.Take<int32_t>(8);
  const std::vector<float> floats = reader.Take<float>(6);
  Golden golden;
  ModelConfig& config = golden.config;
  config.vocab_size = ints[0];
  config.hidden_size = ints[1];
  config.num_layers = ints[2];
  config.num_heads = ints[3];
  config.num_kv_heads = ints[4];
  config.head_dim = ints[5];
  config.intermediate_size = ints[6];
  config.max_position_embeddings = ints[7];
  config.qkv_bias = ints[8] != 0;
  config.tie_word_embeddings = ints[9] != 0;
  config.qk_norm = parts[0] != 0;
  config.rope_scaling = {parts[1] != 0, floats[3], floats[4], floats[5], parts[1]};
  config.num_experts = parts[2];
  config.experts_per_token = parts[3];
  config.moe_intermediate_size = parts[4];
  config.norm_topk_prob = parts[5] != 0;
  config.decoder_sparse_step = parts[6];
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    if ((parts[7] >> layer & 1) != 0) config.mlp_only_layers.push_back(layer);
  }
  config.architecture = config.num_experts > 0 ? "Qwen3MoeForCausalLM"
                        : config.qk_norm       ? "Qwen3ForCausalLM"
                        : config.qkv_bias      ? "Qwen2ForCausalLM"
                                               : "LlamaForCausalLM";
  config.rms_norm_eps = floats[0];
  config.rope_theta = floats[1];
  golden.temperature = floats[2];
  const size_t tokens = ints[10], bounds = ints[11], rows = ints[12];
  golden.batch.tokens = reader.Take<int32_t>(tokens);
  golden.batch.cu_seqlens = reader.Take<int32_t>(bounds);
  golden.batch.loss_rows = reader.Take<int32_t>(rows);
  golden.batch.targets = reader.Take<int32_t>(rows);
  golden.coefficient = reader.Take<float>(rows);
  golden.log_prob = reader.Take<float>(rows);
  golden.entropy = reader.Take<float>(rows);
  golden.gradients = reader.Take<float>(ParamLayout(config).total_size);
  LOCKSTEP_CHECK(reader.done(), "golden is longer than its header says");
  return golden;
}

}  // namespace lockstep::testing
