#include "engine/checkpoint/hf_tensors.h"

#include <unistd.h>

#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/process.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", message));
}

// The folder's tensors, over all its files.
struct TensorFiles {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::map<std::string, TensorPlace> tensors;
};

absl::Status AddFile(const std::string& path, TensorFiles* out) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (const auto& [name, entry] : (*file)->tensors()) {
    const auto [it, inserted] = out->tensors.emplace(name, TensorPlace{file->get(), &entry, 0});
    if (!inserted) {
      return Bad(path, absl::StrCat("tensor \"", Printable(name), "\" is in ", it->second.file->path(), " too"));
    }
  }
  out->files.push_back(*std::move(file));
  return absl::OkStatus();
}

// model.safetensors.index.json: {"weight_map": {tensor: file}}.
absl::Status AddShards(const std::string& dir, const std::string& index_path, TensorFiles* out) {
  const auto text = ReadFile(index_path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  const auto root = ParseJson(*text, index_path);
  if (!root.ok()) return root.status();
  const json map = root->is_object() ? root->value("weight_map", json()) : json();
  if (!map.is_object() || map.empty()) return Bad(index_path, "weight_map must be an object of tensor to file");
  std::set<std::string> names;
  for (const auto& item : map.items()) {
    const json& file = item.value();
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name[0] == '.') {
      return Bad(index_path, absl::StrCat("tensor \"", Printable(item.key()), "\" is in ", PrintableJson(file),
                                          ", must be a file name of this folder"));
    }
    names.insert(name);
  }
  for (const std::string& name : names) {
    if (absl::Status status = AddFile(dir + "/" + name, out); !status.ok()) return status;
  }
  for (const auto& item : map.items()) {
    const auto it = out->tensors.find(item.key());
    if (it == out->tensors.end() || it->second.file->path() != dir + "/" + item.value().get<std::string>()) {
      return Bad(index_path, absl::StrCat("tensor \"", Printable(item.key()), "\" is not in ",
                                          PrintableJson(item.value()), ", where the index says it is"));
    }
  }
  return absl::OkStatus();
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) absl::StrAppend(&text, i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

// The layout's tensor by its own name, or its part of a stacked one; adds the name that was used to `expected`.
absl::StatusOr<TensorPlace> FindTensor(const TensorFiles& files, const HfTensor& tensor, const std::string& dir,
                                       const ModelConfig& config, std::set<std::string>* expected) {
  auto it = files.tensors.find(tensor.name);
  const bool stacked = it == files.tensors.end() && !tensor.stacked_name.empty();
  if (stacked) it = files.tensors.find(tensor.stacked_name);
  if (it == files.tensors.end()) {
    return Bad(dir, absl::StrCat("tensor \"", tensor.name, "\" is missing, which config.json's ", config.architecture,
                                 " needs; do the files belong together?"));
  }
  expected->insert(it->first);
  const std::vector<int64_t>& shape = stacked ? tensor.stacked_shape : tensor.shape;
  TensorPlace place = it->second;
  if (place.entry->shape != shape) {
    return Bad(place.file->path(), absl::StrCat("tensor \"", it->first, "\" has shape ", ShapeText(place.entry->shape),
                                                ", must have ", ShapeText(shape), " by config.json"));
  }
  const std::string& dtype = place.entry->dtype;
  if (dtype != "F32" && dtype != "F16" && dtype != "BF16") {
    return Bad(place.file->path(),
               absl::StrCat("tensor \"", it->first, "\" has dtype ", dtype, "; F32, F16 and BF16 work"));
  }
  if (stacked) place.first = tensor.stacked_row * tensor.stacked_shape.back();
  return place;
}

}  // namespace

absl::StatusOr<HfTensors> OpenHfTensors(const std::string& dir, const ModelConfig& config, const ParamLayout& layout) {
  TensorFiles files;
  const std::string single = dir + "/model.safetensors";
  const std::string index = single + ".index.json";
  const bool sharded = access(single.c_str(), F_OK) != 0 && access(index.c_str(), F_OK) == 0;
  const absl::Status opened = sharded ? AddShards(dir, index, &files) : AddFile(single, &files);
  if (!opened.ok()) return opened;
  HfTensors result;
  std::set<std::string> expected;
  for (const HfTensor& tensor : layout.hf_tensors) {
    const auto place = FindTensor(files, tensor, dir, config, &expected);
    if (!place.ok()) return place.status();
    result.places.push_back(*place);
  }
  for (const auto& [name, place] : files.tensors) {
    const bool tied_copy = name == "lm_head.weight" && config.tie_word_embeddings;
    if (expected.count(name) > 0 || tied_copy || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    return Bad(place.file->path(), absl::StrCat("tensor \"", Printable(name), "\" is not one of a ",
                                                config.architecture, " with this config.json"));
  }
  result.files = std::move(files.files);
  return result;
}

}  // namespace lockstep
