#include "engine/model/low_rank.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/base/philox.h"

namespace lockstep {
namespace {

constexpr const char* kAttention[] = {"q_proj", "k_proj", "v_proj", "o_proj"};
constexpr const char* kMlp[] = {"gate_proj", "up_proj", "down_proj"};

void AddFour(const float* b, const float* __restrict a, int64_t cols, float* __restrict delta) {
  const float b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
  const float *a1 = a + cols, *a2 = a1 + cols, *a3 = a2 + cols;
  for (int64_t c = 0; c < cols; ++c) {
    delta[c] = std::fma(b3, a3[c], std::fma(b2, a2[c], std::fma(b1, a1[c], std::fma(b0, a[c], delta[c]))));
  }
}

bool AnyExperts(const ModelConfig& config) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.HasExperts(layer)) return true;
  }
  return false;
}

bool OneOf(const std::string& name, std::span<const char* const> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The targets in canonical order.
absl::StatusOr<std::vector<std::string>> Targets(const ModelConfig& config, const std::vector<std::string>& asked) {
  const bool experts = AnyExperts(config);
  std::set<std::string> wanted;
  for (const std::string& name : asked) {
    if (OneOf(name, kMlp) && experts) {
      return absl::InvalidArgumentError(absl::StrCat("lora.target_modules: '", name,
                                                     "' is a layer of the experts, which have no adapters; use ",
                                                     absl::StrJoin(kAttention, ", ")));
    }
    if (!OneOf(name, kAttention) && !OneOf(name, kMlp)) {
      const bool table = name == "embed_tokens" || name == "lm_head";
      return absl::InvalidArgumentError(
          absl::StrCat("lora.target_modules: '", name.substr(0, 64), "' ",
                       table ? "is an embedding, which has no adapter" : "is not a linear layer of the decoder",
                       "; use some of ", absl::StrJoin(kAttention, ", "), ", ", absl::StrJoin(kMlp, ", ")));
    }
    if (!wanted.insert(name).second) {
      return absl::InvalidArgumentError(absl::StrCat("lora.target_modules: '", name, "' is named twice"));
    }
  }
  std::vector<std::string> targets;
  for (const char* name : kAttention) {
    if (asked.empty() || wanted.count(name) > 0) targets.push_back(name);
  }
  for (const char* name : kMlp) {
    if (asked.empty() ? !experts : wanted.count(name) > 0) targets.push_back(name);
  }
  return targets;
}

}  // namespace

absl::StatusOr<LowRankLayout> MakeLowRankLayout(const ModelConfig& config, int64_t rank, float alpha,
                                                const std::vector<std::string>& target_modules) {
  if (rank < 1 || rank > kMaxLowRank) {
    return absl::InvalidArgumentError(absl::StrCat("lora.rank: ", rank, " is not in 1..", kMaxLowRank));
  }
  if (!std::isfinite(alpha) || !(alpha > 0)) {
    return absl::InvalidArgumentError(absl::StrCat("lora.alpha: ", alpha, " must be above 0"));
  }
  auto targets = Targets(config, target_modules);
  if (!targets.ok()) return targets.status();
  LowRankLayout layout;
  layout.rank = rank;
  layout.scale = alpha / static_cast<float>(rank);
  layout.target_modules = *std::move(targets);
  const ParamLayout params(config);
  layout.of_param.resize(params.params.size());
  constexpr std::string_view kSuffix = ".weight";
  for (const HfTensor& tensor : params.hf_tensors) {
    const ParamSpec& spec = params.params[tensor.param];
    if (spec.kind != ParamSpec::Kind::kMatrix || !tensor.stacked_name.empty() || !tensor.name.ends_with(kSuffix)) {
      continue;
    }
    const std::string module = tensor.name.substr(0, tensor.name.size() - kSuffix.size());
    const std::string leaf = module.substr(module.rfind('.') + 1);
    const auto& names = layout.target_modules;
    if (std::find(names.begin(), names.end(), leaf) == names.end()) continue;
    LowRankAdapter adapter;
    adapter.module = module;
    adapter.param = tensor.param;
    adapter.row_begin = tensor.row_begin;
    adapter.rows = tensor.shape[0];
    adapter.cols = spec.cols;
    adapter.a_offset = layout.total_size;
    adapter.b_offset = adapter.a_offset + rank * adapter.cols;
    layout.total_size = adapter.b_offset + adapter.rows * rank;
    layout.of_param[tensor.param].push_back(static_cast<int>(layout.adapters.size()));
    layout.adapters.push_back(std::move(adapter));
  }
  return layout;
}

void InitializeLowRank(const LowRankLayout& layout, uint64_t seed, float* arena) {
  for (size_t j = 0; j < layout.adapters.size(); ++j) {
    const LowRankAdapter& adapter = layout.adapters[j];
    const float bound = 1.0f / std::sqrt(static_cast<float>(adapter.cols));
    float* a = arena + adapter.a_offset;
    const int64_t size = layout.rank * adapter.cols;
    for (int64_t i = 0; i < size; i += 4) {
      const std::array<uint32_t, 4> bits = Philox4x32(seed, static_cast<uint64_t>(i / 4), j);
      for (int64_t e = 0; e < std::min<int64_t>(4, size - i); ++e) a[i + e] = bound * (2 * UniformOpen(bits[e]) - 1);
    }
    std::fill_n(arena + adapter.b_offset, adapter.rows * layout.rank, 0.0f);
  }
}

void AddLowRank(const LowRankLayout& layout, const float* arena, int param, int64_t row_begin, int64_t rows,
                int64_t cols, float* values) {
  std::vector<float> delta(static_cast<size_t>(cols));
  for (const int index : layout.of_param[param]) {
    const LowRankAdapter& adapter = layout.adapters[index];
    LOCKSTEP_CHECK(adapter.cols == cols, "the columns of an adapter are those of its parameter");
    const int64_t begin = std::max(row_begin, adapter.row_begin);
    const int64_t end = std::min(row_begin + rows, adapter.row_begin + adapter.rows);
    for (int64_t row = begin; row < end; ++row) {
      const float* b = arena + adapter.b_offset + (row - adapter.row_begin) * layout.rank;
      std::fill(delta.begin(), delta.end(), 0.0f);
      const float* a = arena + adapter.a_offset;
      int64_t j = 0;
      for (; j + 4 <= layout.rank; j += 4) {  // the same chain, with a load and a store of delta for four of its links
        AddFour(b + j, a + j * cols, cols, delta.data());
      }
      for (; j < layout.rank; ++j) {
        for (int64_t c = 0; c < cols; ++c) delta[c] = std::fma(b[j], a[j * cols + c], delta[c]);
      }
      float* to = values + (row - row_begin) * cols;
      for (int64_t c = 0; c < cols; ++c) to[c] = std::fma(layout.scale, delta[c], to[c]);
    }
  }
}

}  // namespace lockstep
