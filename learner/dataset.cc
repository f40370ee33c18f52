#include "learner/dataset.h"

#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/json.h"
#include "engine/base/philox.h"
#include "learner/prompt_templates.h"

namespace lockstep {
namespace {

constexpr size_t kMaxLineBytes = size_t{4} << 20;
constexpr size_t kMaxProblems = 10'000'000;

using Json = nlohmann::json;

// The first of `keys` that the object has and that is not null.
struct Found {
  std::string key;
  const Json* value = nullptr;
};
std::optional<Found> FindField(const Json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto it = object.find(key);
    if (it != object.end() && !it->is_null()) return Found{key, &*it};
  }
  return std::nullopt;
}

// Text or a number, as text.
absl::StatusOr<std::string> AsText(const Found& field) {
  if (field.value->is_string()) return field.value->get<std::string>();
  if (field.value->is_number()) return field.value->dump();
  if (field.value->is_array() && !field.value->empty() && field.value->front().is_object() &&
      field.value->front().contains("content")) {
    return absl::InvalidArgumentError(absl::StrCat(field.key,
                                                   " is a list of chat messages, which is not rendered here; put the "
                                                   "text of the whole prompt there"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field.key, " is ", PrintableJson(*field.value), ", must be text or a number"));
}

// The final answer of what a data set calls one: GSM8K's ends in "#### 42", others are the answer, or a solution whose
// \boxed{...} the verifier finds.
absl::StatusOr<std::string> FinalAnswer(const std::string& text) {
  const size_t mark = text.rfind("####");
  if (mark == std::string::npos) return text;
  std::string answer = text.substr(mark + 4);
  absl::StripAsciiWhitespace(&answer);
  if (answer.empty()) return absl::InvalidArgumentError("the answer ends in ####, and nothing follows");
  return answer;
}

// answer, label, solution, ground_truth, or verl's reward_model.ground_truth; nothing where none is there.
absl::StatusOr<std::optional<std::string>> ReadAnswer(const Json& object) {
  auto field = FindField(object, {"answer", "label", "solution", "ground_truth"});
  if (!field) {
    const auto model = object.find("reward_model");
    if (model != object.end() && model->is_object()) field = FindField(*model, {"ground_truth"});
  }
  if (!field) return std::optional<std::string>();
  const auto text = AsText(*field);
  if (!text.ok()) return text.status();
  const auto answer = FinalAnswer(*text);
  if (!answer.ok()) return answer.status();
  return std::optional<std::string>(*answer);
}

absl::Status LineError(const std::string& path, size_t line, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", std::string(what)));
}

absl::Status EncodeProblem(const DatasetOptions& options, const PromptTemplate& prompt_template,
                           const Tokenizer& tokenizer, const std::string& prompt,
                           const std::optional<std::string>& response, Problem* problem) {
  auto tokens = prompt_template.Tokens(tokenizer, prompt);
  if (!tokens.ok()) return tokens.status();
  problem->prompt_tokens = *std::move(tokens);
  if (problem->prompt_tokens.empty()) return absl::InvalidArgumentError("the prompt is empty");
  const int64_t prompt_tokens = static_cast<int64_t>(problem->prompt_tokens.size());
  if (options.max_prompt_tokens > 0 && prompt_tokens > options.max_prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt_tokens,
                                                   " tokens, data.max_prompt_tokens is ", options.max_prompt_tokens,
                                                   "; shorten it or raise the limit"));
  }
  if (!options.needs_response) return absl::OkStatus();
  tokens = tokenizer.Encode(*response);
  if (!tokens.ok()) return tokens.status();
  problem->response_tokens = *std::move(tokens);
  if (options.eos_token_id >= 0) problem->response_tokens.push_back(options.eos_token_id);
  if (problem->response_tokens.empty()) return absl::InvalidArgumentError("the response is empty");
  const int64_t total = prompt_tokens + static_cast<int64_t>(problem->response_tokens.size());
  if (options.max_sequence_tokens > 0 && total > options.max_sequence_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and response have ", total, " tokens, the model's limit is ",
                                                   options.max_sequence_tokens));
  }
  return absl::OkStatus();
}

