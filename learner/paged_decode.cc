#include "learner/paged_decode.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/philox.h"
#include "engine/model/paged_logits.h"

namespace lockstep {
namespace {

int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// By inversion: the first token at which the cumulative mass passes a uniform draw.
int32_t DrawToken(const float* logits, int64_t vocab_size, float inverse_temperature, float lse, double uniform) {
  double mass = 0;
  int32_t likeliest = 0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    mass += std::exp(logits[i] * inverse_temperature - lse);
    if (mass > uniform) return static_cast<int32_t>(i);
    if (logits[i] > logits[likeliest]) likeliest = static_cast<int32_t>(i);
  }
  return likeliest;  // the masses' rounding left them below the draw
}

class PagedDecode {
 public:
  // draw null: every token is given. `lengths`: the most tokens that each sequence will have.
  PagedDecode(const Weights& weights, Ops& ops, const PagedDecodeOptions& options, const DrawOptions* draw,
              std::vector<int64_t> lengths, std::vector<PromptedTokens>* sequences,
              std::vector<std::vector<float>>* log_probs)
      : weights_(weights),
        ops_(ops),
        options_(options),
        draw_(draw),
        lengths_(std::move(lengths)),
        sequences_(*sequences),
        log_probs_(*log_probs),
        decoder_(weights.config, weights.dtype, &ops),
        cache_(weights.config, weights.dtype, MostPages()) {
    free_pages_.resize(static_cast<size_t>(cache_.num_pages()));
    std::iota(free_pages_.rbegin(), free_pages_.rend(), 0);
  }

  absl::Status Run() {
    log_probs_.assign(sequences_.size(), {});
    while (true) {
      Admit();
      if (running_.empty()) return absl::OkStatus();
      MakeBatch();
      if (absl::Status status = Step(); !status.ok()) return status;
      Retire();
      if (options_.progress && !options_.progress(done_tokens_)) return absl::CancelledError("stopped");
    }
  }

 private:
  struct Running {
    size_t sequence = 0;
    int64_t computed = 0;  // positions in the cache
    std::vector<int32_t> pages = {};
    bool ended = false;
  };

  // No more than max_batch_size run at a time, so the largest ones' pages are enough for any of them.
  int64_t MostPages() const {
    std::vector<int64_t> lengths = lengths_;
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    int64_t pages = 0;
    for (size_t i = 0; i < lengths.size() && static_cast<int64_t>(i) < options_.max_batch_size; ++i) {
      pages += PagesFor(lengths[i]);
    }
    return std::max<int64_t>(pages, 1);
  }

  void Admit() {
    while (next_ < sequences_.size() && static_cast<int64_t>(running_.size()) < options_.max_batch_size) {
      const size_t sequence = next_++;
      if (lengths_[sequence] <= sequences_[sequence].num_prompt) continue;  // no response
      Running running = {.sequence = sequence};
      for (int64_t i = PagesFor(lengths_[sequence]); i > 0; --i) {
        LOCKSTEP_CHECK(!free_pages_.empty(), "the cache has pages for every batch");
        running.pages.push_back(free_pages_.back());
        free_pages_.pop_back();
      }
      running_.push_back(std::move(running));
    }
  }

  // Decoding rows, and as much prefill as a step takes; at least one sequence's.
  void MakeBatch() {
    batch_ = {};
    owners_.clear();
    int64_t prefill_left = options_.prefill_chunk_tokens;
    for (Running& running : running_) {
      const PromptedTokens& sequence = sequences_[running.sequence];
      const bool decodes = running.computed >= sequence.num_prompt;
      const int64_t rows = decodes ? 1 : std::min(prefill_left, sequence.num_prompt - running.computed);
      if (!decodes) prefill_left -= rows;
      if (rows == 0) continue;
      const auto first = static_cast<int64_t>(batch_.tokens.size());
      for (int64_t position = running.computed; position < running.computed + rows; ++position) {
        batch_.tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
        batch_.positions.push_back(static_cast<int32_t>(position));
      }
      batch_.sequences.push_back({.row_begin = first,
                                  .row_count = rows,
                                  .position_begin = running.computed,
                                  .pages = std::span<const int32_t>(running.pages)});
      running.computed += rows;
      if (running.computed >= sequence.num_prompt) {
        batch_.output_rows.push_back(static_cast<int32_t>(first + rows - 1));
        owners_.push_back(&running);
      }
    }
  }

