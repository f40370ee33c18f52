// JSON files that are hostile until checked: bounded depth, no duplicate keys, one-line errors. For use inside .cc
// files that read model files; nlohmann's exceptions end here.
#ifndef LOCKSTEP_ENGINE_BASE_JSON_H_
#define LOCKSTEP_ENGINE_BASE_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

constexpr int kMaxJsonDepth = 32;

// `path` is for messages: "PATH: not valid JSON: ...", "PATH: key "x" occurs twice", "PATH: nested deeper than 32".
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& path);

// A short printable form of anything, for an error line: control bytes and non-ASCII escaped, at most 80 characters.
std::string Printable(std::string_view text);
// The same of a JSON value.
std::string PrintableJson(const nlohmann::json& value);

// object[key] as an integer of [low, high]; `fallback` when the key is absent or null. Fails on any other type.
absl::StatusOr<int64_t> JsonInt(const nlohmann::json& object, const char* key, int64_t fallback, int64_t low,
                                int64_t high, const std::string& path);
absl::StatusOr<bool> JsonBool(const nlohmann::json& object, const char* key, bool fallback, const std::string& path);
absl::StatusOr<double> JsonNumber(const nlohmann::json& object, const char* key, double fallback,
                                  const std::string& path);
absl::StatusOr<std::string> JsonString(const nlohmann::json& object, const char* key, const std::string& fallback,
                                       const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_JSON_H_
