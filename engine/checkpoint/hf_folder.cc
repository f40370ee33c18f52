#include "engine/checkpoint/hf_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/checkpoint/safetensors.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxCopiedFileBytes = uint64_t{256} << 20;
constexpr int64_t kBlockElements = 1 << 20;
constexpr float kMaxHalf = 65504.0f;
constexpr float kMaxBFloat16 = 3.3895314e38f;

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", message));
}

// The folder's tensors, over all its files.
struct TensorFiles {
  struct Place {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::map<std::string, Place> tensors;
};

absl::Status AddFile(const std::string& path, TensorFiles* out) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (const auto& [name, entry] : (*file)->tensors()) {
    const auto [it, inserted] = out->tensors.emplace(name, TensorFiles::Place{file->get(), &entry});
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

// Opens the folder and compares names and shapes with the layout's.
absl::StatusOr<TensorFiles> OpenTensors(const std::string& dir, const ModelConfig& config, const ParamLayout& layout) {
  TensorFiles files;
  const std::string single = dir + "/model.safetensors";
  const std::string index = single + ".index.json";
  const bool sharded = access(single.c_str(), F_OK) != 0 && access(index.c_str(), F_OK) == 0;
  const absl::Status opened = sharded ? AddShards(dir, index, &files) : AddFile(single, &files);
  if (!opened.ok()) return opened;
  std::set<std::string> expected;
  for (const HfTensor& tensor : layout.hf_tensors) {
    expected.insert(tensor.name);
    const auto it = files.tensors.find(tensor.name);
    if (it == files.tensors.end()) {
      return Bad(dir, absl::StrCat("tensor \"", tensor.name, "\" is missing, which config.json's ", config.architecture,
                                   " needs; do the files belong together?"));
    }
    if (it->second.entry->shape != tensor.shape) {
      return Bad(it->second.file->path(),
                 absl::StrCat("tensor \"", tensor.name, "\" has shape ", ShapeText(it->second.entry->shape),
                              ", must have ", ShapeText(tensor.shape), " by config.json"));
    }
  }
  for (const auto& [name, place] : files.tensors) {
    const bool tied_copy = name == "lm_head.weight" && config.tie_word_embeddings;
    if (expected.count(name) > 0 || tied_copy || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    return Bad(place.file->path(), absl::StrCat("tensor \"", Printable(name), "\" is not one of a ",
                                                config.architecture, " with this config.json"));
  }
  return files;
}

// Values that the target type cannot hold: NaN, infinity, and what lies beyond `limit`.
struct ValueCheck {
  float limit;
  const char* type_name;
  int64_t non_finite = 0;
  int64_t too_large = 0;
  float largest = 0;

  void Count(const float* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const float magnitude = std::fabs(values[i]);
      if (!(magnitude <= limit)) (std::isfinite(values[i]) ? too_large : non_finite) += 1;
      if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
    }
  }
  absl::Status Result(const TensorFiles::Place& place) const {
    const std::string tensor = absl::StrCat("tensor \"", place.entry->name, "\" has ");
    if (non_finite > 0) {
      return Bad(place.file->path(), absl::StrCat(tensor, non_finite, " values that are NaN or infinite"));
    }
    if (too_large > 0) {
      return Bad(place.file->path(), absl::StrCat(tensor, too_large, " values beyond ", limit, ", the largest of ",
                                                  type_name, " (up to ", largest, "); use another dtype"));
    }
    return absl::OkStatus();
  }
};

ValueCheck CheckFor(DType dtype) {
  if (dtype == DType::kF16) return {kMaxHalf, "fp16"};
  if (dtype == DType::kBF16) return {kMaxBFloat16, "bf16"};
  return {std::numeric_limits<float>::max(), "fp32"};
}

// Reads a tensor in blocks of whole rows (of a vector: all of it) and hands each to `take(first_row, rows, values)`.
absl::Status ForEachBlock(const TensorFiles::Place& place, ValueCheck check,
                          const std::function<void(int64_t, int64_t, const float*)>& take) {
  const auto& shape = place.entry->shape;
  const int64_t cols = shape.size() == 1 ? 1 : shape[1];
  // Whole panels of 16 rows, so that packing touches each panel once.
  const int64_t block_rows = shape.size() == 1 ? shape[0] : std::max<int64_t>(16, kBlockElements / cols / 16 * 16);
  std::vector<float> values(static_cast<size_t>(std::min(block_rows, shape[0]) * cols));
  for (int64_t row = 0; row < shape[0]; row += block_rows) {
    const int64_t rows = std::min(block_rows, shape[0] - row);
    absl::Status status = place.file->ReadFloats(*place.entry, row * cols, rows * cols, values.data());
    if (!status.ok()) return status;
    check.Count(values.data(), rows * cols);
    take(row, rows, values.data());
  }
  return check.Result(place);
}

absl::Status CopyFile(const std::string& from, const std::string& to) {
  const auto bytes = ReadFile(from, kMaxCopiedFileBytes);
  if (absl::IsNotFound(bytes.status())) return absl::OkStatus();
  if (!bytes.ok()) return bytes.status();
  return WriteFileAtomically(to, *bytes);
}

}  // namespace

absl::Status LoadHfArena(const std::string& dir, const ModelConfig& config, float* arena) {
  const ParamLayout layout(config);
  const auto files = OpenTensors(dir, config, layout);
  if (!files.ok()) return files.status();
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t cols = param.kind == ParamSpec::Kind::kVector ? 1 : param.cols;
    float* target = arena + param.offset + tensor.row_begin * cols;
    const absl::Status status = ForEachBlock(files->tensors.at(tensor.name), CheckFor(DType::kF32),
                                             [&](int64_t row, int64_t rows, const float* values) {
                                               std::copy(values, values + rows * cols, target + row * cols);
                                             });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Weights>> LoadHfWeights(const std::string& dir, DType dtype) {
  const auto config = ReadHfConfig(dir);
  if (!config.ok()) return config.status();
  const ParamLayout layout(*config);
  const auto files = OpenTensors(dir, *config, layout);  // before anything of the model's size is allocated
  if (!files.ok()) return files.status();
  auto weights = std::make_shared<Weights>(*config, dtype);
  std::map<int, std::vector<float>> vectors;  // a vector parameter may come from several tensors: q, k, v bias
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const bool is_vector = param.kind == ParamSpec::Kind::kVector;
    if (is_vector) vectors[tensor.param].resize(static_cast<size_t>(param.cols));
    const absl::Status status = ForEachBlock(
        files->tensors.at(tensor.name), CheckFor(dtype), [&](int64_t row, int64_t rows, const float* values) {
          if (is_vector) {
            std::copy(values, values + rows, vectors[tensor.param].begin() + tensor.row_begin + row);
          } else {
            weights->SetParamRows(tensor.param, tensor.row_begin + row,
                                  Tensor(const_cast<float*>(values), DType::kF32, rows, param.cols));
          }
        });
    if (!status.ok()) return status;
  }
  for (auto& [param, values] : vectors) {
    weights->SetParamRows(param, 0, Tensor(values.data(), DType::kF32, 1, static_cast<int64_t>(values.size())));
  }
  return weights;
}

namespace {

// Everything in a folder, the weights from `tensors`.
absl::Status WriteFiles(const std::string& dir, const ModelConfig& config, DType dtype,
                        const std::vector<SafetensorsSource>& tensors, const std::string& tokenizer_dir) {
  absl::Status status = WriteSafetensors(dir + "/model.safetensors", tensors, {{"format", "pt"}});
  if (!status.ok()) return status;
  nlohmann::ordered_json generation;
  generation["do_sample"] = true;
  if (config.bos_token_id >= 0) generation["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_ids.empty()) generation["eos_token_id"] = config.eos_token_ids;
  status = WriteFileAtomically(dir + "/generation_config.json", generation.dump(2) + "\n");
  if (!status.ok()) return status;
  if (!tokenizer_dir.empty()) {
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                             "vocab.json", "merges.txt", "chat_template.jinja"}) {
      status = CopyFile(absl::StrCat(tokenizer_dir, "/", name), absl::StrCat(dir, "/", name));
      if (!status.ok()) return status;
    }
  }
  return WriteFileAtomically(dir + "/config.json", HfConfigJson(config, dtype));
}

// A new folder with all that `write` puts into it, or none: temporary folder, fsync, rename.
absl::Status MakeFolder(const std::string& dir, const std::function<absl::Status(const std::string& folder)>& write) {
  std::string target = dir;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  if (access(target.c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(absl::StrCat(target, ": exists already; choose another folder or remove it"));
  }
  const std::string temporary = absl::StrCat(target, ".tmp.", getpid());
  std::error_code error;
  std::filesystem::remove_all(temporary, error);  // left by an earlier process of the same id
  if (mkdir(temporary.c_str(), 0755) != 0) return ErrnoStatus(errno, "cannot create folder", temporary);
  absl::Status status = write(temporary);
  if (status.ok()) status = SyncDirectory(temporary);
  if (status.ok() && rename(temporary.c_str(), target.c_str()) != 0) {
    status = ErrnoStatus(errno, "cannot rename to", target);
  }
  if (!status.ok()) {
    std::filesystem::remove_all(temporary, error);
    return status;
  }
  const std::string parent = std::filesystem::path(target).parent_path().string();
  return SyncDirectory(parent.empty() ? "." : parent);
}

}  // namespace

absl::Status WriteHfFiles(const std::string& dir, const ModelConfig& config, const float* arena, DType dtype,
                          const std::string& tokenizer_dir) {
  const ParamLayout layout(config);
  std::vector<SafetensorsSource> tensors;
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t cols = param.kind == ParamSpec::Kind::kVector ? 1 : param.cols;
    tensors.push_back({tensor.name, dtype, tensor.shape, arena + param.offset + tensor.row_begin * cols});
  }
  return WriteFiles(dir, config, dtype, tensors, tokenizer_dir);
}

absl::Status WriteHfFolder(const std::string& dir, const ModelConfig& config, const float* arena, DType dtype,
                           const std::string& tokenizer_dir) {
  return MakeFolder(
      dir, [&](const std::string& folder) { return WriteHfFiles(folder, config, arena, dtype, tokenizer_dir); });
}

absl::Status WriteRandomHfFolder(const std::string& dir, const ModelConfig& config, uint64_t seed, float std,
                                 DType dtype, const std::string& tokenizer_dir) {
  const ParamLayout layout(config);
  std::vector<SafetensorsSource> tensors;
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t begin = tensor.row_begin * (param.kind == ParamSpec::Kind::kVector ? 1 : param.cols);
    tensors.push_back(
        {tensor.name, dtype, tensor.shape, nullptr,
         [&config, &layout, seed, std, param = tensor.param, begin](int64_t first, int64_t count, float* out) {
           InitializeElements(config, layout, seed, std, param, begin + first, count, out);
         }});
  }
  return MakeFolder(
      dir, [&](const std::string& folder) { return WriteFiles(folder, config, dtype, tensors, tokenizer_dir); });
}

}  // namespace lockstep
