#include "engine/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"

namespace lockstep {
namespace {

using nlohmann::json;

// Of GPT-2's encoder.py; ByteLevel with use_regex applies it.
constexpr char kGpt2Regex[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr size_t kMaxRegexBytes = 16384;
// Backtracking steps of one match, so that a hostile expression ends; real ones need a few a character.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 65536;

// PCRE2's \s holds U+180E, which Unicode's White_Space, the \s of `tokenizers`, does not: \s and \S are written out.
// Inside of a character class only \s can be.
std::string WithUnicodeSpace(const std::string& regex) {
  constexpr char kSpace[] = R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  std::string out;
  bool in_class = false;
  size_t first = 0;  // of what is in the class
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] == '\\' && i + 1 < regex.size()) {
      const char escaped = regex[++i];
      if (escaped == 's') {
        out += in_class ? kSpace : absl::StrCat("[", kSpace, "]");
      } else if (escaped == 'S' && !in_class) {
        out += absl::StrCat("[^", kSpace, "]");
      } else {
        out += {'\\', escaped};
      }
      continue;
    }
    if (in_class && regex.compare(i, 2, "[:") == 0) {  // [:alpha:] in a class
      const size_t end = regex.find(":]", i + 2);
      if (end != std::string::npos) {
        out += regex.substr(i, end + 1 - i);
        i = end;
      }
    } else if (in_class && regex[i] == ']' && i != first) {
      in_class = false;
    } else if (!in_class && regex[i] == '[') {
      in_class = true;
      first = i + (regex.compare(i + 1, 1, "^") == 0 ? 2 : 1);  // a ] here stands for itself
    }
    out += regex[i];
  }
  return out;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

struct PreTokenizer::Step {
  bool prefix_space = false;
  bool removed = false;                        // matches are dropped, else they are pieces of their own
  std::unique_ptr<pcre2_code, FreeCode> code;  // null: no cut

  absl::Status Compile(const std::string& regex, bool literal, const std::string& path) {
    if (regex.empty() || regex.size() > kMaxRegexBytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer pattern of ", regex.size(),
                                                     " bytes, the limit is 1 to ", kMaxRegexBytes));
    }
    int error = 0;
    PCRE2_SIZE offset = 0;
    const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP);
    const std::string written = literal ? regex : WithUnicodeSpace(regex);
    code.reset(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(written.data()), written.size(), options, &error, &offset, nullptr));
    if (code == nullptr) {
      PCRE2_UCHAR message[128];
      pcre2_get_error_message(error, message, sizeof(message));
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": pre_tokenizer pattern at ", offset, ": ", reinterpret_cast<const char*>(message)));
    }
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without JIT the interpreter matches the same
    return absl::OkStatus();
  }

  absl::Status Cut(const std::string& piece, std::vector<std::string>* out) const;
};

absl::Status PreTokenizer::Step::Cut(const std::string& piece, std::vector<std::string>* out) const {
  const std::string text = prefix_space && !piece.empty() && piece[0] != ' ' ? " " + piece : piece;
  if (code == nullptr) {
    if (!text.empty()) out->push_back(text);
    return absl::OkStatus();
  }
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(code.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  size_t begin = 0;  // of what no match has covered yet
  for (size_t from = 0; from < text.size();) {
    const int found = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), context.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("tokenizer: the pre_tokenizer's pattern exceeds its budget on a text of ", text.size(),
                       " bytes (PCRE2 error ", found, ")"));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    if (range[1] <= from || range[0] < begin) break;  // \K or look-behind tricks: no progress
    if (range[0] > begin) out->push_back(text.substr(begin, range[0] - begin));
    if (!removed) out->push_back(text.substr(range[0], range[1] - range[0]));
    begin = from = range[1];
  }
  if (begin < text.size()) out->push_back(text.substr(begin));
  return absl::OkStatus();
}

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

absl::Status PreTokenizer::Append(const json& value, const std::string& path) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": pre_tokenizer is ", PrintableJson(value), ", must be an object"));
  }
  absl::StatusOr<std::string> type = JsonString(value, "type", "", path);
  if (!type.ok()) return type.status();
  if (*type == "Sequence") {
    const auto list = value.find("pretokenizers");
    if (list == value.end() || !list->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer Sequence needs an array pretokenizers"));
    }
    for (const json& item : *list) {
      if (absl::Status status = Append(item, path); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  if (byte_level_) return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer step after ByteLevel"));
  if (steps_.size() >= 32)
    return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer has more than 32 steps"));
  auto step = std::make_unique<Step>();
  if (*type == "ByteLevel") {
    const absl::StatusOr<bool> prefix = JsonBool(value, "add_prefix_space", true, path);
    const absl::StatusOr<bool> use_regex = JsonBool(value, "use_regex", true, path);
    if (!prefix.ok()) return prefix.status();
    if (!use_regex.ok()) return use_regex.status();
    byte_level_ = true;
    step->prefix_space = *prefix;
    if (*use_regex) {
      if (absl::Status status = step->Compile(kGpt2Regex, false, path); !status.ok()) return status;
    }
  } else if (*type == "Digits") {
    const absl::StatusOr<bool> individual = JsonBool(value, "individual_digits", false, path);
    if (!individual.ok()) return individual.status();
    if (absl::Status status = step->Compile(*individual ? R"(\p{N})" : R"(\p{N}+)", false, path); !status.ok()) {
      return status;
    }
  } else if (*type == "Split") {
    const auto pattern = value.find("pattern");
    if (pattern == value.end() || !pattern->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer Split needs an object pattern"));
    }
    const bool literal = pattern->contains("String");
    const absl::StatusOr<std::string> regex = JsonString(*pattern, literal ? "String" : "Regex", "", path);
    const absl::StatusOr<std::string> behavior = JsonString(value, "behavior", "Isolated", path);
    const absl::StatusOr<bool> invert = JsonBool(value, "invert", false, path);
    for (const absl::Status& status : {regex.status(), behavior.status(), invert.status()}) {
      if (!status.ok()) return status;
    }
    if ((*behavior != "Isolated" && *behavior != "Removed") || *invert) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer Split with behavior ", Printable(*behavior),
                                                     ", invert ", *invert,
                                                     "; Isolated or Removed without invert work"));
    }
    step->removed = *behavior == "Removed";
    if (absl::Status status = step->Compile(*regex, literal, path); !status.ok()) return status;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(path, ": pre_tokenizer type \"", Printable(*type),
                                                   "\"; ByteLevel, Split, Digits and Sequence work"));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::FromJson(const json& value, const std::string& path) {
  std::unique_ptr<PreTokenizer> pre_tokenizer(new PreTokenizer());
  if (absl::Status status = pre_tokenizer->Append(value, path); !status.ok()) return status;
  if (!pre_tokenizer->byte_level_) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": pre_tokenizer has no ByteLevel step; only byte-level BPE works"));
  }
  return pre_tokenizer;
}

absl::StatusOr<std::vector<std::string>> PreTokenizer::Cut(std::string_view text) const {
  std::vector<std::string> pieces;
  if (!text.empty()) pieces.emplace_back(text);
  for (const auto& step : steps_) {
    std::vector<std::string> next;
    for (const std::string& piece : pieces) {
      if (absl::Status status = step->Cut(piece, &next); !status.ok()) return status;
    }
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace lockstep
