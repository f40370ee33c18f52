#include "learner/score.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/json.h"
#include "engine/kernels/packed_matrix.h"
#include "learner/token_ids.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr size_t kMaxLineBytes = size_t{64} << 20;
// What a line asks for.
struct ScoreLine {
  std::vector<int32_t> tokens;
  int64_t num_prompt = 1;
  bool from_text = false;
};

absl::Status ReadTexts(const json& object, const Tokenizer* tokenizer, int64_t vocab_size, ScoreLine* line) {
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError("prompt and response need the model's tokenizer.json; give tokens instead");
  }
  for (const char* key : {"prompt", "response"}) {
    const auto text = object.find(key);
    if (text == object.end() || !text->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("no text under ", key,
                                                     "; a line has tokens, or prompt and "
                                                     "response"));
    }
    const auto tokens = tokenizer->Encode(text->get<std::string>());
    if (!tokens.ok()) return tokens.status();
    if (absl::Status status = AppendTokenizerIds(*tokens, vocab_size, &line->tokens); !status.ok()) return status;
    if (key == std::string("prompt")) line->num_prompt = static_cast<int64_t>(line->tokens.size());
  }
  line->from_text = true;
  return absl::OkStatus();
}

absl::StatusOr<ScoreLine> ParseLine(const std::string& text, const ScoreFileOptions& options,
                                    const Tokenizer* tokenizer, const ModelConfig& config) {
  if (text.size() > kMaxLineBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the line has ", text.size(), " bytes, limit ", kMaxLineBytes));
  }
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  ScoreLine line;
  const auto tokens = object.find("tokens");
  absl::Status status = tokens != object.end() ? AppendTokenIds(*tokens, "tokens", config.vocab_size, &line.tokens)
                                               : ReadTexts(object, tokenizer, config.vocab_size, &line);
  if (!status.ok()) return status;
  const auto size = static_cast<int64_t>(line.tokens.size());
  if (size == 0) return absl::InvalidArgumentError("there is no token to score");
  if (size > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat(size, " tokens, above the model's ", config.max_position_embeddings, " positions; shorten it"));
  }
  if (!line.from_text) {
    line.num_prompt = options.prefill ? size : 1;
    if (const auto given = object.find("num_prompt_tokens"); given != object.end()) {
      if (!given->is_number_unsigned() || given->get<uint64_t>() < 1 ||
          given->get<uint64_t>() > static_cast<uint64_t>(size)) {
        return absl::InvalidArgumentError(absl::StrCat("num_prompt_tokens is ", PrintableJson(*given),
                                                       ", must be 1 to the number of tokens, ", size));
      }
      line.num_prompt = given->get<int64_t>();
    }
  }
  if (line.num_prompt < 1) return absl::InvalidArgumentError("the prompt is empty");
  return line;
}

void AppendNumber(float value, std::string* out) {
  if (!std::isfinite(value)) {
    out->append("null");
    return;
  }
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value);
  out->append(digits, end.ptr);
}

std::string ResultLine(const ScoreLine& line, const std::vector<float>& log_probs) {
  std::string out = R"({"log_probs": [null)";
  for (float log_prob : log_probs) {
    out.append(", ");
    AppendNumber(log_prob, &out);
  }
  absl::StrAppend(&out, R"(], "num_prompt_tokens": )", line.num_prompt);
  if (line.from_text) absl::StrAppend(&out, R"(, "tokens": )", json(line.tokens).dump());
  out.append("}\n");
  return out;
}

}  // namespace

absl::StatusOr<ScoreEngine> ParseScoreEngine(const std::string& name) {
  if (name == "learner") return ScoreEngine::kLearner;
  if (name == "rollout") return ScoreEngine::kRollout;
  return absl::InvalidArgumentError(absl::StrCat("--engine is '", name, "'; known are learner, rollout"));
}

Scorer::Scorer(std::shared_ptr<const Weights> weights, const ScorerOptions& options)
    : weights_(std::move(weights)),
      options_(options),
      ops_(MakeCpuOps(options.numerics, options.threads)),
      decoder_(weights_->config, weights_->dtype, ops_.get()) {}

