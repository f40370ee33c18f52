#include "engine/tokenizer/post_processor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr size_t kMaxFrameTokens = 64;

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": post_processor ", message));
}

// The ids of special_tokens[name].
absl::Status AppendSpecial(const json& processor, const json& part, size_t vocab_size, const std::string& path,
                           std::vector<int32_t>* ids) {
  const json name = part.is_object() ? part.value("id", json()) : json();
  const json tokens = processor.value("special_tokens", json());
  if (!name.is_string() || !tokens.is_object() || !tokens.contains(name.get<std::string>())) {
    return Bad(path, absl::StrCat("uses the special token ", PrintableJson(name), ", which special_tokens lacks"));
  }
  const json& token = tokens[name.get<std::string>()];
  const json list = token.is_object() ? token.value("ids", json()) : json();
  if (!list.is_array()) return Bad(path, absl::StrCat("has no ids for ", PrintableJson(name)));
  for (const json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= vocab_size) {
      return Bad(path, absl::StrCat("gives ", PrintableJson(name), " the id ", PrintableJson(id),
                                    ", must be an integer below ", vocab_size));
    }
    if (ids->size() >= kMaxFrameTokens) return Bad(path, absl::StrCat("adds more than ", kMaxFrameTokens, " tokens"));
    ids->push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<SpecialFrame> ReadTemplate(const json& processor, size_t vocab_size, const std::string& path) {
  const auto single = processor.find("single");
  if (single == processor.end() || !single->is_array()) return Bad(path, "TemplateProcessing needs an array single");
  SpecialFrame frame;
  int texts = 0;
  for (const json& item : *single) {
    if (!item.is_object() || item.size() != 1) return Bad(path, "has a part of single that is not understood");
    if (item.contains("Sequence")) {
      ++texts;
      continue;
    }
    if (!item.contains("SpecialToken")) return Bad(path, "has a part of single that is not understood");
    const absl::Status status =
        AppendSpecial(processor, item["SpecialToken"], vocab_size, path, texts > 0 ? &frame.after : &frame.before);
    if (!status.ok()) return status;
  }
  if (texts != 1) return Bad(path, absl::StrCat("has the text ", texts, " times in single, must be once"));
  return frame;
}

}  // namespace

absl::StatusOr<SpecialFrame> ReadPostProcessor(const json& value, size_t vocab_size, const std::string& path) {
  if (value.is_null()) return SpecialFrame();
  if (!value.is_object()) return Bad(path, absl::StrCat("is ", PrintableJson(value), ", must be an object"));
  const auto type = JsonString(value, "type", "", path);
  if (!type.ok()) return type.status();
  if (*type == "ByteLevel") return SpecialFrame();
  if (*type == "TemplateProcessing") return ReadTemplate(value, vocab_size, path);
  const auto list = value.find("processors");
  if (*type != "Sequence" || list == value.end() || !list->is_array()) {
    return Bad(path, absl::StrCat("type \"", Printable(*type),
                                  "\"; ByteLevel, TemplateProcessing, a Sequence of them, and null work"));
  }
  SpecialFrame frame;
  for (const json& item : *list) {
    auto next = ReadPostProcessor(item, vocab_size, path);
    if (!next.ok()) return next;
    frame.before.insert(frame.before.begin(), next->before.begin(), next->before.end());
    frame.after.insert(frame.after.end(), next->after.begin(), next->after.end());
    if (frame.before.size() + frame.after.size() > kMaxFrameTokens) {
      return Bad(path, absl::StrCat("adds more than ", kMaxFrameTokens, " tokens"));
    }
  }
  return frame;
}

}  // namespace lockstep
