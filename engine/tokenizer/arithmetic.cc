#include "engine/tokenizer/arithmetic.h"

#include <nlohmann/json.hpp>
#include <string>

#include "engine/base/process.h"
#include "engine/tokenizer/byte_chars.h"

namespace lockstep {
namespace {

using nlohmann::json;

json AddedTokenJson(int id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

json ByteLevelJson() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
}

}  // namespace

absl::Status MakeArithmeticTokenizer(const std::string& dir) {
  json vocab = json::object();
  int next_id = 0;
  for (const char* c = kArithmeticCharacters; *c != '\0'; ++c) vocab[TokenOfBytes(std::string(1, *c))] = next_id++;
  json tokenizer = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  tokenizer["added_tokens"] = {AddedTokenJson(next_id, "<|endoftext|>"), AddedTokenJson(next_id + 1, "<|pad|>")};
  tokenizer["normalizer"] = nullptr;
  tokenizer["pre_tokenizer"] = ByteLevelJson();
  tokenizer["post_processor"] = nullptr;
  tokenizer["decoder"] = ByteLevelJson();
  tokenizer["model"] = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", false},
                        {"vocab", vocab},
                        {"merges", json::array()}};
  const json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                       {"eos_token", "<|endoftext|>"},
                       {"pad_token", "<|pad|>"},
                       {"model_max_length", 4096},
                       {"clean_up_tokenization_spaces", false}};
  const absl::Status status = WriteFileAtomically(dir + "/tokenizer.json", tokenizer.dump(1) + "\n");
  if (!status.ok()) return status;
  return WriteFileAtomically(dir + "/tokenizer_config.json", config.dump(1) + "\n");
}

}  // namespace lockstep
