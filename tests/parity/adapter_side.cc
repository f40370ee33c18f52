// The engine's side of adapter_live.py: a PEFT adapter on its base, merged and computed in FP32.
//
//   adapter_side BASE_DIR ADAPTER_DIR RANK ALPHA TARGETS TOKENS OUT_DIR
//
// TARGETS: comma-separated. TOKENS: int32 little-endian, one sequence. OUT_DIR, which must exist, gets logits.bin (FP32
// [T, V]), adapter/ (the adapter as the engine writes it) and merged/ (the merged model, FP32).
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "engine/base/process.h"
#include "engine/checkpoint/adapter.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/decoder.h"

namespace lockstep {
namespace {

absl::Status Run(char** argv) {
  const std::string base = argv[1], adapter = argv[2], out = argv[7];
  int64_t rank = 0;
  float alpha = 0;
  if (!absl::SimpleAtoi(argv[3], &rank) || !absl::SimpleAtof(argv[4], &alpha)) {
    return absl::InvalidArgumentError("RANK and ALPHA are numbers");
  }
  const auto config = ReadHfConfig(base);
  if (!config.ok()) return config.status();
  const auto layout = MakeLowRankLayout(*config, rank, alpha, absl::StrSplit(argv[5], ',', absl::SkipEmpty()));
  if (!layout.ok()) return layout.status();
  std::vector<float> adapters(static_cast<size_t>(layout->total_size));
  if (absl::Status status = LoadAdapter(adapter, *layout, adapters.data()); !status.ok()) return status;
  Weights weights(*config, DType::kF32);
  std::vector<float> arena(static_cast<size_t>(weights.layout.total_size));
  if (absl::Status status = LoadHfArena(base, *config, arena.data()); !status.ok()) return status;
  for (int param = 0; param < static_cast<int>(weights.layout.params.size()); ++param) {
    const ParamSpec& spec = weights.layout.params[param];
    AddLowRank(*layout, adapters.data(), param, 0, spec.rows, spec.cols, arena.data() + spec.offset);
  }
  weights.SetFromArena(arena.data());

  const auto bytes = ReadFile(argv[6]);
  if (!bytes.ok()) return bytes.status();
  PagedBatch batch;
  batch.tokens.resize(bytes->size() / sizeof(int32_t));
  std::memcpy(batch.tokens.data(), bytes->data(), batch.tokens.size() * sizeof(int32_t));
  const int64_t T = static_cast<int64_t>(batch.tokens.size());
  std::vector<int32_t> pages;
  for (int32_t t = 0; t < T; ++t) {
    batch.positions.push_back(t);
    batch.output_rows.push_back(t);
    if (t % kPageTokens == 0) pages.push_back(t / static_cast<int32_t>(kPageTokens));
  }
  batch.sequences.push_back({0, T, 0, pages});
  const auto ops = MakeCpuOps(Numerics::kMatched, 1);
  Decoder decoder(*config, DType::kF32, ops.get());
  const KvStorage cache(*config, DType::kF32, static_cast<int64_t>(pages.size()));
  Buffer hidden(static_cast<size_t>(T * config->hidden_size) * sizeof(float));
  Buffer logits(static_cast<size_t>(T * config->vocab_size) * sizeof(float));
  const Tensor hidden_view(hidden.data(), DType::kF32, T, config->hidden_size);
  decoder.ForwardPaged(weights, batch, cache, hidden_view);
  decoder.Logits(weights, hidden_view, Tensor(logits.data(), DType::kF32, T, config->vocab_size));
  absl::Status status = WriteFileAtomically(out + "/logits.bin", {logits.As<char>(), logits.bytes()});
  if (!status.ok()) return status;
  if (mkdir((out + "/adapter").c_str(), 0755) != 0) return absl::UnavailableError(out + "/adapter: cannot be made");
  status = WriteAdapterFiles(out + "/adapter", base, *layout, adapters.data());
  if (!status.ok()) return status;
  return WriteHfFolder(out + "/merged", *config, &weights, DType::kF32, "");
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  if (argc != 8) {
    std::fprintf(stderr, "usage: adapter_side BASE_DIR ADAPTER_DIR RANK ALPHA TARGETS TOKENS OUT_DIR\n");
    return 2;
  }
  const absl::Status status = lockstep::Run(argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
