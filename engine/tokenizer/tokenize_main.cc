// lockstep_tokenize: what `lockstep tokenize` runs. Texts on stdin, one a line; a JSON list of token ids a line on
// stdout, as transformers' tokenizer(text)["input_ids"] is. Each line is answered before the next one is read.
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace lockstep {
namespace {

constexpr size_t kMaxLineBytes = size_t{64} << 20;

struct Options {
  std::string model;
  bool add_special_tokens = true;
  bool decode = false;
  bool skip_special_tokens = false;
  bool json = false;
  bool chat = false;
};

absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  for (const std::string& argument : arguments) {
    if (argument.rfind("--model=", 0) == 0) {
      options.model = argument.substr(8);
    } else if (argument == "--add-special-tokens" || argument == "--no-add-special-tokens") {
      options.add_special_tokens = argument == "--add-special-tokens";
    } else if (argument == "--decode") {
      options.decode = true;
    } else if (argument == "--skip-special-tokens") {
      options.skip_special_tokens = true;
    } else if (argument == "--json") {
      options.json = true;
    } else if (argument == "--chat") {
      options.chat = true;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("'", Printable(argument), "' is not a flag of lockstep_tokenize"));
    }
  }
  if (options.model.empty()) return absl::InvalidArgumentError("tokenize needs --model=DIR, a Hugging Face folder");
  if (options.decode && (options.json || options.chat)) {
    return absl::InvalidArgumentError("--decode reads JSON lists of ids; --json and --chat are for texts");
  }
  if (options.skip_special_tokens && !options.decode) {
    return absl::InvalidArgumentError("--skip-special-tokens is for --decode; --no-add-special-tokens for encoding");
  }
  return options;
}

absl::StatusOr<std::string> DecodeLine(const Options& options, const Tokenizer& tokenizer, const std::string& line) {
  const auto list = ParseJson(line, "ids");
  if (!list.ok()) return list.status();
  if (!list->is_array()) return absl::InvalidArgumentError("must be a JSON list of token ids");
  std::vector<int32_t> ids;
  for (const nlohmann::json& id : *list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(tokenizer.vocab_size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("id ", PrintableJson(id), " must be an integer below ", tokenizer.vocab_size()));
    }
    ids.push_back(id.get<int32_t>());
  }
  return nlohmann::json(ToValidUtf8(tokenizer.Decode(ids, options.skip_special_tokens))).dump();
}

absl::StatusOr<std::string> EncodeLine(const Options& options, const Tokenizer& tokenizer, const ChatTemplate* chat,
                                       std::string text) {
  if (options.json) {
    const auto value = ParseJson(text, "text");
    if (!value.ok()) return value.status();
    if (!value->is_string()) return absl::InvalidArgumentError("must be a JSON string");
    text = value->get<std::string>();
  }
  if (chat != nullptr) {
    auto rendered = chat->RenderUser(text);
    if (!rendered.ok()) return rendered.status();
    text = *std::move(rendered);
  }
  // A chat template writes its own special tokens.
  const auto ids = tokenizer.Encode(text, options.add_special_tokens && chat == nullptr);
  if (!ids.ok()) return ids.status();
  return nlohmann::json(*ids).dump();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Options> options = ParseOptions(arguments);
  if (!options.ok()) return options.status();
  const auto tokenizer = Tokenizer::Load(options->model);
  if (!tokenizer.ok()) return tokenizer.status();
  std::unique_ptr<ChatTemplate> chat;
  if (options->chat) {
    auto loaded = ChatTemplate::Load(options->model);
    if (!loaded.ok()) return loaded.status();
    chat = *std::move(loaded);
  }
  std::ios::sync_with_stdio(false);
  std::string line;
  for (size_t number = 1; std::getline(std::cin, line); ++number) {
    absl::StatusOr<std::string> out =
        absl::ResourceExhaustedError(absl::StrCat("has ", line.size(), " bytes, the limit is ", kMaxLineBytes));
    if (line.size() <= kMaxLineBytes) {
      out = options->decode ? DecodeLine(*options, **tokenizer, line)
                            : EncodeLine(*options, **tokenizer, chat.get(), line);
    }
    if (!out.ok()) {
      std::cout.flush();
      return absl::Status(out.status().code(),
                          absl::StrCat("stdin line ", number, ": ", std::string(out.status().message())));
    }
    std::cout << *out << '\n';
    if (std::cin.rdbuf()->in_avail() <= 0) std::cout.flush();
    if (!std::cout) return absl::UnavailableError("cannot write to stdout");
  }
  std::cout.flush();
  return std::cout ? absl::OkStatus() : absl::UnavailableError("cannot write to stdout");
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  const absl::Status status = lockstep::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (status.ok()) return 0;
  std::fprintf(stderr, "lockstep: %s\n", std::string(status.message()).c_str());
  return 1;
}
