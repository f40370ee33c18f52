#include "engine/base/json.h"

#include <cmath>
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

// Builds the value and stops at a key that occurs twice. (The library's own parser with a callback is quadratic in the
// number of members of an object, and without one it silently keeps one of the two.)
class Builder : public nlohmann::json_sax<json> {
 public:
  explicit Builder(json* root) : root_(root) {}

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return Add(value) != nullptr; }
  bool string(string_t& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }  // not in JSON text
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& value) override {
    const auto [it, inserted] = open_.back()->get_ref<json::object_t&>().try_emplace(value, nullptr);
    member_ = &it->second;
    if (!inserted) error_ = absl::StrCat("key \"", Printable(value), "\" occurs twice");
    return inserted;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& exception) override {
    std::string_view what = exception.what();
    const size_t message = what.find("] ");  // after "[json.exception.parse_error.101] "
    if (message != std::string_view::npos) what.remove_prefix(message + 2);
    error_ = absl::StrCat("not valid JSON: ", Printable(what));
    return false;
  }
  const std::string& error() const { return error_; }

 private:
  template <typename T>
  json* Add(T&& value) {
    json* place = root_;
    if (!open_.empty() && open_.back()->is_array()) {
      open_.back()->push_back(nullptr);
      place = &open_.back()->back();
    } else if (!open_.empty()) {
      place = member_;
    }
    *place = std::forward<T>(value);
    return place;
  }
  bool Open(json container) {
    open_.push_back(Add(std::move(container)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  json* root_;
  std::vector<json*> open_;  // an element of an array that grows is moved only when no child of it is open
  json* member_ = nullptr;
  std::string error_;
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
  json value;
  Builder builder(&value);
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", builder.error()));
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
