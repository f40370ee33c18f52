// The run file: YAML text onto the RunConfig message. The message is the only schema; keys, types and nearest matches
// come from its descriptor. Every error is one line: where (file and line, or the command line), key path, what, what
// to do.
#ifndef LOCKSTEP_CLIENT_CONFIG_H_
#define LOCKSTEP_CLIENT_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// Every key at its default.
v1::RunConfig DefaultRunConfig();

// Defaults, then the YAML text, then `overrides` ("rollout.n=16"), then Validate. `name` stands for the file in errors.
absl::StatusOr<v1::RunConfig> ParseRunConfig(const std::string& yaml, const std::string& name,
                                             const std::vector<std::string>& overrides);
absl::StatusOr<v1::RunConfig> LoadRunConfig(const std::string& path, const std::vector<std::string>& overrides);

// Ranges and combinations; does not touch the file system.
absl::Status ValidateRunConfig(const v1::RunConfig& config);
// What the config names must exist: model folder with config.json, data files.
absl::Status CheckRunFiles(const v1::RunConfig& config, bool needs_tokenizer);

// The parts of it: the model folder, and one data file under its key.
absl::Status CheckModelFolder(const v1::RunConfig& config, bool needs_tokenizer);
absl::Status CheckDataFile(const std::string& key, const std::string& path);

// The resolved config as YAML with every key.
std::string RunConfigToYaml(const v1::RunConfig& config);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_CONFIG_H_
