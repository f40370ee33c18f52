#include "engine/tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/byte_chars.h"
#include "engine/tokenizer/post_processor.h"
#include "engine/tokenizer/pre_tokenizer.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
constexpr size_t kMaxTokenBytes = 4096;
constexpr size_t kMaxTokens = 4'000'000;
constexpr int64_t kMaxId = 16'000'000;

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", message));
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// NFC; `text` is valid UTF-8.
std::string Nfc(std::string_view text) {
  if (IsAscii(text)) return std::string(text);
  utf8proc_uint8_t* result = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &result, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (length < 0) return std::string(text);  // unassigned code points stay as they are
  std::string out(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
  std::free(result);
  return out;
}

}  // namespace

struct Tokenizer::Impl {
  std::string path;
  std::unordered_map<std::string, int32_t> vocab;  // in the byte alphabet's form; added tokens as they are
  std::vector<std::string> bytes;                  // of each id; empty for an unused id
  std::vector<bool> special;
  int32_t byte_ids[256];
  int32_t unknown_id = -1;
  bool ignore_merges = false;
  bool nfc = false;
  MergeTable merges;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  AddedTokens raw_added, normalized_added;  // matched before and after normalisation
  SpecialFrame frame;                       // of the post-processor
  int32_t eos_token_id = -1;
  int32_t pad_token_id = -1;

  absl::Status LoadVocab(const json& model);
  absl::Status LoadMerges(const json& model);
  absl::Status LoadMerge(const json& item, size_t rank, size_t longest_token);
  absl::Status LoadModel(const json& root);
  absl::Status LoadAddedTokens(const json& root);
  absl::Status LoadNormalizer(const json& value);
  absl::Status CheckDecoder(const json& value);
  absl::Status CheckId(const json& id, size_t limit, const std::string& token);
  absl::Status LoadTokenizerConfig(const std::string& config_path);
  absl::Status LoadFrame(const json& config, int32_t bos_token_id, const std::string& config_path);
  absl::Status EncodePiece(const std::string& piece, std::vector<int32_t>* ids) const;
  absl::Status EncodePlain(std::string_view text, std::vector<int32_t>* ids) const;
};

