#include "client/claims.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

constexpr std::pair<const char*, std::string Claim::*> kKeys[] = {
    {"id", &Claim::id},     {"claim", &Claim::claim},     {"paper_figure", &Claim::paper_figure},
    {"ours", &Claim::ours}, {"verdict", &Claim::verdict}, {"command", &Claim::command},
};

absl::StatusOr<Claim> ParseClaim(const Json& entry, const std::string& where) {
  if (!entry.is_object()) return absl::InvalidArgumentError(absl::StrCat(where, " is not an object"));
  Claim claim;
  for (const auto& [key, value] : entry.items()) {
    std::string Claim::*field = nullptr;
    for (const auto& [name, its_field] : kKeys) {
      if (key == name) field = its_field;
    }
    if (field == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": unknown key '", key, "'; known are id, claim, paper_figure, ours, verdict, command"));
    }
    if (!value.is_string() && !value.is_number()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": ", key, " is neither text nor a number"));
    }
    claim.*field = value.is_string() ? value.get<std::string>() : value.dump();
  }
  if (claim.id.empty() || claim.claim.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " needs id and claim"));
  }
  return claim;
}

}  // namespace

absl::StatusOr<Claims> ParseClaims(const std::string& json, const std::string& name) {
  const Json document = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  Claims claims;
  const Json* list = &document;
  if (document.is_object()) {
    for (const auto& [key, value] : document.items()) {
      if (key == "title" && value.is_string()) {
        claims.title = value.get<std::string>();
      } else if (key != "claims") {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": unknown key or no text: '", key, "'; known are title and claims"));
      }
    }
    const auto found = document.find("claims");
    if (found != document.end()) list = &*found;
  }
  if (!list->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is not a JSON list of claims (docs/report.md has the form)"));
  }
  for (size_t i = 0; i < list->size(); ++i) {
    auto claim = ParseClaim((*list)[i], absl::StrCat(name, ": claim ", i + 1));
    if (!claim.ok()) return claim.status();
    claims.claims.push_back(*std::move(claim));
  }
  return claims;
}

absl::StatusOr<Claims> ReadClaims(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) return absl::NotFoundError(absl::StrCat(path, " cannot be read"));
  return ParseClaims(text.str(), path);
}

}  // namespace lockstep
