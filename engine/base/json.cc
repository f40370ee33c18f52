#include "engine/base/json.h"

#include <cmath>
#include <exception>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

using nlohmann::json;

// Depth is known before the parser allocates anything for it.
bool DeeperThan(std::string_view text, int limit) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > limit) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// The keys of each open object; the first that occurs twice.
class DuplicateKeys {
 public:
  bool operator()(int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_.emplace_back();
    if (event == json::parse_event_t::object_end) open_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_.back().insert(key).second && !found_) {
        found_ = true;
        key_ = key;
      }
    }
    return !found_;  // once one is found, nothing more is stored
  }
  bool found() const { return found_; }
  const std::string& key() const { return key_; }

 private:
  std::vector<std::set<std::string>> open_;
  bool found_ = false;
  std::string key_;
};

absl::Status WrongType(const std::string& path, const char* key, const json& value, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", key, " is ", PrintableJson(value), ", must be ", wanted));
}

const json* Find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

}  // namespace

std::string Printable(std::string_view text) {
  constexpr size_t kLimit = 80;
  std::string out;
  for (const char c : text) {
    if (out.size() >= kLimit) return out + "...";
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::string PrintableJson(const json& value) {
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  if (value.is_object()) return absl::StrCat("an object of ", value.size(), " keys");
  return Printable(value.dump(-1, ' ', true, json::error_handler_t::replace));
}

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& path) {
  if (DeeperThan(text, kMaxJsonDepth)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": JSON nested deeper than ", kMaxJsonDepth));
  }
  DuplicateKeys duplicates;
  json value;
  try {
    value = json::parse(text.begin(), text.end(), std::ref(duplicates));
  } catch (const std::exception& error) {
    std::string_view what = error.what();
    const size_t message = what.find("] ");  // after "[json.exception.parse_error.101] "
    if (message != std::string_view::npos) what.remove_prefix(message + 2);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not valid JSON: ", Printable(what)));
  }
  if (duplicates.found()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": key \"", Printable(duplicates.key()), "\" occurs twice"));
  }
  return value;
}

absl::StatusOr<int64_t> JsonInt(const json& object, const char* key, int64_t fallback, int64_t low, int64_t high,
                                const std::string& path) {
  const json* value = Find(object, key);
  if (value == nullptr) return fallback;
  const bool too_large = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (!value->is_number_integer() || too_large || value->get<int64_t>() < low || value->get<int64_t>() > high) {
    return WrongType(path, key, *value, absl::StrCat("an integer of ", low, " to ", high).c_str());
  }
  return value->get<int64_t>();
}

absl::StatusOr<bool> JsonBool(const json& object, const char* key, bool fallback, const std::string& path) {
  const json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(path, key, *value, "true or false");
  return value->get<bool>();
}

absl::StatusOr<double> JsonNumber(const json& object, const char* key, double fallback, const std::string& path) {
  const json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_number() || !std::isfinite(value->get<double>())) return WrongType(path, key, *value, "a number");
  return value->get<double>();
}

absl::StatusOr<std::string> JsonString(const json& object, const char* key, const std::string& fallback,
                                       const std::string& path) {
  const json* value = Find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) return WrongType(path, key, *value, "a string");
  return value->get<std::string>();
}

}  // namespace lockstep