std::vector<float> Scorer::LogProbs(const std::vector<int32_t>& tokens, int64_t num_prompt) {
  LOCKSTEP_CHECK(num_prompt >= 1 && num_prompt <= static_cast<int64_t>(tokens.size()), "the prompt has a token");
  if (tokens.size() == 1) return {};
  return options_.engine == ScoreEngine::kLearner ? Packed(tokens) : Paged(tokens, num_prompt);
}

std::vector<float> Scorer::Packed(const std::vector<int32_t>& tokens) {
  PackedBatch batch;
  batch.tokens = tokens;
  batch.cu_seqlens = {0, static_cast<int32_t>(tokens.size())};
  for (size_t i = 1; i < tokens.size(); ++i) {
    batch.loss_rows.push_back(static_cast<int32_t>(i) - 1);
    batch.targets.push_back(tokens[i]);
  }
  std::vector<float> log_probs(batch.targets.size());
  decoder_.ForwardPacked(*weights_, batch, options_.temperature, /*recompute=*/true, log_probs.data(), nullptr);
  return log_probs;
}

std::vector<float> Scorer::Paged(const std::vector<int32_t>& tokens, int64_t num_prompt) {
  const auto size = static_cast<int64_t>(tokens.size());
  const int64_t pages = (size + kPageTokens - 1) / kPageTokens;
  if (static_cast<int64_t>(pages_.size()) < pages) {
    cache_ = nullptr;
    cache_ = std::make_unique<KvStorage>(weights_->config, weights_->dtype, pages);
    while (static_cast<int64_t>(pages_.size()) < pages) pages_.push_back(static_cast<int32_t>(pages_.size()));
  }
  std::vector<float> log_probs;
  log_probs.reserve(tokens.size() - 1);
  for (int64_t begin = 0; begin < num_prompt; begin += options_.prefill_chunk_tokens) {
    PagedRows(tokens, begin, std::min(begin + options_.prefill_chunk_tokens, num_prompt), *cache_, &log_probs);
  }
  // The last token's row predicts nothing that was given.
  for (int64_t position = num_prompt; position < size - 1; ++position) {
    PagedRows(tokens, position, position + 1, *cache_, &log_probs);
  }
  return log_probs;
}

void Scorer::PagedRows(const std::vector<int32_t>& tokens, int64_t begin, int64_t end, const KvStorage& cache,
                       std::vector<float>* log_probs) {
  const int64_t rows = std::min(end, static_cast<int64_t>(tokens.size()) - 1) - begin;  // with a token after them
  PagedBatch batch;
  for (int64_t position = begin; position < end; ++position) {
    batch.tokens.push_back(tokens[static_cast<size_t>(position)]);
    batch.positions.push_back(static_cast<int32_t>(position));
  }
  batch.sequences.push_back(
      {.row_begin = 0, .row_count = end - begin, .position_begin = begin, .pages = std::span<const int32_t>(pages_)});
  for (int64_t row = 0; row < rows; ++row) batch.output_rows.push_back(static_cast<int32_t>(row));
  logits_.Forward(decoder_, *weights_, batch, cache);
  const int64_t vocab_size = weights_->config.vocab_size;
  const float inverse_temperature = 1.0f / options_.temperature;
  for (PagedLogits::Chunk chunk; logits_.Next(decoder_, *weights_, &chunk);) {
    for (int64_t row = 0; row < chunk.count; ++row) {
      const float* values = chunk.row(row);
      const float lse = ops_->LogSumExp(values, vocab_size, options_.temperature);
      const int32_t target = tokens[static_cast<size_t>(begin + chunk.first + row + 1)];
      log_probs->push_back(values[target] * inverse_temperature - lse);
    }
  }
}

absl::Status ScoreLines(std::istream& in, std::ostream& out, const ScoreFileOptions& options,
                        const Tokenizer* tokenizer, Scorer& scorer) {
  std::string text;
  for (size_t number = 1; std::getline(in, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto line = ParseLine(text, options, tokenizer, scorer.config());
    if (!line.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.name, ":", number, ": ", std::string(line.status().message())));
    }
    out << ResultLine(*line, scorer.LogProbs(line->tokens, line->num_prompt));
    out.flush();
    if (!out.good()) return absl::UnavailableError("the output cannot be written; is the disk full?");
  }
  if (in.bad()) return absl::DataLossError(absl::StrCat("reading ", options.name, " failed"));
  return absl::OkStatus();
}

}  // namespace lockstep
