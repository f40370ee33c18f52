#include "rollout_server/scheduler.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

using enum SequenceState;
using Action = StepPlan::Action;

SequenceView Waiting(uint64_t group, int64_t prompt) {
  return {.state = kWaiting, .weights_id = 1, .group = group, .fresh = true, .prompt = prompt, .total = prompt};
}

SequenceView Decoding(uint64_t group, int64_t prompt, int64_t response, int64_t append_pages = 0) {
  const int64_t cached = prompt + response - 1;
  return {.state = kDecoding,
          .weights_id = 1,
          .group = group,
          .prompt = prompt,
          .total = prompt + response,
          .cached = cached,
          .pages_held = PagesFor(cached),
          .exclusive_pages = PagesFor(cached),
          .append_pages = append_pages};
}

constexpr SchedulerLimits kLimits{.max_decode_rows = 4, .prefill_chunk_tokens = 32};

TEST(SchedulerTest, DecodeRowsComeBeforePrefill) {
  const std::vector<SequenceView> views = {Waiting(1, 20), Decoding(2, 10, 3)};
  const StepPlan plan = PlanStep(views, 100, kLimits, 0);
  ASSERT_EQ(plan.action, Action::kRun);
  ASSERT_EQ(plan.entries.size(), 2u);
  EXPECT_EQ(plan.entries[0].sequence, 1u);
  EXPECT_TRUE(plan.entries[0].gives_token);
  EXPECT_EQ(plan.entries[1].sequence, 0u);
  EXPECT_TRUE(plan.entries[1].admitted);
  EXPECT_EQ(plan.entries[1].count, 20);
  EXPECT_TRUE(plan.entries[1].gives_token);
}

TEST(SchedulerTest, PrefillIsCutIntoChunks) {
  std::vector<SequenceView> views = {Waiting(1, 70)};
  const StepPlan first = PlanStep(views, 100, kLimits, 0);
  ASSERT_EQ(first.entries.size(), 1u);
  EXPECT_EQ(first.entries[0].count, 32);
  EXPECT_FALSE(first.entries[0].gives_token);
  views[0].state = kPrefill;
  views[0].cached = 64;
  const StepPlan last = PlanStep(views, 100, kLimits, 0);
  EXPECT_EQ(last.entries[0].begin, 64);
  EXPECT_EQ(last.entries[0].count, 6);
  EXPECT_TRUE(last.entries[0].gives_token);
}

TEST(SchedulerTest, OnePrefillServesTheSamplesOfAGroup) {
  const std::vector<SequenceView> views = {Waiting(1, 5), Waiting(1, 5), Waiting(1, 5), Waiting(2, 5)};
  const StepPlan plan = PlanStep(views, 100, kLimits, 0);
  ASSERT_EQ(plan.entries.size(), 2u);
  EXPECT_EQ(plan.entries[0].sequence, 0u);
  EXPECT_EQ(plan.entries[1].sequence, 3u);
}

TEST(SchedulerTest, AnEvictedSampleTakesThePromptFromASibling) {
  SequenceView evicted = Decoding(1, 40, 5);
  evicted.state = kEvicted;
  evicted.cached = evicted.pages_held = evicted.exclusive_pages = 0;
  const std::vector<SequenceView> views = {Decoding(1, 40, 8), evicted};
  const StepPlan plan = PlanStep(views, 100, kLimits, 0);
  ASSERT_EQ(plan.entries.size(), 2u);
  EXPECT_EQ(plan.entries[1].shared, 32);
  EXPECT_EQ(plan.entries[1].donor, 0u);
  EXPECT_EQ(plan.entries[1].begin, 32);
  EXPECT_EQ(plan.entries[1].count, 13);
}

TEST(SchedulerTest, ACacheOfOldWeightsIsNeverShared) {
  SequenceView evicted = Decoding(1, 40, 5);
  evicted.state = kEvicted;
  evicted.cached = evicted.pages_held = evicted.exclusive_pages = 0;
  std::vector<SequenceView> views = {Decoding(1, 40, 8), evicted};
  views[0].stale_kv_cache = true;
  EXPECT_EQ(PlanStep(views, 100, kLimits, 0).entries[1].shared, 0);
  views[0].stale_kv_cache = false;
  views[0].weights_id = 0;
  EXPECT_EQ(PlanStep(views, 100, kLimits, 0).entries[0].shared, 0);
}

