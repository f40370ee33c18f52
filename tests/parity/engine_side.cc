// The engine's side of parity_live.py. Reads a Hugging Face folder and a request, and writes what the engine makes of
// it.
//
//   engine_side MODEL_DIR DTYPE NUMERICS REQUEST ANSWER
//
// REQUEST: int32 little-endian: sequences, new_tokens, then for each sequence its length and its tokens.
// ANSWER: float32 logits of every token [T, V]; float32 log-prob of each token's successor within its sequence; float32
// gradient of the sum of those log-probs for every Hugging Face tensor in the layout's order; int32 greedy continuation
// of each sequence by new_tokens tokens. DIR_OUT (optional sixth argument): the model is exported there as well.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/decoder.h"

namespace lockstep {
namespace {

constexpr uint64_t kMaxRequestBytes = 16 << 20;
constexpr uint64_t kSmallShards = 40000;  // the export is read back in several shards

template <typename T>
T OrExit(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "error: %s\n", std::string(value.status().message()).c_str());
  std::exit(1);
}

void OrExit(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}

struct Request {
  int new_tokens = 0;
  std::vector<std::vector<int32_t>> sequences;
};

Request ReadRequest(const std::string& path) {
  const std::string bytes = OrExit(ReadFile(path, kMaxRequestBytes));
  size_t at = 0;
  const auto next = [&] {
    int32_t value = 0;
    if (bytes.size() - at < sizeof(value)) OrExit(absl::InvalidArgumentError(path + ": is too short"));
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    at += sizeof(value);
    return value;
  };
  Request request;
  const int32_t count = next();
  request.new_tokens = next();
  for (int32_t i = 0; i < count; ++i) {
    std::vector<int32_t>& tokens = request.sequences.emplace_back();
    for (int32_t left = next(); left > 0; --left) tokens.push_back(next());
  }
  return request;
}

// One sequence through the paged path: whole prompt first, then one token a step, the largest logit each time.
class Generator {
 public:
  Generator(Decoder& decoder, const Weights& weights, int64_t longest)
      : decoder_(decoder), weights_(weights), cache_(weights.config, weights.dtype, longest / kPageTokens + 1) {
    for (int32_t page = 0; page < cache_.num_pages(); ++page) pages_.push_back(page);
  }

  // Logits [tokens, V] of `tokens`, which stand at position `begin`.
  std::vector<float> Step(const std::vector<int32_t>& tokens, int64_t begin) {
    const ModelConfig& config = weights_.config;
    PagedBatch batch;
    const auto count = static_cast<int64_t>(tokens.size());
    batch.tokens = tokens;
    for (int64_t i = 0; i < count; ++i) batch.positions.push_back(static_cast<int32_t>(begin + i));
    for (int64_t i = 0; i < count; ++i) batch.output_rows.push_back(static_cast<int32_t>(i));
    batch.sequences.push_back({.row_begin = 0, .row_count = count, .position_begin = begin, .pages = pages_});
    Buffer hidden_buffer(static_cast<size_t>(count * config.hidden_size) * DTypeSize(weights_.dtype));
    const Tensor hidden(hidden_buffer.data(), weights_.dtype, count, config.hidden_size);
    std::vector<float> logits(static_cast<size_t>(count * config.vocab_size));
    decoder_.ForwardPaged(weights_, batch, cache_, hidden);
    decoder_.Logits(weights_, hidden, Tensor(logits.data(), DType::kF32, count, config.vocab_size));
    return logits;
  }

 private:
  Decoder& decoder_;
  const Weights& weights_;
  KvStorage cache_;
  std::vector<int32_t> pages_;
};

void Append(std::string* answer, const void* data, size_t bytes) {
  answer->append(static_cast<const char*>(data), bytes);
}

void AddLogProbsAndGradients(Decoder& decoder, const Weights& weights, const Request& request, std::string* answer) {
  PackedBatch batch;
  batch.cu_seqlens.push_back(0);
  for (const std::vector<int32_t>& tokens : request.sequences) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i + 1 < tokens.size()) {
        batch.loss_rows.push_back(static_cast<int32_t>(batch.tokens.size()));
        batch.targets.push_back(tokens[i + 1]);
      }
      batch.tokens.push_back(tokens[i]);
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  const ParamLayout& layout = weights.layout;
  std::vector<float> log_prob(batch.targets.size()), ones(batch.targets.size(), 1.0f);
  std::vector<float> gradients(static_cast<size_t>(layout.total_size));
  decoder.ForwardPacked(weights, batch, 1.0f, /*recompute=*/true, log_prob.data(), nullptr);
  decoder.Backward(weights, batch, 1.0f, ones.data(), gradients.data());
  Append(answer, log_prob.data(), log_prob.size() * sizeof(float));
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t cols = param.kind == ParamSpec::Kind::kVector ? 1 : param.cols;
    Append(answer, gradients.data() + param.offset + tensor.row_begin * cols,
           static_cast<size_t>(tensor.shape[0] * cols) * sizeof(float));
  }
}

int Run(int argc, char** argv) {
  if (argc != 6 && argc != 7) {
    std::fprintf(stderr, "usage: engine_side MODEL_DIR DTYPE NUMERICS REQUEST ANSWER [EXPORT_DIR]\n");
    return 2;
  }
  const DType dtype = OrExit(ParseDType(argv[2]));
  const Numerics numerics = std::strcmp(argv[3], "matched") == 0 ? Numerics::kMatched : Numerics::kNative;
  const std::shared_ptr<Weights> weights = OrExit(LoadHfWeights(argv[1], dtype));
  const Request request = ReadRequest(argv[4]);
  const int64_t vocab = weights->config.vocab_size;
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 2);
  Decoder decoder(weights->config, dtype, ops.get());
  std::string answer;
  std::vector<int32_t> continuations;
  for (const std::vector<int32_t>& tokens : request.sequences) {
    Generator generator(decoder, *weights, static_cast<int64_t>(tokens.size()) + request.new_tokens);
    std::vector<float> logits = generator.Step(tokens, 0);
    Append(&answer, logits.data(), logits.size() * sizeof(float));
    auto position = static_cast<int64_t>(tokens.size());
    for (int i = 0; i < request.new_tokens; ++i, ++position) {
      const auto row = logits.end() - vocab;
      const auto token = static_cast<int32_t>(std::max_element(row, logits.end()) - row);
      continuations.push_back(token);
      logits = generator.Step({token}, position);
    }
  }
  AddLogProbsAndGradients(decoder, *weights, request, &answer);
  Append(&answer, continuations.data(), continuations.size() * sizeof(int32_t));
  OrExit(WriteFileAtomically(argv[5], answer));
  if (argc == 7) {
    std::vector<float> arena(static_cast<size_t>(weights->layout.total_size));
    weights->CopyToArena(arena.data());
    OrExit(WriteHfFolder(argv[6], weights->config, arena.data(), dtype, argv[1], kSmallShards));
  }
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) { return lockstep::Run(argc, argv); }
