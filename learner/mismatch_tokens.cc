#include "learner/mismatch_tokens.h"

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/json.h"
#include "learner/prompt_templates.h"
#include "learner/token_ids.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr size_t kMaxLineBytes = size_t{64} << 20;

class LineReader {
 public:
  LineReader(const TokenFileOptions& options, PromptTemplate prompt_template)
      : options_(options), template_(std::move(prompt_template)) {}

  absl::StatusOr<PromptedTokens> Prompt(const json& line) const {
    PromptedTokens result;
    absl::Status status;
    if (line.is_string()) {
      status = AppendPrompt(line.get<std::string>(), &result.tokens);
    } else if (line.is_object() && line.contains("tokens")) {
      status = AppendTokenIds(line["tokens"], "tokens", options_.config->vocab_size, &result.tokens);
    } else if (const std::string* text = TextOf(line); text != nullptr) {
      status = AppendPrompt(*text, &result.tokens);
    } else {
      status = absl::InvalidArgumentError("no text under prompt, problem, question or input, and no tokens");
    }
    if (!status.ok()) return status;
    result.num_prompt = static_cast<int64_t>(result.tokens.size());
    return result;
  }

  absl::StatusOr<PromptedTokens> Response(const json& line) const {
    if (!line.is_object()) return absl::InvalidArgumentError("not a JSON object");
    PromptedTokens result;
    const std::string* prompt = TextOf(line);
    const bool apart = prompt != nullptr || line.contains("prompt_tokens");
    if (apart) {
      absl::Status status = prompt != nullptr ? AppendPrompt(*prompt, &result.tokens)
                                              : AppendTokenIds(line["prompt_tokens"], "prompt_tokens",
                                                               options_.config->vocab_size, &result.tokens);
      if (!status.ok()) return status;
      result.num_prompt = static_cast<int64_t>(result.tokens.size());
    }
    if (absl::Status status = AppendResponse(line, &result.tokens); !status.ok()) return status;
    if (!apart) {
      const auto count = JsonInt(line, "num_prompt_tokens", 1, 1, static_cast<int64_t>(result.tokens.size()), "line");
      if (!count.ok()) {
        return absl::InvalidArgumentError("num_prompt_tokens must be 1 to the number of tokens");
      }
      result.num_prompt = *count;
    }
    return result;
  }

  // What both kinds of line must satisfy.
  absl::Status Check(const PromptedTokens& line) const {
    const auto size = static_cast<int64_t>(line.tokens.size());
    if (line.num_prompt < 1) return absl::InvalidArgumentError("the prompt is empty");
    if (size + options_.max_tokens > options_.config->max_position_embeddings) {
      return absl::InvalidArgumentError(absl::StrCat(
          size, " tokens", options_.max_tokens > 0 ? absl::StrCat(" + max_tokens ", options_.max_tokens) : "",
          ", above the model's ", options_.config->max_position_embeddings, " positions; shorten it"));
    }
    return absl::OkStatus();
  }

 private:
  static const std::string* TextOf(const json& line) {
    if (!line.is_object()) return nullptr;
    for (const char* key : {"prompt", "problem", "question", "input"}) {
      const auto found = line.find(key);
      if (found != line.end() && found->is_string()) return found->get_ptr<const std::string*>();
    }
    return nullptr;
  }

  absl::Status AppendPrompt(const std::string& text, std::vector<int32_t>* tokens) const {
    if (options_.tokenizer == nullptr) {
      return absl::InvalidArgumentError("a text needs the model's tokenizer.json; give token ids instead");
    }
    const auto ids = template_.Tokens(*options_.tokenizer, text);
    if (!ids.ok()) return ids.status();
    return AppendTokenizerIds(*ids, options_.config->vocab_size, tokens);
  }