TEST(SchedulerTest, TheYoungestHolderGivesItsPagesToAnOlderRow) {
  const std::vector<SequenceView> views = {Decoding(1, 15, 2, 1), Decoding(2, 10, 3), Decoding(3, 10, 3),
                                           Waiting(4, 5)};
  const StepPlan plan = PlanStep(views, 0, kLimits, 0);
  ASSERT_EQ(plan.action, Action::kEvict);
  EXPECT_EQ(plan.victim, 2u);
}

TEST(SchedulerTest, AYoungerRowNeverEvictsAnOlderOne) {
  const std::vector<SequenceView> views = {Decoding(1, 10, 3), Decoding(2, 15, 2, 1)};
  const StepPlan plan = PlanStep(views, 0, kLimits, 0);
  ASSERT_EQ(plan.action, Action::kRun);
  ASSERT_EQ(plan.entries.size(), 1u);
  EXPECT_EQ(plan.entries[0].sequence, 0u);
}

TEST(SchedulerTest, ABlockedConsumerIsNotDecodedAndLosesItsPagesFirst) {
  std::vector<SequenceView> views = {Decoding(1, 10, 3), Decoding(2, 15, 2, 1), Decoding(3, 10, 3)};
  views[0].blocked = true;
  const StepPlan evict = PlanStep(views, 0, kLimits, 0);
  ASSERT_EQ(evict.action, Action::kEvict);
  EXPECT_EQ(evict.victim, 0u);
  const StepPlan run = PlanStep(views, 1, kLimits, 0);
  ASSERT_EQ(run.action, Action::kRun);
  for (const BatchEntry& entry : run.entries) EXPECT_NE(entry.sequence, 0u);
}

TEST(SchedulerTest, AdmissionDoesNotOvertake) {
  const std::vector<SequenceView> views = {Decoding(1, 10, 3), Waiting(2, 320), Waiting(3, 5)};
  const StepPlan plan = PlanStep(views, 10, kLimits, 0);
  ASSERT_EQ(plan.entries.size(), 1u);
  EXPECT_EQ(plan.entries[0].sequence, 0u);
}

TEST(SchedulerTest, WeightSetsNeverShareAStepAndTakeTurns) {
  std::vector<SequenceView> views = {Decoding(1, 10, 3), Decoding(2, 10, 3), Decoding(3, 10, 3)};
  views[1].weights_id = 2;
  uint64_t last = 0;
  std::vector<uint64_t> turns;
  for (int step = 0; step < 4; ++step) {
    const StepPlan plan = PlanStep(views, 10, kLimits, last);
    ASSERT_EQ(plan.action, Action::kRun);
    for (const BatchEntry& entry : plan.entries) EXPECT_EQ(views[entry.sequence].weights_id, plan.weights_id);
    turns.push_back(last = plan.weights_id);
  }
  EXPECT_EQ(turns, (std::vector<uint64_t>{1, 2, 1, 2}));
}

TEST(SchedulerTest, IdleNamesItsReason) {
  EXPECT_EQ(PlanStep({}, 10, kLimits, 0).action, Action::kIdle);
  EXPECT_EQ(std::string(PlanStep({}, 10, kLimits, 0).reason), "nothing to do");
}

