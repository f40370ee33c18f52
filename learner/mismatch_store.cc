#include "learner/mismatch_store.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/base/digest.h"
#include "engine/base/process.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr size_t kDigestBlock = size_t{16} << 20;

absl::StatusOr<uint64_t> FileDigest(const std::string& path, uint64_t seed) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::vector<char> block(kDigestBlock);
  while (file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    seed = Digest(block.data(), static_cast<size_t>(file.gcount()), seed);
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat("reading ", path, " failed"));
  return seed;
}

template <typename T>
void AppendNumbers(const T* values, size_t count, std::string* out) {
  out->append("[");
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out->append(", ");
    char digits[32];
    out->append(digits, std::to_chars(digits, digits + sizeof(digits), values[i]).ptr);
  }
  out->append("]");
}

void AppendLogProbs(const std::vector<float>& log_probs, std::string* out) {
  out->append("\"log_probs\": ");
  AppendNumbers(log_probs.data(), log_probs.size(), out);
  out->append("}\n");
}

std::optional<std::vector<json>> ReadLines(const std::string& path, size_t count) {
  std::ifstream file(path);
  std::vector<json> lines;
  for (std::string text; std::getline(file, text);) {
    lines.push_back(json::parse(text, nullptr, /*allow_exceptions=*/false));
    if (!lines.back().is_object() || lines.size() > count) return std::nullopt;
  }
  if (lines.size() != count) return std::nullopt;
  return lines;
}

bool TakeLogProbs(const json& line, size_t count, std::vector<float>* log_probs) {
  const auto list = line.find("log_probs");
  if (list == line.end() || !list->is_array() || list->size() != count) return false;
  for (const json& value : *list) {
    if (!value.is_number() || !std::isfinite(value.get<float>())) return false;
    log_probs->push_back(value.get<float>());
  }
  return true;
}

bool TakeIds(const json& line, const char* key, int64_t vocab_size, std::vector<int32_t>* ids) {
  const auto list = line.find(key);
  if (list == line.end() || !list->is_array()) return false;
  for (const json& id : *list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) return false;
    ids->push_back(id.get<int32_t>());
  }
  return true;
}

}  // namespace

absl::StatusOr<std::string> ModelDigest(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const std::string extension = entry.path().extension();
    if (extension == ".json" || extension == ".safetensors" || extension == ".jinja") {
      names.push_back(entry.path().filename());
    }
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot read the folder ", dir));
  std::sort(names.begin(), names.end());
  uint64_t digest = 0;
  for (const std::string& name : names) {
    const auto next = FileDigest(dir + "/" + name, Digest(name.data(), name.size(), digest));
    if (!next.ok()) return next.status();
    digest = *next;
  }
  return DigestHex(digest);
}

std::string TokensDigest(const std::vector<PromptedTokens>& sequences) {
  uint64_t digest = sequences.size();
  for (const PromptedTokens& sequence : sequences) {
    digest = Digest(&sequence.num_prompt, sizeof(sequence.num_prompt), digest);
    digest = Digest(sequence.tokens.data(), sequence.tokens.size() * sizeof(int32_t), digest);
  }
  return DigestHex(digest);
}

std::string MismatchStore::Path(const std::string& name, const std::string& key) const {
  return absl::StrCat(folder_, "/", name, "-", DigestHex(Digest(key.data(), key.size())), ".jsonl");
}

absl::Status MismatchStore::SaveSamples(const std::string& path, const std::vector<PromptedTokens>& sequences,
                                        const LogProbLists& log_probs) const {
  std::string text;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const PromptedTokens& sequence = sequences[i];
    const auto num_prompt = static_cast<size_t>(sequence.num_prompt);
    text.append("{\"prompt_tokens\": ");
    AppendNumbers(sequence.tokens.data(), num_prompt, &text);
    text.append(", \"tokens\": ");
    AppendNumbers(sequence.tokens.data() + num_prompt, sequence.tokens.size() - num_prompt, &text);
    text.append(", ");
    AppendLogProbs(log_probs[i], &text);
  }
  return WriteFileAtomically(path, text);
}

std::optional<std::vector<PromptedTokens>> MismatchStore::LoadSamples(const std::string& path,
                                                                      const std::vector<PromptedTokens>& prompts,
                                                                      const std::vector<int64_t>& max_tokens,
                                                                      int64_t vocab_size,
                                                                      LogProbLists* log_probs) const {
  const auto lines = ReadLines(path, prompts.size());
  if (!lines.has_value()) return std::nullopt;
  std::vector<PromptedTokens> sequences;
  log_probs->assign(prompts.size(), {});
  for (size_t i = 0; i < prompts.size(); ++i) {
    PromptedTokens sequence = {.tokens = {}, .num_prompt = prompts[i].num_prompt};
    if (!TakeIds((*lines)[i], "prompt_tokens", vocab_size, &sequence.tokens) || sequence.tokens != prompts[i].tokens ||
        !TakeIds((*lines)[i], "tokens", vocab_size, &sequence.tokens)) {
      return std::nullopt;
    }
    const size_t response = sequence.tokens.size() - prompts[i].tokens.size();
    if (static_cast<int64_t>(response) > max_tokens[i] || !TakeLogProbs((*lines)[i], response, &(*log_probs)[i])) {
      return std::nullopt;
    }
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

absl::Status MismatchStore::SaveLogProbs(const std::string& path, const LogProbLists& log_probs) const {
  std::string text;
  for (const std::vector<float>& list : log_probs) {
    text.append("{");
    AppendLogProbs(list, &text);
  }
  return WriteFileAtomically(path, text);
}

std::optional<LogProbLists> MismatchStore::LoadLogProbs(const std::string& path,
                                                        const std::vector<PromptedTokens>& sequences) const {
  const auto lines = ReadLines(path, sequences.size());
  if (!lines.has_value()) return std::nullopt;
  LogProbLists log_probs(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    const size_t response = sequences[i].tokens.size() - static_cast<size_t>(sequences[i].num_prompt);
    if (!TakeLogProbs((*lines)[i], response, &log_probs[i])) return std::nullopt;
  }
  return log_probs;
}

}  // namespace lockstep
