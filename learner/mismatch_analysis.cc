#include "learner/mismatch_analysis.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/decoder.h"
#include "engine/tokenizer/tokenizer.h"
#include "learner/mismatch_store.h"
#include "learner/mismatch_tokens.h"
#include "learner/paged_decode.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kProgressSeconds = 5;
// Of the stored files' keys: goes up when what the engines compute changes its meaning.
constexpr int kStoreVersion = 1;

int64_t ResponseTokens(const std::vector<PromptedTokens>& sequences) {
  int64_t count = 0;
  for (const PromptedTokens& sequence : sequences) {
    count += static_cast<int64_t>(sequence.tokens.size()) - sequence.num_prompt;
  }
  return count;
}

// "bf16-native" for a file's name.
std::string FileName(const Precision& precision) {
  std::string name = precision.Name();
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

// Says every few seconds how far a pass is.
class Progress {
 public:
  Progress(const MismatchHooks& hooks, std::string what, int64_t total)
      : hooks_(hooks), what_(std::move(what)), total_(total), begin_(absl::Now()), said_(begin_) {}

  // False: stop.
  bool operator()(int64_t done) {
    done_ = done;
    const absl::Time now = absl::Now();
    if (now - said_ >= absl::Seconds(kProgressSeconds)) {
      said_ = now;
      const double rate = static_cast<double>(done) / absl::ToDoubleSeconds(now - begin_);
      hooks_.log(absl::StrFormat("%s: %d of %s%d tokens, %.0f tokens/s", what_, done, at_most_, total_, rate));
    }
    return !hooks_.stopped();
  }
  void Ended() const {
    hooks_.log(absl::StrFormat("%s: %d tokens in %.1f s", what_, done_, absl::ToDoubleSeconds(absl::Now() - begin_)));
  }
  void SayAtMost() { at_most_ = "at most "; }

 private:
  const MismatchHooks& hooks_;
  const std::string what_;
  const int64_t total_;
  const absl::Time begin_;
  absl::Time said_;
  int64_t done_ = 0;
  std::string at_most_;
};

class Analysis {
 public:
  Analysis(const MismatchOptions& options, const MismatchHooks& hooks)
      : options_(options), hooks_(hooks), store_(options.out_dir + "/scores") {}

  absl::StatusOr<Json> Run() {
    if (absl::Status status = Open(); !status.ok()) return status;
    // All draws come first: the log-probs of a token need it to be there.
    for (const Precision& sampler : Samplers()) {
      if (absl::Status status = Draw(sampler); !status.ok()) return status;
    }
    if (absl::Status status = ScoreAll(); !status.ok()) return status;
    return Report();
  }

 private:
  // A list of sequences, and what every engine said of it.
  struct TokenSet {
    std::vector<PromptedTokens> sequences;
    std::string digest;
    std::string drawn_by;                                // "bf16 native"; empty: given
    std::map<std::string, LogProbLists> log_mu, log_pi;  // by precision
  };

  absl::Status Open() {
    auto config = ReadHfConfig(options_.model_dir);
    if (!config.ok()) return config.status();
    config_ = *std::move(config);
    std::unique_ptr<Tokenizer> tokenizer;
    stop_token_ids_ = config_.eos_token_ids;
    if (std::filesystem::exists(options_.model_dir + "/tokenizer.json")) {
      auto loaded = Tokenizer::Load(options_.model_dir);
      if (!loaded.ok()) return loaded.status();
      tokenizer = *std::move(loaded);
      if (const int32_t eos = tokenizer->eos_token_id(); eos >= 0) stop_token_ids_.push_back(eos);
    }
    TokenFileOptions file = {.path = options_.tokens.empty() ? options_.prompts : options_.tokens,
                             .model_dir = options_.model_dir,
                             .prompt_template = options_.prompt_template,
                             .config = &config_,
                             .tokenizer = tokenizer.get(),
                             .limit = options_.limit,
                             .max_tokens = options_.tokens.empty() ? options_.max_tokens : 0};
    auto lines = options_.tokens.empty() ? ReadPrompts(file) : ReadResponses(file);
    if (!lines.ok()) return lines.status();
    auto digest = ModelDigest(options_.model_dir);
    if (!digest.ok()) return digest.status();
    model_digest_ = *std::move(digest);
    std::error_code error;
    std::filesystem::create_directories(options_.out_dir + "/scores", error);
    if (error) return absl::UnavailableError(absl::StrCat("cannot make ", options_.out_dir, "/scores"));
    if (!options_.tokens.empty()) {
      TokenSet& given = sets_[""];
      given.sequences = *std::move(lines);
      given.digest = TokensDigest(given.sequences);
      return absl::OkStatus();
    }
    num_prompts_ = lines->size();
    for (const PromptedTokens& prompt : *lines) {
      for (uint64_t i = 0; i < options_.n; ++i) prompts_.push_back(prompt);
    }
    auto lengths = SampleLengths(options_.lengths, options_.max_tokens, prompts_.size());
    if (!lengths.ok()) return lengths.status();
    lengths_ = *std::move(lengths);
    return absl::OkStatus();
  }

  // The rollout engines that draw, those of one dtype together.
  std::vector<Precision> Samplers() const {
    std::vector<Precision> samplers;
    if (!options_.tokens.empty()) return samplers;
    for (const PrecisionPair& pair : options_.pairs) {
      if (std::find(samplers.begin(), samplers.end(), pair.rollout) == samplers.end()) samplers.push_back(pair.rollout);
      if (!options_.own_samples) break;
    }
    std::stable_sort(samplers.begin(), samplers.end(),
                     [](const Precision& a, const Precision& b) { return a.dtype < b.dtype; });
    return samplers;
  }

  // Where the pair's tokens are.
  TokenSet& SetOf(const PrecisionPair& pair) {
    if (!options_.tokens.empty()) return sets_.at("");
    return sets_.at((options_.own_samples ? pair : options_.pairs.front()).rollout.Name());
  }

  // What every stored file depends on.
  std::string Key(const Precision& precision, const std::string& rest) const {
    return absl::StrCat("version=", kStoreVersion, " model=", model_digest_, " engine=", precision.Name(),
                        " temperature=", options_.temperature, " ", rest);
  }
  std::string BatchKey() const {
    return absl::StrCat(" batch=", options_.max_batch_size, " chunk=", options_.prefill_chunk_tokens);
  }

  PagedDecodeOptions DecodeOptions(Progress& progress) const {
    return {.temperature = options_.temperature,
            .max_batch_size = options_.max_batch_size,
            .prefill_chunk_tokens = options_.prefill_chunk_tokens,
            .progress = [&progress](int64_t done) { return progress(done); }};
  }

  absl::Status Draw(const Precision& sampler) {
    std::string lengths;
    for (int64_t length : lengths_) absl::StrAppend(&lengths, length, ",");
    const std::string path =
        store_.Path("samples-" + FileName(sampler),
                    Key(sampler, absl::StrCat("prompts=", TokensDigest(prompts_), " lengths=", lengths,
                                              " seed=", options_.seed, BatchKey())));
    TokenSet& set = sets_[sampler.Name()];
    set.drawn_by = sampler.Name();
    LogProbLists& log_mu = set.log_mu[sampler.Name()];
    auto kept = store_.LoadSamples(path, prompts_, lengths_, config_.vocab_size, &log_mu);
    if (kept.has_value()) {
      hooks_.log(absl::StrCat(sampler.Name(), " samples: kept in ", path));
      set.sequences = *std::move(kept);
    } else {
      if (absl::Status status = Load(sampler.dtype); !status.ok()) return status;
      int64_t most = 0;
      for (int64_t length : lengths_) most += length;
      Progress progress(hooks_, sampler.Name() + " samples", most);
      progress.SayAtMost();
      set.sequences = prompts_;
      const auto ops = MakeCpuOps(sampler.numerics, options_.threads);
      absl::Status status =
          DecodeDrawn(*weights_, *ops, DecodeOptions(progress),
                      {.seed = options_.seed, .stop_token_ids = stop_token_ids_}, lengths_, &set.sequences, &log_mu);
      if (!status.ok()) return Explain(status, sampler, "decode");
      progress.Ended();
      if (status = store_.SaveSamples(path, set.sequences, log_mu); !status.ok()) return status;
    }
    set.digest = TokensDigest(set.sequences);
    return absl::OkStatus();
  }

  // Every log mu and log pi that a pair needs, dtype by dtype, beginning with the one whose weights are in memory.
  absl::Status ScoreAll() {
    std::vector<DType> order = {DType::kBF16, DType::kF16, DType::kF32};
    if (weights_ != nullptr) {
      std::stable_partition(order.begin(), order.end(), [&](DType dtype) { return dtype == weights_->dtype; });
    }
    for (DType dtype : order) {
      for (const PrecisionPair& pair : options_.pairs) {
        TokenSet& set = SetOf(pair);
        if (pair.rollout.dtype == dtype) {
          if (absl::Status status = Score("mu", pair.rollout, set, &set.log_mu); !status.ok()) return status;
        }
        if (pair.learner.dtype == dtype) {
          if (absl::Status status = Score("pi", pair.learner, set, &set.log_pi); !status.ok()) return status;
        }
      }
    }
    weights_ = nullptr;
    return absl::OkStatus();
  }

  // `side` is mu (decode) or pi (training pass).
  absl::Status Score(const std::string& side, const Precision& precision, const TokenSet& set,
                     std::map<std::string, LogProbLists>* results) {
    if (results->contains(precision.Name())) return absl::OkStatus();
    const bool decodes = side == "mu";
    const std::string path = store_.Path(
        side + "-" + FileName(precision),
        Key(precision,
            absl::StrCat("side=", side, " tokens=", set.digest,
                         decodes ? BatchKey() : absl::StrCat(" micro_batch=", options_.micro_batch_tokens))));
    const std::string what = precision.Name() + (decodes ? " decode" : " training pass");
    if (auto kept = store_.LoadLogProbs(path, set.sequences); kept.has_value()) {
      hooks_.log(absl::StrCat(what, ": kept in ", path));
      (*results)[precision.Name()] = *std::move(kept);
      return absl::OkStatus();
    }
    if (absl::Status status = Load(precision.dtype); !status.ok()) return status;
    Progress progress(hooks_, what, ResponseTokens(set.sequences));
    const auto ops = MakeCpuOps(precision.numerics, options_.threads);
    LogProbLists log_probs;
    absl::Status status = decodes ? DecodeGiven(*weights_, *ops, DecodeOptions(progress), set.sequences, &log_probs)
                                  : TrainingPass(*ops, set.sequences, progress, &log_probs);
    if (!status.ok()) return Explain(status, precision, decodes ? "decode" : "training pass");
    progress.Ended();
    if (status = store_.SaveLogProbs(path, log_probs); !status.ok()) return status;
    (*results)[precision.Name()] = std::move(log_probs);
    return absl::OkStatus();
  }

  // The forward pass of training: whole sequences packed in their order, as many as micro_batch_tokens hold.
  absl::Status TrainingPass(Ops& ops, const std::vector<PromptedTokens>& sequences, Progress& progress,
                            LogProbLists* log_probs) {
    Decoder decoder(config_, weights_->dtype, &ops);
    log_probs->assign(sequences.size(), {});
    int64_t done = 0;
    for (size_t begin = 0, end = 0; begin < sequences.size(); begin = end) {
      PackedBatch batch;
      batch.cu_seqlens.push_back(0);
      for (; end < sequences.size(); ++end) {
        const PromptedTokens& sequence = sequences[end];
        const auto first = static_cast<int64_t>(batch.tokens.size());
        const auto size = static_cast<int64_t>(sequence.tokens.size());
        if (end > begin && first + size > options_.micro_batch_tokens) break;
        batch.tokens.insert(batch.tokens.end(), sequence.tokens.begin(), sequence.tokens.end());
        batch.cu_seqlens.push_back(static_cast<int32_t>(first + size));
        for (int64_t t = sequence.num_prompt; t < size; ++t) {
          batch.loss_rows.push_back(static_cast<int32_t>(first + t - 1));
          batch.targets.push_back(sequence.tokens[static_cast<size_t>(t)]);
        }
      }
      if (batch.targets.empty()) continue;
      std::vector<float> flat(batch.targets.size());
      decoder.ForwardPacked(*weights_, batch, options_.temperature, /*recompute=*/true, flat.data(), nullptr);
      auto at = flat.begin();
      for (size_t i = begin; i < end; ++i) {
        const auto next = at + static_cast<int64_t>(sequences[i].tokens.size()) - sequences[i].num_prompt;
        (*log_probs)[i].assign(at, next);
        at = next;
        for (size_t t = 0; t < (*log_probs)[i].size(); ++t) {
          if (std::isfinite((*log_probs)[i][t])) continue;
          return absl::DataLossError(
              absl::StrCat("sequence ", i + 1, ", response token ", t + 1, ": the log-prob is not finite"));
        }
      }
      done += static_cast<int64_t>(flat.size());
      if (!progress(done)) return absl::CancelledError("stopped");
    }
    return absl::OkStatus();
  }

  absl::Status Load(DType dtype) {
    if (hooks_.stopped()) return absl::CancelledError("stopped");
    if (weights_ != nullptr && weights_->dtype == dtype) return absl::OkStatus();
    weights_ = nullptr;  // before the others come
    hooks_.log(absl::StrCat("loading ", options_.model_dir, " in ", std::string(DTypeName(dtype))));
    LoadOptions load;
    load.dtype = dtype;
    load.threads = options_.threads;
    auto weights = LoadHfWeights(options_.model_dir, dtype, load);
    if (!weights.ok()) return weights.status();
    weights_ = *std::move(weights);
    return absl::OkStatus();
  }

  absl::Status Explain(const absl::Status& status, const Precision& precision, const std::string& pass) const {
    if (status.code() == absl::StatusCode::kCancelled) return status;
    return absl::Status(status.code(), absl::StrCat(precision.Name(), " ", pass, ": ", status.message(),
                                                    precision.dtype == DType::kF16
                                                        ? "; an activation may be beyond fp16's 65504: leave fp16 out"
                                                        : "; are the weights sound?"));
  }

  Json Report() {
    Json out;
    out["model"] = options_.model_dir;
    out["model_digest"] = model_digest_;
    out["source"] = !options_.tokens.empty() ? "tokens" : options_.own_samples ? "own" : "shared";
    if (options_.tokens.empty()) {
      out["prompts"] = options_.prompts;
      out["num_prompts"] = num_prompts_;
      out["n"] = options_.n;
      out["max_tokens"] = options_.max_tokens;
      out["lengths"] = options_.lengths;
      out["seed"] = options_.seed;
    } else {
      out["tokens"] = options_.tokens;
    }
    out["temperature"] = options_.temperature;
    out["max_batch_size"] = options_.max_batch_size;
    out["prefill_chunk_tokens"] = options_.prefill_chunk_tokens;
    out["micro_batch_tokens"] = options_.micro_batch_tokens;
    out["pairs"] = Json::array();
    for (const PrecisionPair& pair : options_.pairs) {
      const TokenSet& set = SetOf(pair);
      Json report = PairReport(pair, set.log_mu.at(pair.rollout.Name()), set.log_pi.at(pair.learner.Name()),
                               options_.max_token_points);
      report["drawn_by"] = set.drawn_by.empty() ? Json(nullptr) : Json(set.drawn_by);
      out["pairs"].push_back(std::move(report));
    }
    return out;
  }

  const MismatchOptions& options_;
  const MismatchHooks& hooks_;
  const MismatchStore store_;
  ModelConfig config_;
  std::string model_digest_;
  std::vector<int32_t> stop_token_ids_;
  size_t num_prompts_ = 0;
  std::vector<PromptedTokens> prompts_;   // n of each
  std::vector<int64_t> lengths_;          // the most response tokens of each
  std::map<std::string, TokenSet> sets_;  // by who drew it
  std::shared_ptr<const Weights> weights_;
};

}  // namespace

absl::StatusOr<Json> AnalyzeMismatch(const MismatchOptions& options, const MismatchHooks& hooks) {
  return Analysis(options, hooks).Run();
}

}  // namespace lockstep