  absl::Status Step() {
    logits_.Forward(decoder_, weights_, batch_, cache_);
    for (PagedLogits::Chunk chunk; logits_.Next(decoder_, weights_, &chunk);) {
      for (int64_t row = 0; row < chunk.count; ++row) {
        absl::Status status = TakeRow(*owners_[static_cast<size_t>(chunk.first + row)], chunk.row(row));
        if (!status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  // The next token of a sequence, given or drawn, and its log-prob.
  absl::Status TakeRow(Running& running, const float* logits) {
    PromptedTokens& sequence = sequences_[running.sequence];
    std::vector<float>& log_probs = log_probs_[running.sequence];
    const int64_t vocab_size = weights_.config.vocab_size;
    const float inverse_temperature = 1.0f / options_.temperature;
    const float lse = ops_.LogSumExp(logits, vocab_size, options_.temperature);
    const auto position = static_cast<size_t>(running.computed);
    if (draw_ != nullptr && std::isfinite(lse)) {
      const auto words = Philox4x32(draw_->seed, running.sequence, position);
      const double uniform = (words[0] + 0.5) * 0x1p-32;
      sequence.tokens.push_back(DrawToken(logits, vocab_size, inverse_temperature, lse, uniform));
    }
    const float log_prob = std::isfinite(lse) ? logits[sequence.tokens[position]] * inverse_temperature - lse : lse;
    if (!std::isfinite(log_prob)) {
      return absl::DataLossError(absl::StrCat("sequence ", running.sequence + 1, ", response token ",
                                              log_probs.size() + 1, ": the log-prob is not finite"));
    }
    log_probs.push_back(log_prob);
    ++done_tokens_;
    running.ended = running.computed + 1 == lengths_[running.sequence];
    if (draw_ != nullptr) {
      const std::vector<int32_t>& stops = draw_->stop_token_ids;
      running.ended |= std::find(stops.begin(), stops.end(), sequence.tokens.back()) != stops.end();
    }
    return absl::OkStatus();
  }

  void Retire() {
    for (Running& running : running_) {
      if (running.ended) free_pages_.insert(free_pages_.end(), running.pages.rbegin(), running.pages.rend());
    }
    std::erase_if(running_, [](const Running& running) { return running.ended; });
  }

  const Weights& weights_;
  Ops& ops_;
  const PagedDecodeOptions& options_;
  const DrawOptions* const draw_;
  const std::vector<int64_t> lengths_;
  std::vector<PromptedTokens>& sequences_;
  std::vector<std::vector<float>>& log_probs_;
  Decoder decoder_;
  const KvStorage cache_;
  std::vector<int32_t> free_pages_;
  std::vector<Running> running_;  // by age
  size_t next_ = 0;               // sequence to admit
  int64_t done_tokens_ = 0;
  // Scratch of a step.
  PagedBatch batch_;
  std::vector<Running*> owners_;  // of output rows
  PagedLogits logits_;
};

}  // namespace

absl::Status DecodeGiven(const Weights& weights, Ops& ops, const PagedDecodeOptions& options,
                         const std::vector<PromptedTokens>& sequences, std::vector<std::vector<float>>* log_probs) {
  std::vector<int64_t> lengths;
  for (const PromptedTokens& sequence : sequences) lengths.push_back(static_cast<int64_t>(sequence.tokens.size()));
  std::vector<PromptedTokens> copy = sequences;
  return PagedDecode(weights, ops, options, nullptr, std::move(lengths), &copy, log_probs).Run();
}

absl::Status DecodeDrawn(const Weights& weights, Ops& ops, const PagedDecodeOptions& options, const DrawOptions& draw,
                         const std::vector<int64_t>& max_tokens, std::vector<PromptedTokens>* sequences,
                         std::vector<std::vector<float>>* log_probs) {
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < sequences->size(); ++i) {
    LOCKSTEP_CHECK((*sequences)[i].num_prompt == static_cast<int64_t>((*sequences)[i].tokens.size()),
                   "a sequence to draw holds its prompt alone");
    lengths.push_back((*sequences)[i].num_prompt + max_tokens[i]);
  }
  return PagedDecode(weights, ops, options, &draw, std::move(lengths), sequences, log_probs).Run();
}

}  // namespace lockstep
