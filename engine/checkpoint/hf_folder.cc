// Writing a Hugging Face model folder.
#include "engine/checkpoint/hf_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/checkpoint/safetensors.h"

namespace lockstep {
namespace {

constexpr uint64_t kMaxCopiedFileBytes = uint64_t{256} << 20;

absl::Status CopyFile(const std::string& from, const std::string& to) {
  const auto bytes = ReadFile(from, kMaxCopiedFileBytes);
  if (absl::IsNotFound(bytes.status())) return absl::OkStatus();
  if (!bytes.ok()) return bytes.status();
  return WriteFileAtomically(to, *bytes);
}

uint64_t Bytes(const SafetensorsSource& tensor) {
  uint64_t bytes = DTypeSize(tensor.dtype);
  for (const int64_t dim : tensor.shape) bytes *= static_cast<uint64_t>(dim);
  return bytes;
}

// model.safetensors, or shards of at most max_shard_bytes (a larger tensor has one for itself) and their index.
absl::Status WriteTensors(const std::string& dir, const std::vector<SafetensorsSource>& tensors,
                          uint64_t max_shard_bytes) {
  std::vector<std::vector<SafetensorsSource>> shards(1);
  uint64_t shard_bytes = 0, total_bytes = 0;
  for (const SafetensorsSource& tensor : tensors) {
    const uint64_t bytes = Bytes(tensor);
    if (!shards.back().empty() && shard_bytes + bytes > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(tensor);
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (shards.size() == 1) return WriteSafetensors(dir + "/model.safetensors", tensors, metadata);
  nlohmann::ordered_json index;
  index["metadata"] = {{"total_size", total_bytes}};
  index["weight_map"] = nlohmann::ordered_json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    absl::Status status = WriteSafetensors(absl::StrCat(dir, "/", name), shards[i], metadata);
    if (!status.ok()) return status;
    for (const SafetensorsSource& tensor : shards[i]) index["weight_map"][tensor.name] = name;
  }
  return WriteFileAtomically(dir + "/model.safetensors.index.json", index.dump(2) + "\n");
}

// Elements of a tensor out of weights: the whole rows that they are in, then the part of them.
std::function<void(int64_t, int64_t, float*)> FillFromWeights(const Weights& weights, const HfTensor& tensor) {
  const bool is_vector = weights.layout.params[tensor.param].kind == ParamSpec::Kind::kVector;
  const int64_t cols = is_vector ? 1 : weights.layout.params[tensor.param].cols;
  return [&weights, param = tensor.param, begin = tensor.row_begin, is_vector, cols](int64_t first, int64_t count,
                                                                                     float* out) {
    const int64_t row = first / cols, rows = (first + count + cols - 1) / cols - row;
    std::vector<float> values(static_cast<size_t>(rows * cols));
    weights.GetParamRows(param, begin + row,
                         Tensor(values.data(), DType::kF32, is_vector ? 1 : rows, is_vector ? rows : cols));
    std::copy_n(values.data() + (first - row * cols), count, out);
  };
}

// Everything in a folder, the weights from `tensors`.
absl::Status WriteFiles(const std::string& dir, const ModelConfig& config, DType dtype,
                        const std::vector<SafetensorsSource>& tensors, const std::string& tokenizer_dir,
                        uint64_t max_shard_bytes) {
  absl::Status status = WriteTensors(dir, tensors, max_shard_bytes);
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

absl::Status WriteHfFiles(const std::string& dir, const ModelConfig& config, ParamSource params, DType dtype,
                          const std::string& tokenizer_dir, uint64_t max_shard_bytes) {
  const ParamLayout layout(config);
  std::vector<SafetensorsSource> tensors;
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t cols = param.kind == ParamSpec::Kind::kVector ? 1 : param.cols;
    SafetensorsSource source{tensor.name, dtype, tensor.shape};
    if (params.weights != nullptr) {
      source.fill = FillFromWeights(*params.weights, tensor);
    } else {
      source.data = params.arena + param.offset + tensor.row_begin * cols;
    }
    tensors.push_back(std::move(source));
  }
  return WriteFiles(dir, config, dtype, tensors, tokenizer_dir, max_shard_bytes);
}

absl::Status WriteHfFolder(const std::string& dir, const ModelConfig& config, ParamSource params, DType dtype,
                           const std::string& tokenizer_dir, uint64_t max_shard_bytes) {
  return MakeFolder(dir, [&](const std::string& folder) {
    return WriteHfFiles(folder, config, params, dtype, tokenizer_dir, max_shard_bytes);
  });
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
  return MakeFolder(dir, [&](const std::string& folder) {
    return WriteFiles(folder, config, dtype, tensors, tokenizer_dir, kMaxShardBytes);
  });
}

}  // namespace lockstep