// The engine without arithmetic: executes plans over a real page pool.
class Simulation {
 public:
  // longest: of prompt and response together.
  Simulation(uint64_t seed, int64_t pages, int64_t longest) : random_(seed), cache_(pages) {
    const size_t groups = 3 + random_() % 20;
    for (size_t g = 0; g < groups; ++g) {
      const int64_t prompt = 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(longest * 3 / 4));
      const size_t n = 1 + random_() % 6;
      for (size_t i = 0; i < n; ++i) {
        Item item;
        item.view = Waiting(g, prompt);
        item.view.weights_id = 1 + g % 2;
        item.response = 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(longest - prompt + 1));
        item.response = std::min(item.response, longest - prompt);
        items_.push_back(std::move(item));
      }
    }
  }

  // Runs to the end; the number of steps, or -1 if the bound was reached.
  int Run() {
    int64_t work = 0;
    for (const Item& item : items_) work += item.view.prompt + item.response;
    uint64_t last = 0;
    for (int step = 0; step < 50 * work + 1000; ++step) {
      const std::vector<SequenceView> views = Views();
      if (views.empty()) return step;
      const StepPlan plan = PlanStep(views, cache_.free_pages(), kLimits, last);
      if (plan.action == Action::kIdle) return -1;
      if (plan.action == Action::kEvict) {
        Evict(live_[plan.victim]);
        continue;
      }
      last = plan.weights_id;
      Execute(plan);
    }
    return -1;
  }

  int64_t used_pages() const { return cache_.used_pages(); }
  int evictions() const { return evictions_; }
  int64_t most_rows() const { return most_rows_; }

 private:
  struct Item {
    SequenceView view;
    PageTable pages;
    int64_t response = 0;
  };

  std::vector<SequenceView> Views() {
    std::vector<SequenceView> views;
    live_.clear();
    for (Item& item : items_) {
      if (item.view.state == kFinished) continue;
      SequenceView& view = item.view;
      view.pages_held = item.pages.size();
      view.exclusive_pages = cache_.ExclusivePages(item.pages);
      view.append_pages = view.state == kDecoding ? cache_.PagesToAppend(item.pages, view.cached, 1) : 0;
      views.push_back(view);
      live_.push_back(&item);
    }
    return views;
  }

  void Evict(Item* item) {
    ASSERT_GT(item->pages.size(), 0);
    cache_.Release(item->pages);
    item->view.cached = 0;
    item->view.state = kEvicted;
    ++evictions_;
  }

  void Execute(const StepPlan& plan) {
    int64_t rows = 0, prefill_tokens = 0;
    for (const BatchEntry& entry : plan.entries) {
      Item& item = *live_[entry.sequence];
      if (entry.shared > 0) cache_.Share(live_[entry.donor]->pages, entry.shared, item.pages);
      const int64_t reserve = entry.admitted ? item.view.total - entry.shared : entry.count;
      ASSERT_TRUE(cache_.Append(item.pages, entry.begin, reserve).ok) << "the plan's pages exist";
    }
    for (const BatchEntry& entry : plan.entries) {
      Item& item = *live_[entry.sequence];
      if (item.view.state == kDecoding) {
        ++rows;
      } else {
        prefill_tokens += entry.count;
        item.view.state = kPrefill;
      }
      item.view.cached = entry.begin + entry.count;
      if (entry.gives_token) Token(item);
    }
    ASSERT_LE(rows, kLimits.max_decode_rows);
    ASSERT_LE(prefill_tokens, kLimits.prefill_chunk_tokens);
    most_rows_ = std::max(most_rows_, rows);
  }

  void Token(Item& item) {
    if (item.view.fresh) {
      for (Item& sibling : items_) {
        if (&sibling == &item || sibling.view.group != item.view.group || !sibling.view.fresh) continue;
        if (sibling.view.state != kWaiting) continue;
        cache_.Share(item.pages, item.view.prompt, sibling.pages);
        sibling.view.cached = sibling.view.prompt;
        Grow(sibling);
      }
    }
    Grow(item);
  }

  void Grow(Item& item) {
    item.view.fresh = false;
    item.view.state = kDecoding;
    ++item.view.total;
    if (item.view.total - item.view.prompt == item.response) {
      item.view.state = kFinished;
      cache_.Release(item.pages);
    }
  }

  std::mt19937_64 random_;
  KvCache cache_;
  std::vector<Item> items_;
  std::vector<Item*> live_;
  int evictions_ = 0;
  int64_t most_rows_ = 0;
};

TEST(SchedulerTest, EveryMixtureFinishesOnATinyPoolWithAllPagesFreeAfter) {
  int evictions = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const int64_t pages = 2 + static_cast<int64_t>(seed % 12);
    Simulation simulation(seed, pages, pages * kPageTokens);
    ASSERT_GE(simulation.Run(), 0) << "stood still at seed " << seed;
    EXPECT_EQ(simulation.used_pages(), 0) << "seed " << seed;
    evictions += simulation.evictions();
  }
  EXPECT_GT(evictions, 100) << "the pools were too large to prove anything";
}

TEST(SchedulerTest, ALargePoolEvictsNobodyAndFillsTheBatch) {
  Simulation simulation(5, 2000, 200);
  ASSERT_GE(simulation.Run(), 0);
  EXPECT_EQ(simulation.evictions(), 0);
  EXPECT_EQ(simulation.most_rows(), kLimits.max_decode_rows);
}

}  // namespace
}  // namespace lockstep