  absl::Status AppendResponse(const json& line, std::vector<int32_t>* tokens) const {
    if (const auto ids = line.find("tokens"); ids != line.end()) {
      return AppendTokenIds(*ids, "tokens", options_.config->vocab_size, tokens);
    }
    const auto text = line.find("response");
    if (text == line.end() || !text->is_string()) {
      return absl::InvalidArgumentError("neither tokens nor a text under response; `lockstep generate` writes tokens");
    }
    if (options_.tokenizer == nullptr) {
      return absl::InvalidArgumentError("a text needs the model's tokenizer.json; give token ids instead");
    }
    const auto ids = options_.tokenizer->Encode(text->get<std::string>());
    if (!ids.ok()) return ids.status();
    return AppendTokenizerIds(*ids, options_.config->vocab_size, tokens);
  }

  const TokenFileOptions& options_;
  const PromptTemplate template_;
};

using ReadLine = absl::StatusOr<PromptedTokens> (LineReader::*)(const json&) const;

absl::StatusOr<std::vector<PromptedTokens>> ReadLines(const TokenFileOptions& options, ReadLine read) {
  auto prompt_template = PromptTemplate::Make(options.prompt_template, options.model_dir);
  if (!prompt_template.ok()) return prompt_template.status();
  const LineReader reader(options, *std::move(prompt_template));
  std::ifstream file(options.path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", options.path));
  std::vector<PromptedTokens> result;
  std::string text;
  for (size_t number = 1; std::getline(file, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (options.limit > 0 && result.size() == options.limit) break;
    const auto refuse = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(options.path, ":", number, ": ", what));
    };
    if (text.size() > kMaxLineBytes) return refuse(absl::StrCat(text.size(), " bytes, limit ", kMaxLineBytes));
    const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_discarded()) return refuse("not JSON");
    absl::StatusOr<PromptedTokens> tokens = (reader.*read)(line);
    if (!tokens.ok()) return refuse(tokens.status().message());
    if (absl::Status status = reader.Check(*tokens); !status.ok()) return refuse(status.message());
    result.push_back(*std::move(tokens));
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat("reading ", options.path, " failed"));
  if (result.empty()) return absl::InvalidArgumentError(absl::StrCat(options.path, " has no line"));
  return result;
}

}  // namespace

absl::StatusOr<std::vector<PromptedTokens>> ReadPrompts(const TokenFileOptions& options) {
  return ReadLines(options, &LineReader::Prompt);
}

absl::StatusOr<std::vector<PromptedTokens>> ReadResponses(const TokenFileOptions& options) {
  auto lines = ReadLines(options, &LineReader::Response);
  if (!lines.ok()) return lines;
  for (const PromptedTokens& line : *lines) {
    if (static_cast<int64_t>(line.tokens.size()) > line.num_prompt) return lines;
  }
  return absl::InvalidArgumentError(absl::StrCat(options.path, " has no response token; nothing can be compared"));
}

absl::StatusOr<std::vector<int64_t>> SampleLengths(const std::string& text, int64_t max_tokens, size_t count) {
  std::vector<int64_t> list;
  if (text.empty()) {
    list.push_back(max_tokens);
  } else if (text == "spread") {
    const auto n = static_cast<int64_t>(count);
    for (int64_t k = 1; k <= n; ++k) list.push_back((max_tokens * k + n - 1) / n);
  } else {
    for (absl::string_view part : absl::StrSplit(text, ',')) {
      int64_t length = 0;
      if (!absl::SimpleAtoi(part, &length) || length < 1 || length > max_tokens) {
        return absl::InvalidArgumentError(absl::StrCat("--lengths: '", part, "' is not 1 to --max_tokens, ", max_tokens,
                                                       "; it takes 'spread' or numbers with commas between"));
      }
      list.push_back(length);
    }
  }
  std::vector<int64_t> lengths(count);
  for (size_t i = 0; i < count; ++i) lengths[i] = list[i % list.size()];
  return lengths;
}

}  // namespace lockstep