absl::Status ParseLine(const DatasetOptions& options, const PromptTemplate& prompt_template, const Tokenizer& tokenizer,
                       const std::string& line, Problem* problem) {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  const auto prompt_field = FindField(object, {"prompt", "problem", "question", "input"});
  if (!prompt_field) return absl::InvalidArgumentError("no text under prompt, problem, question or input");
  const auto prompt = AsText(*prompt_field);
  if (!prompt.ok()) return prompt.status();
  std::optional<std::string> response;
  if (options.needs_response) {
    const auto field = FindField(object, {"response", "completion"});
    if (!field) return absl::InvalidArgumentError("no text under response or completion");
    auto text = AsText(*field);
    if (!text.ok()) return text.status();
    response = *std::move(text);
  }
  if (options.needs_answer) {
    auto answer = ReadAnswer(object);
    if (!answer.ok()) return answer.status();
    if (!answer->has_value()) {
      return absl::InvalidArgumentError(
          "no text or number under answer, label, solution, ground_truth or reward_model.ground_truth");
    }
    problem->answer = **answer;
  }
  problem->line = line;
  return EncodeProblem(options, prompt_template, tokenizer, *prompt, response, problem);
}

}  // namespace

absl::StatusOr<std::vector<Problem>> LoadDataset(const DatasetOptions& options, const Tokenizer& tokenizer) {
  const auto prompt_template = PromptTemplate::Make(options.prompt_template, options.model_dir);
  if (!prompt_template.ok()) return prompt_template.status();
  std::ifstream file(options.path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read the data set ", options.path));
  std::vector<Problem> problems;
  std::string line;
  for (size_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line.size() > kMaxLineBytes) {
      return LineError(options.path, number,
                       absl::StrCat("the line has ", line.size(), " bytes, limit ", kMaxLineBytes));
    }
    if (problems.size() == kMaxProblems) {
      return LineError(options.path, number, absl::StrCat("more than ", kMaxProblems, " problems"));
    }
    Problem problem;
    if (absl::Status status = ParseLine(options, *prompt_template, tokenizer, line, &problem); !status.ok()) {
      return LineError(options.path, number, std::string(status.message()));
    }
    problems.push_back(std::move(problem));
    if (problems.size() == options.max_problems) break;
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat("reading ", options.path, " failed"));
  if (problems.empty()) return absl::InvalidArgumentError(absl::StrCat(options.path, ": no problems in it"));
  return problems;
}

DataOrder::DataOrder(uint64_t size, uint64_t seed, bool shuffle) : size_(size), seed_(seed), shuffle_(shuffle) {
  LOCKSTEP_CHECK(size > 0, "an empty data set has no order");
}

uint64_t DataOrder::IndexAt(uint64_t position) {
  const uint64_t pass = position / size_;
  const uint64_t offset = position % size_;
  if (!shuffle_) return offset;
  if (pass != pass_) {
    order_.resize(size_);
    for (uint64_t i = 0; i < size_; ++i) order_[i] = i;
    // Fisher-Yates from the end; draw i of pass p is Philox(seed, i, p), 64 bits scaled down by a multiply.
    for (uint64_t i = size_ - 1; i > 0; --i) {
      const auto bits = Philox4x32(seed_, i, pass);
      const uint64_t draw = (uint64_t{bits[1]} << 32) | bits[0];
      const uint64_t j = static_cast<uint64_t>((static_cast<unsigned __int128>(draw) * (i + 1)) >> 64);
      std::swap(order_[i], order_[j]);
    }
    pass_ = pass;
  }
  return order_[offset];
}

}  // namespace lockstep