absl::Status Tokenizer::Impl::CheckId(const json& id, size_t limit, const std::string& token) {
  if (!id.is_number_unsigned() || id.get<uint64_t>() >= limit) {
    return Bad(path, absl::StrCat("token \"", Printable(token), "\" has id ", PrintableJson(id),
                                  ", must be an integer below ", limit));
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::LoadVocab(const json& model) {
  const auto it = model.find("vocab");
  if (it == model.end() || !it->is_object()) return Bad(path, "model.vocab must be an object of token to id");
  if (it->size() > kMaxTokens)
    return Bad(path, absl::StrCat("model.vocab has ", it->size(), " tokens, limit ", kMaxTokens));
  // A few unused ids are normal; a huge id in a small file is not, and would cost its size in memory.
  const size_t limit = std::min<size_t>(kMaxId, 16 * it->size() + 4096);
  vocab.reserve(it->size());
  for (const auto& [token, id] : it->items()) {
    if (token.empty() || token.size() > kMaxTokenBytes) {
      return Bad(path, absl::StrCat("a token of ", token.size(), " bytes, must have 1 to ", kMaxTokenBytes));
    }
    if (absl::Status status = CheckId(id, limit, token); !status.ok()) return status;
    const auto index = id.get<size_t>();
    if (index >= bytes.size()) bytes.resize(index + 1);
    if (!bytes[index].empty()) return Bad(path, absl::StrCat("id ", index, " is used by two tokens"));
    bytes[index] = BytesOfToken(token);
    vocab.emplace(token, static_cast<int32_t>(index));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocab.find(ByteCharacters()[byte]);
    byte_ids[byte] = found == vocab.end() ? -1 : found->second;
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::LoadMerge(const json& item, size_t rank, size_t longest_token) {
  std::string left, right;
  if (item.is_string()) {
    const auto& text = item.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return Bad(path, absl::StrCat("merge ", rank, " \"", Printable(text), "\" must be two tokens and one space"));
    }
    left = text.substr(0, space);
    right = text.substr(space + 1);
  } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
    left = item[0].get<std::string>();
    right = item[1].get<std::string>();
  } else {
    return Bad(path, absl::StrCat("merge ", rank, " is ", PrintableJson(item), ", must be \"a b\" or [\"a\", \"b\"]"));
  }
  if (left.size() + right.size() > longest_token) {
    return Bad(path, absl::StrCat("merge ", rank, " makes ", left.size() + right.size(),
                                  " bytes, the longest token has ", longest_token));
  }
  int32_t ids[3];
  const std::string parts[3] = {left, right, left + right};
  for (int i = 0; i < 3; ++i) {
    const auto found = vocab.find(parts[i]);
    if (found == vocab.end()) {
      return Bad(path,
                 absl::StrCat("merge ", rank, " uses \"", Printable(parts[i]), "\", which is not in the vocabulary"));
    }
    ids[i] = found->second;
  }
  merges.Add(ids[0], ids[1], static_cast<int32_t>(rank), ids[2]);
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::LoadMerges(const json& model) {
  const auto it = model.find("merges");
  if (it == model.end() || !it->is_array()) return Bad(path, "model.merges must be an array");
  if (it->size() > kMaxTokens)
    return Bad(path, absl::StrCat("model.merges has ", it->size(), " entries, limit ", kMaxTokens));
  size_t longest_token = 0;
  for (const auto& entry : vocab) longest_token = std::max(longest_token, entry.first.size());
  merges.Reserve(it->size());
  for (size_t rank = 0; rank < it->size(); ++rank) {
    if (absl::Status status = LoadMerge((*it)[rank], rank, longest_token); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::LoadModel(const json& root) {
  const auto it = root.find("model");
  if (it == root.end() || !it->is_object()) return Bad(path, "has no object \"model\"; is it a tokenizer.json?");
  const json& model = *it;
  const auto type = JsonString(model, "type", "BPE", path);
  const auto dropout = JsonNumber(model, "dropout", 0, path);
  const auto prefix = JsonString(model, "continuing_subword_prefix", "", path);
  const auto suffix = JsonString(model, "end_of_word_suffix", "", path);
  const auto fallback = JsonBool(model, "byte_fallback", false, path);
  const auto ignore = JsonBool(model, "ignore_merges", false, path);
  const auto unknown = JsonString(model, "unk_token", "", path);
  for (const absl::Status& status : {type.status(), dropout.status(), prefix.status(), suffix.status(),
                                     fallback.status(), ignore.status(), unknown.status()}) {
    if (!status.ok()) return status;
  }
  if (*type != "BPE")
    return Bad(path, absl::StrCat("model.type is \"", Printable(*type), "\"; only byte-level BPE works"));
  if (*dropout != 0) return Bad(path, absl::StrCat("model.dropout is ", *dropout, "; only 0 or null works"));
  if (!prefix->empty() || !suffix->empty() || *fallback) {
    return Bad(path,
               "model uses continuing_subword_prefix, end_of_word_suffix or byte_fallback; byte-level BPE has none");
  }
  ignore_merges = *ignore;
  if (absl::Status status = LoadVocab(model); !status.ok()) return status;
  if (absl::Status status = LoadMerges(model); !status.ok()) return status;
  if (!unknown->empty()) {
    const auto found = vocab.find(*unknown);
    if (found != vocab.end()) unknown_id = found->second;
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::LoadAddedTokens(const json& root) {
  const auto it = root.find("added_tokens");
  if (it == root.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_array()) return Bad(path, "added_tokens must be an array");
  const size_t limit = std::min<size_t>(kMaxId, 16 * (vocab.size() + it->size()) + 4096);
  for (const json& item : *it) {
    if (!item.is_object())
      return Bad(path, absl::StrCat("an added token is ", PrintableJson(item), ", must be an object"));
    AddedToken token;
    const auto content = JsonString(item, "content", "", path);
    const auto is_special = JsonBool(item, "special", false, path);
    const auto normalized = JsonBool(item, "normalized", false, path);
    const auto single_word = JsonBool(item, "single_word", false, path);
    const auto lstrip = JsonBool(item, "lstrip", false, path);
    const auto rstrip = JsonBool(item, "rstrip", false, path);
    for (const absl::Status& status : {content.status(), is_special.status(), normalized.status(), single_word.status(),
                                       lstrip.status(), rstrip.status()}) {
      if (!status.ok()) return status;
    }
    if (content->empty() || content->size() > kMaxTokenBytes) {
      return Bad(path, absl::StrCat("an added token of ", content->size(), " bytes, must have 1 to ", kMaxTokenBytes));
    }
    const json id = item.value("id", json());
    if (absl::Status status = CheckId(id, limit, *content); !status.ok()) return status;
    token.id = id.get<int32_t>();
    const auto known = vocab.find(*content);
    if (known != vocab.end() && known->second != token.id) {
      return Bad(path, absl::StrCat("added token \"", Printable(*content), "\" has id ", token.id,
                                    ", and the vocabulary gives it ", known->second));
    }
    const auto index = static_cast<size_t>(token.id);
    if (index >= bytes.size()) bytes.resize(index + 1);
    if (known == vocab.end() && !bytes[index].empty())
      return Bad(path, absl::StrCat("id ", index, " is used by two tokens"));
    vocab.emplace(*content, token.id);
    bytes[index] = BytesOfToken(*content);  // the reference's decoder reads added tokens in the byte alphabet too
    special.resize(bytes.size());
    special[index] = *is_special;
    token.single_word = *single_word;
    token.lstrip = *lstrip;
    token.rstrip = *rstrip;
    token.content = *normalized && nfc ? Nfc(*content) : *content;
    (*normalized ? normalized_added : raw_added).Add(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::LoadNormalizer(const json& value) {
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_object()) return Bad(path, absl::StrCat("normalizer is ", PrintableJson(value), ", must be an object"));
  const auto type = JsonString(value, "type", "", path);
  if (!type.ok()) return type.status();
  if (*type == "NFC") {
    nfc = true;
    return absl::OkStatus();
  }
  const auto list = value.find("normalizers");
  if (*type == "Sequence" && list != value.end() && list->is_array()) {
    for (const json& item : *list) {
      if (absl::Status status = LoadNormalizer(item); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  return Bad(path, absl::StrCat("normalizer type \"", Printable(*type), "\"; NFC, a Sequence of it, and null work"));
}

absl::Status Tokenizer::Impl::CheckDecoder(const json& value) {
  if (value.is_object()) {
    const auto type = JsonString(value, "type", "", path);
    if (!type.ok()) return type.status();
    if (*type == "ByteLevel") return absl::OkStatus();
    const auto list = value.find("decoders");
    if (*type == "Sequence" && list != value.end() && list->is_array() && list->size() == 1)
      return CheckDecoder((*list)[0]);
    return Bad(path, absl::StrCat("decoder type \"", Printable(*type), "\"; only ByteLevel works"));
  }
  return Bad(path, absl::StrCat("decoder is ", PrintableJson(value), ", must be an object of type ByteLevel"));
}

absl::Status Tokenizer::Impl::LoadTokenizerConfig(const std::string& config_path) {
  const absl::StatusOr<std::string> text = ReadFile(config_path, 16 << 20);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  const absl::StatusOr<json> root = ParseJson(*text, config_path);
  if (!root.ok()) return root.status();
  if (!root->is_object()) return Bad(config_path, "must be a JSON object");
  int32_t bos_token_id = -1;
  for (const auto& [key, id] : {std::pair("eos_token", &eos_token_id), std::pair("pad_token", &pad_token_id),
                                std::pair("bos_token", &bos_token_id)}) {
    json value = root->value(key, json());
    if (value.is_object()) value = value.value("content", json());  // an AddedToken written out
    if (value.is_null()) continue;
    if (!value.is_string())
      return Bad(config_path, absl::StrCat(key, " is ", PrintableJson(value), ", must be a string"));
    const auto found = vocab.find(value.get<std::string>());
    if (found == vocab.end()) {
      if (id == &bos_token_id && root->value("add_bos_token", json()) != json(true)) continue;  // nothing adds it
      return Bad(config_path, absl::StrCat(key, " ", PrintableJson(value), " is not in the vocabulary of ", path));
    }
    *id = found->second;
  }
  return LoadFrame(*root, bos_token_id, config_path);
}

// transformers replaces the post-processor where tokenizer_config.json says what to add.
absl::Status Tokenizer::Impl::LoadFrame(const json& config, int32_t bos_token_id, const std::string& config_path) {
  const auto add_bos = JsonBool(config, "add_bos_token", false, config_path);
  const auto add_eos = JsonBool(config, "add_eos_token", false, config_path);
  if (!add_bos.ok()) return add_bos.status();
  if (!add_eos.ok()) return add_eos.status();
  if (!config.contains("add_bos_token") && !config.contains("add_eos_token")) return absl::OkStatus();
  frame = SpecialFrame();
  if (*add_bos && bos_token_id >= 0) frame.before.push_back(bos_token_id);
  if (*add_eos && eos_token_id >= 0) frame.after.push_back(eos_token_id);
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::EncodePiece(const std::string& piece, std::vector<int32_t>* ids) const {
  if (ignore_merges) {
    const auto whole = vocab.find(TokenOfBytes(piece));
    if (whole != vocab.end()) {
      ids->push_back(whole->second);
      return absl::OkStatus();
    }
  }
  std::vector<int32_t> piece_ids;
  piece_ids.reserve(piece.size());
  for (const char c : piece) {
    const int32_t id = byte_ids[static_cast<unsigned char>(c)];
    if (id < 0 && unknown_id < 0) {
      return Bad(path, absl::StrCat("the vocabulary has no token for byte \"", Printable(std::string_view(&c, 1)),
                                    "\" of the text"));
    }
    piece_ids.push_back(id < 0 ? unknown_id : id);
  }
  merges.Apply(&piece_ids);
  ids->insert(ids->end(), piece_ids.begin(), piece_ids.end());
  return absl::OkStatus();
}

// Text without raw added tokens.
absl::Status Tokenizer::Impl::EncodePlain(std::string_view text, std::vector<int32_t>* ids) const {
  const std::string normal = nfc ? Nfc(text) : std::string(text);
  for (const AddedSection& section : normalized_added.Cut(normal)) {
    if (section.id >= 0) {
      ids->push_back(section.id);
      continue;
    }
    const auto pieces = pre_tokenizer->Cut(section.text);
    if (!pieces.ok()) return pieces.status();
    for (const std::string& piece : *pieces) {
      if (absl::Status status = EncodePiece(piece, ids); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view text, const std::string& path) {
  const absl::StatusOr<json> root = ParseJson(text, path);
  if (!root.ok()) return root.status();
  if (!root->is_object()) return Bad(path, "must be a JSON object");
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  if (absl::Status status = impl->LoadNormalizer(root->value("normalizer", json())); !status.ok()) return status;
  if (absl::Status status = impl->LoadModel(*root); !status.ok()) return status;
  if (absl::Status status = impl->CheckDecoder(root->value("decoder", json())); !status.ok()) return status;
  auto pre_tokenizer = PreTokenizer::FromJson(root->value("pre_tokenizer", json()), path);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  impl->pre_tokenizer = *std::move(pre_tokenizer);
  if (absl::Status status = impl->LoadAddedTokens(*root); !status.ok()) return status;
  impl->special.resize(impl->bytes.size());
  auto frame = ReadPostProcessor(root->value("post_processor", json()), impl->bytes.size(), path);
  if (!frame.ok()) return frame.status();
  impl->frame = *std::move(frame);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& dir) {
  const std::string path = dir + "/tokenizer.json";
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status();
  auto tokenizer = FromJson(*text, path);
  if (!tokenizer.ok()) return tokenizer;
  const absl::Status status = (*tokenizer)->impl_->LoadTokenizerConfig(dir + "/tokenizer_config.json");
  if (!status.ok()) return status;
  return tokenizer;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = impl_->frame.before;
  const std::string valid = ToValidUtf8(text);
  for (const AddedSection& section : impl_->raw_added.Cut(valid)) {
    if (section.id >= 0) {
      ids.push_back(section.id);
    } else if (absl::Status status = impl_->EncodePlain(section.text, &ids); !status.ok()) {
      return status;
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), impl_->frame.after.begin(), impl_->frame.after.end());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodePrompt(std::string_view text) const {
  auto ids = Encode(text);
  if (!ids.ok()) return ids;
  const auto& before = impl_->frame.before;
  const bool begun = ids->size() >= before.size() && std::equal(before.begin(), before.end(), ids->begin());
  if (!begun) ids->insert(ids->begin(), before.begin(), before.end());
  return ids;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  std::string text;
  for (const int32_t id : ids) {
    if (!skip_special_tokens || !IsSpecial(id)) text += TokenBytes(id);
  }
  return text;
}

const std::string& Tokenizer::TokenBytes(int32_t id) const {
  static const std::string* none = new std::string();
  return id < 0 || id >= vocab_size() ? *none : impl_->bytes[static_cast<size_t>(id)];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->special[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  const auto it = impl_->vocab.find(std::string(token));
  if (it == impl_->vocab.end()) return std::nullopt;
  return it->second;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->bytes.size()); }
int32_t Tokenizer::eos_token_id() const { return impl_->eos_token_id; }
int32_t Tokenizer::pad_token_id() const { return impl_->pad_token_id; }

}  // namespace lockstep
