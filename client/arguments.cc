#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/commands.h"

namespace lockstep {

std::string Arguments::Get(const std::string& name, const std::string& otherwise) const {
  for (const auto& [flag, value] : flags) {
    if (flag == name) return value;
  }
  return otherwise;
}

bool Arguments::Has(const std::string& name) const {
  for (const auto& flag : flags) {
    if (flag.first == name) return true;
  }
  return false;
}

absl::StatusOr<Arguments> SplitArguments(const std::vector<std::string>& arguments,
                                         const std::vector<std::string>& known) {
  Arguments result;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.rfind("--", 0) != 0) {
      result.words.push_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    bool found = false;
    for (const std::string& flag : known) {
      const bool takes_value = flag.back() == '=';
      if (name != flag.substr(0, flag.size() - (takes_value ? 1 : 0))) continue;
      const bool next_is_value = takes_value && equals == std::string::npos && i + 1 < arguments.size() &&
                                 arguments[i + 1].rfind("--", 0) != 0;
      if (next_is_value) {
        value = arguments[++i];
      } else if (takes_value != (equals != std::string::npos)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--", name, takes_value ? " needs a value: --" + name + "=..." : " takes no value"));
      }
      found = true;
      break;
    }
    if (!found) return absl::InvalidArgumentError(absl::StrCat("--", name, " is not a flag of this command"));
    result.flags.emplace_back(name, std::move(value));
  }
  return result;
}

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "lockstep: %s\n", std::string(status.message()).c_str());
  return code;
}

int Usage(const std::string& line) {
  std::fprintf(stderr, "lockstep: %s\n", line.c_str());
  return 2;
}

}  // namespace lockstep
