#include "engine/model/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "engine/model/shapes.h"
#include "engine/model/test_util.h"

namespace lockstep {
namespace {

using testing::SmallConfig;

TEST(ModelConfig, NamesFieldValueAndLimitOfAWrongShape) {
  EXPECT_TRUE(SmallConfig().Validate().ok());
  EXPECT_TRUE(Qwen25Shape05B().Validate().ok());
  EXPECT_TRUE(Qwen25Shape15B().Validate().ok());
  EXPECT_TRUE(QuickstartShape().Validate().ok());
  ModelConfig config = SmallConfig();
  config.num_kv_heads = 4;
  EXPECT_EQ(config.Validate().message(),
            "model config: num_attention_heads is 6, must be a multiple of num_key_value_heads (4); check config.json");
  config = SmallConfig();
  config.hidden_size = 0;
  EXPECT_EQ(config.Validate().message(), "model config: hidden_size is 0, must be 1 to 16777216; check config.json");
  config = SmallConfig();
  config.head_dim = 7;
  EXPECT_FALSE(config.Validate().ok());
  config = SmallConfig();
  config.architecture = "GPT2LMHeadModel";
  EXPECT_FALSE(config.Validate().ok());
  config = SmallConfig();
  config.rms_norm_eps = std::nanf("");
  EXPECT_FALSE(config.Validate().ok());
  config = SmallConfig();
  config.eos_token_ids = {101};
  EXPECT_FALSE(config.Validate().ok());
  config = SmallConfig();
  config.vocab_size = config.hidden_size = config.intermediate_size = 1 << 24;
  EXPECT_FALSE(config.Validate().ok());
}

TEST(ModelConfig, HashChangesWithEveryShapeField) {
  std::set<std::string> hashes = {SmallConfig().Hash()};
  const auto changed = [&](auto change) {
    ModelConfig config = SmallConfig();
    change(config);
    return hashes.insert(config.Hash()).second;
  };
  EXPECT_TRUE(changed([](ModelConfig& c) { c.vocab_size = 102; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.hidden_size = 41; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.num_layers = 4; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.num_heads = 8; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.num_kv_heads = 3; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.head_dim = 10; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.intermediate_size = 53; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.rms_norm_eps = 1e-5f; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.rope_theta = 1e6f; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.qkv_bias = false; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.tie_word_embeddings = false; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.architecture = "LlamaForCausalLM"; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.qk_norm = true; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.rope_scaling.llama3 = true; }));
  EXPECT_TRUE(changed([](ModelConfig& c) { c.rope_scaling = {true, 8.0f, 1.0f, 4.0f, 8192}; }));
  const auto experts = [](ModelConfig& c) {
    c.num_experts = 4;
    c.experts_per_token = 2;
    c.moe_intermediate_size = 8;
  };
  EXPECT_TRUE(changed(experts));
  EXPECT_TRUE(changed([&](ModelConfig& c) { experts(c), c.norm_topk_prob = true; }));
  EXPECT_TRUE(changed([&](ModelConfig& c) { experts(c), c.mlp_only_layers = {1}; }));
  EXPECT_TRUE(changed([&](ModelConfig& c) { experts(c), c.decoder_sparse_step = 2; }));
  EXPECT_EQ(SmallConfig().Hash(), *hashes.find(SmallConfig().Hash()));
}

TEST(ParamLayout, CoversTheArenaOnceAndMapsEveryHuggingFaceTensor) {
  for (bool tied : {true, false}) {
    ModelConfig config = Qwen25Shape05B();
    config.tie_word_embeddings = tied;
    const ParamLayout layout(config);
    int64_t offset = 0;
    for (const ParamSpec& spec : layout.params) {
      EXPECT_EQ(spec.offset, offset) << spec.name;
      EXPECT_EQ(spec.weight_decay, spec.kind != ParamSpec::Kind::kVector) << spec.name;
      offset += spec.size();
    }
    EXPECT_EQ(layout.total_size, offset);
    EXPECT_EQ(layout.total_size, 494032768 + (tied ? 0 : 151936 * 896));  // 494.0 M, as the model's card says
    EXPECT_EQ(layout.hf_tensors.size(), 24 * 12 + (tied ? 2 : 3));
    // Each parameter's rows are covered by its Hugging Face tensors in order, without a gap.
    std::vector<int64_t> covered(layout.params.size(), 0);
    for (const HfTensor& tensor : layout.hf_tensors) {
      EXPECT_EQ(tensor.row_begin, covered[tensor.param]) << tensor.name;
      covered[tensor.param] += tensor.shape[0];
    }
    for (size_t i = 0; i < layout.params.size(); ++i) {
      const ParamSpec& spec = layout.params[i];
      EXPECT_EQ(covered[i], spec.kind == ParamSpec::Kind::kVector ? spec.cols : spec.rows) << spec.name;
    }
    EXPECT_EQ(layout.params[layout.output()].name, tied ? "embed" : "lm_head");
    EXPECT_EQ(layout.params[layout.layers[3].gate_up].name, "layers.3.gate_up");
  }
}

TEST(ParamLayout, NamesTheTensorsOfHuggingFace) {
  const ParamLayout layout(SmallConfig());
  std::vector<std::string> names;
  for (const HfTensor& tensor : layout.hf_tensors) names.push_back(tensor.name);
  const std::vector<std::string> expected = {
      "model.embed_tokens.weight",
      "model.layers.0.input_layernorm.weight",
      "model.layers.0.self_attn.q_proj.weight",
      "model.layers.0.self_attn.k_proj.weight",
      "model.layers.0.self_attn.v_proj.weight",
      "model.layers.0.self_attn.q_proj.bias",
      "model.layers.0.self_attn.k_proj.bias",
      "model.layers.0.self_attn.v_proj.bias",
      "model.layers.0.self_attn.o_proj.weight",
      "model.layers.0.post_attention_layernorm.weight",
      "model.layers.0.mlp.gate_proj.weight",
      "model.layers.0.mlp.up_proj.weight",
      "model.layers.0.mlp.down_proj.weight",
  };
  names.resize(expected.size());
  EXPECT_EQ(names, expected);
  EXPECT_EQ(layout.hf_tensors.back().name, "model.norm.weight");
}

TEST(ParamLayout, MapsExpertsBothWaysTheyLieOnDisk) {
  ModelConfig config = SmallConfig();
  config.architecture = "Qwen3MoeForCausalLM";
  config.qkv_bias = false;
  config.qk_norm = true;
  config.num_experts = 3;
  config.experts_per_token = 2;
  config.moe_intermediate_size = 12;
  config.mlp_only_layers = {0};
  ASSERT_TRUE(config.Validate().ok()) << config.Validate();
  const ParamLayout layout(config);
  EXPECT_EQ(layout.layers[0].router, -1);
  EXPECT_EQ(layout.layers[1].gate_up, -1);
  EXPECT_EQ(layout.params[layout.layers[1].router].name, "layers.1.router");
  EXPECT_EQ(layout.params[layout.layers[2].expert_down(2)].name, "layers.2.experts.2.down");
  int found = 0;
  for (const HfTensor& tensor : layout.hf_tensors) {
    if (tensor.name == "model.layers.1.mlp.experts.2.up_proj.weight") {
      ++found;
      EXPECT_EQ(tensor.param, layout.layers[1].expert_gate_up(2));
      EXPECT_EQ(tensor.row_begin, 12);
      EXPECT_EQ(tensor.shape, (std::vector<int64_t>{12, 40}));
      EXPECT_EQ(tensor.stacked_name, "model.layers.1.mlp.experts.gate_up_proj");
      EXPECT_EQ(tensor.stacked_shape, (std::vector<int64_t>{3, 24, 40}));
      EXPECT_EQ(tensor.stacked_row, 2 * 24 + 12);
    }
    if (tensor.name == "model.layers.1.mlp.experts.1.down_proj.weight") {
      ++found;
      EXPECT_EQ(tensor.stacked_shape, (std::vector<int64_t>{3, 40, 12}));
      EXPECT_EQ(tensor.stacked_row, 40);
    }
    if (tensor.name == "model.layers.2.mlp.gate.weight" || tensor.name == "model.layers.2.self_attn.k_norm.weight") {
      ++found;
    }
  }
  EXPECT_EQ(found, 4);
}

TEST(Weights, ArenaGoesInAndOutAndRoundsToTheDtype) {
  ModelConfig config = SmallConfig();
  config.tie_word_embeddings = false;
  const ParamLayout layout(config);
  std::vector<float> arena(layout.total_size), back(layout.total_size);
  InitializeArena(config, 3, 0.02f, arena.data());
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Weights weights(config, dtype);
    weights.SetFromArena(arena.data());
    weights.CopyToArena(back.data());
    for (int64_t i = 0; i < layout.total_size; ++i) ASSERT_EQ(back[i], RoundTo(dtype, arena[i])) << i;
    EXPECT_GE(weights.bytes(), layout.total_size * DTypeSize(dtype));
  }
}

TEST(Weights, EveryParameterOfAMixtureHasItsPlace) {
  ModelConfig config = SmallConfig();
  config.architecture = "Qwen3MoeForCausalLM";
  config.qkv_bias = false;
  config.qk_norm = true;
  config.num_experts = 3;
  config.experts_per_token = 2;
  config.moe_intermediate_size = 12;
  config.mlp_only_layers = {0};
  const std::vector<float> arena = testing::TestArena(config);
  std::vector<float> back(arena.size());
  Weights weights(config, DType::kF16);
  weights.SetFromArena(arena.data());
  weights.CopyToArena(back.data());
  EXPECT_EQ(back, arena);
  EXPECT_GE(weights.bytes(), arena.size() * 2);
}

TEST(Weights, RowsOfAVectorAreElements) {
  const ModelConfig config = SmallConfig();
  Weights weights(config, DType::kF16);
  const int param = weights.layout.layers[1].qkv_bias;
  std::vector<float> values = {1.5f, -2.0f, 3.25f}, all(config.qkv_rows());
  weights.SetParamRows(param, 5, Tensor(values.data(), DType::kF32, 1, 3));
  weights.GetParamRows(param, 0, Tensor(all.data(), DType::kF32, 1, config.qkv_rows()));
  std::vector<float> expected(config.qkv_rows());
  std::copy(values.begin(), values.end(), expected.begin() + 5);
  EXPECT_EQ(all, expected);
}

TEST(InitializeArena, AnyRangeOfElementsHasTheValuesOfTheWhole) {
  const ModelConfig config = testing::SmallConfig();
  const ParamLayout layout(config);
  std::vector<float> arena(layout.total_size);
  InitializeArena(config, 7, 0.02f, arena.data());
  for (int param = 0; param < static_cast<int>(layout.params.size()); ++param) {
    const ParamSpec& spec = layout.params[param];
    for (int64_t first = 0; first < spec.size(); first += 37) {  // begins at every place of a block of four
      std::vector<float> part(std::min<int64_t>(37, spec.size() - first));
      InitializeElements(config, layout, 7, 0.02f, param, first, static_cast<int64_t>(part.size()), part.data());
      for (size_t i = 0; i < part.size(); ++i) ASSERT_EQ(part[i], arena[spec.offset + first + i]) << spec.name;
    }
  }
}

TEST(InitializeArena, DependsOnTheSeedAloneAndHasTheAskedSpread) {
  const ModelConfig config = QuickstartShape();
  const ParamLayout layout(config);
  std::vector<float> a(layout.total_size), b(layout.total_size), c(layout.total_size);
  InitializeArena(config, 1, 0.02f, a.data());
  InitializeArena(config, 1, 0.02f, b.data());
  InitializeArena(config, 2, 0.02f, c.data());
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  for (const ParamSpec& spec : layout.params) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < spec.size(); ++i) {
      sum += a[spec.offset + i];
      squares += static_cast<double>(a[spec.offset + i]) * a[spec.offset + i];
    }
    const double n = static_cast<double>(spec.size()), mean = sum / n, std = std::sqrt(squares / n);
    if (spec.kind == ParamSpec::Kind::kVector) {
      EXPECT_EQ(mean, spec.name.ends_with("_bias") ? 0 : 1) << spec.name;
      continue;
    }
    const bool residual = spec.name.ends_with(".o") || spec.name.ends_with(".down");
    const double expected = residual ? 0.02 / std::sqrt(12.0) : 0.02;
    EXPECT_NEAR(mean, 0, 5 * expected / std::sqrt(n)) << spec.name;  // five standard errors
    EXPECT_NEAR(std, expected, 5 * expected / std::sqrt(2 * n)) << spec.name;
  }
}

}  // namespace
}  // namespace lockstep
