// Tests: a backend over the CPU's that launches ahead and computes as late as a device may.
#ifndef LOCKSTEP_ROLLOUT_SERVER_LATE_BACKEND_H_
#define LOCKSTEP_ROLLOUT_SERVER_LATE_BACKEND_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "rollout_server/kv_cache.h"
#include "rollout_server/step_backend.h"

namespace lockstep {

// Nothing is computed before it is collected, in the order of the calls. Checks what a device relies on: which steps
// are launched beside which, and that no page which a step in flight may still write to has gone to somebody else.
class LateBackend final : public StepBackend {
 public:
  explicit LateBackend(std::unique_ptr<StepBackend> backend) : backend_(std::move(backend)) {}
  int64_t num_pages() const override { return backend_->num_pages(); }
  int64_t max_sequence_tokens() const override { return backend_->max_sequence_tokens(); }
  bool launches_ahead() const override { return true; }
  absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) override { return backend_->Prepare(weights); }

  absl::Status Launch(const WeightSet& weights, const StepInput& input) override {
    if (good_ < 0) return absl::InternalError("the device is lost");
    EXPECT_LT(in_flight_, 2);
    EXPECT_EQ(input.from.size(), in_flight_ == 0 ? 0 : input.batch.tokens.size());
    Work step;
    step.weights = &weights;
    step.batch = input.batch;
    step.draws.assign(input.draws.begin(), input.draws.end());
    step.from.assign(input.from.begin(), input.from.end());
    step.wants_routing = input.wants_routing;
    step.decodes_alone = step.draws.size() == step.batch.sequences.size();
    for (PagedSequence& sequence : step.batch.sequences) {
      step.decodes_alone &= sequence.row_count == 1;
      step.pages.emplace_back(sequence.pages.begin(), sequence.pages.end());
    }
    if (in_flight_ > 0) {
      EXPECT_TRUE(step.decodes_alone && Flying().decodes_alone);
      for (size_t i = 0; i < step.from.size(); ++i) ExpectMine(step.Written(i), step.from[i]);
    }
    work_.push_back(std::move(step));
    ++in_flight_;
    return absl::OkStatus();
  }
  absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) override {
    if (in_flight_ == 0) return backend_->CopyPage(from, to, tokens);
    ExpectMine(to, -1);
    Work copy;
    copy.copy = {from, to, tokens};
    work_.push_back(std::move(copy));
    return absl::OkStatus();
  }
  absl::Status Collect(StepOutput* output) override {
    if (good_-- <= 0) return absl::InternalError("the device is lost");
    for (; work_.front().weights == nullptr; work_.pop_front()) {
      const KvCache::PageCopy& copy = work_.front().copy;
      EXPECT_TRUE(backend_->CopyPage(copy.from, copy.to, copy.tokens).ok());
    }
    Work step = std::move(work_.front());
    work_.pop_front();
    --in_flight_;
    for (size_t i = 0; i < step.pages.size(); ++i) step.batch.sequences[i].pages = step.pages[i];
    for (size_t i = 0; i < step.from.size(); ++i) {
      if (step.from[i] >= 0) step.batch.tokens[i] = last_draws_.at(static_cast<size_t>(step.from[i])).token;
    }
    absl::Status status = backend_->Launch(*step.weights, {step.batch, step.draws, step.wants_routing});
    if (status.ok()) status = backend_->Collect(output);
    last_draws_ = output->draws;
    return status;
  }
  // So many steps can be collected; then the device is lost.
  void LoseAfter(int64_t steps) { good_ = steps; }

 private:
  struct Work {
    const WeightSet* weights = nullptr;  // null: a copy
    KvCache::PageCopy copy;
    PagedBatch batch;
    std::vector<std::vector<int32_t>> pages;
    std::vector<DrawRequest> draws;
    std::vector<int32_t> from;
    bool wants_routing = false, decodes_alone = false;

    int32_t Written(size_t row) const {
      return pages[row][static_cast<size_t>(batch.sequences[row].position_begin / kPageTokens)];
    }
  };
  const Work& Flying() const {
    return *std::find_if(work_.begin(), work_.end(), [](const Work& work) { return work.weights != nullptr; });
  }
  // `page` is about to be written for a row that goes on from row `from` of the step in flight.
  void ExpectMine(int32_t page, int32_t from) const {
    const Work& flying = Flying();
    for (size_t row = 0; row < flying.pages.size(); ++row) {
      EXPECT_TRUE(flying.Written(row) != page || static_cast<int32_t>(row) == from)
          << "page " << page << " is row " << row << "'s of the step in flight";
    }
  }

  const std::unique_ptr<StepBackend> backend_;
  std::deque<Work> work_;
  int in_flight_ = 0;
  int64_t good_ = INT64_MAX;
  std::vector<Draw> last_draws_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_LATE_BACKEND_H_
