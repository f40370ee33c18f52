#include "rollout_server/kv_cache.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

TEST(KvCacheTest, AppendTakesAPageOnlyWhenABoundaryIsCrossed) {
  KvCache cache(4);
  PageTable table;
  EXPECT_TRUE(cache.Append(table, 0, 1).ok);
  EXPECT_EQ(cache.used_pages(), 1);
  for (int64_t cached = 1; cached < kPageTokens; ++cached) {
    EXPECT_EQ(cache.PagesToAppend(table, cached, 1), 0);
    EXPECT_TRUE(cache.Append(table, cached, 1).ok);
  }
  EXPECT_EQ(cache.used_pages(), 1);
  EXPECT_TRUE(cache.Append(table, kPageTokens, 1).ok);
  EXPECT_EQ(cache.used_pages(), 2);
  cache.Release(table);
  EXPECT_EQ(cache.free_pages(), 4);
}

TEST(KvCacheTest, RefusesWithoutChangingAnything) {
  KvCache cache(2);
  PageTable table;
  EXPECT_FALSE(cache.Append(table, 0, 3 * kPageTokens).ok);
  EXPECT_EQ(table.size(), 0);
  EXPECT_EQ(cache.free_pages(), 2);
  EXPECT_TRUE(cache.Append(table, 0, 2 * kPageTokens).ok);
  EXPECT_FALSE(cache.Append(table, 2 * kPageTokens, 1).ok);
  EXPECT_EQ(table.size(), 2);
  cache.Release(table);
  EXPECT_EQ(cache.used_pages(), 0);
}

TEST(KvCacheTest, SamplesShareThePromptAndCopyItsLastPartialPage) {
  KvCache cache(16);
  PageTable prompt;
  const int64_t prompt_tokens = 2 * kPageTokens + 5;
  ASSERT_TRUE(cache.Append(prompt, 0, prompt_tokens).ok);
  std::vector<PageTable> samples(3);
  for (PageTable& sample : samples) cache.Share(prompt, prompt_tokens, sample);
  EXPECT_EQ(cache.used_pages(), 3);
  EXPECT_EQ(cache.references(prompt.pages()[0]), 4);
  for (PageTable& sample : samples) {
    const KvCache::Appended appended = cache.Append(sample, prompt_tokens, 1);
    ASSERT_TRUE(appended.ok);
    ASSERT_TRUE(appended.copy.has_value());
    EXPECT_EQ(appended.copy->from, prompt.pages()[2]);
    EXPECT_EQ(appended.copy->to, sample.pages()[2]);
    EXPECT_EQ(appended.copy->tokens, 5);
    EXPECT_EQ(sample.pages()[0], prompt.pages()[0]);
    EXPECT_EQ(sample.pages()[1], prompt.pages()[1]);
  }
  EXPECT_EQ(cache.used_pages(), 6);
  // The last holder writes in place.
  const KvCache::Appended in_place = cache.Append(prompt, prompt_tokens, 1);
  EXPECT_TRUE(in_place.ok);
  EXPECT_FALSE(in_place.copy.has_value());
  EXPECT_EQ(cache.ExclusivePages(prompt), 1);
  for (PageTable& sample : samples) cache.Release(sample);
  EXPECT_EQ(cache.ExclusivePages(prompt), 3);
  cache.Release(prompt);
  EXPECT_EQ(cache.used_pages(), 0);
}

TEST(KvCacheTest, AFullSharedPageIsNeverCopied) {
  KvCache cache(4);
  PageTable prompt, sample;
  ASSERT_TRUE(cache.Append(prompt, 0, kPageTokens).ok);
  cache.Share(prompt, kPageTokens, sample);
  const KvCache::Appended appended = cache.Append(sample, kPageTokens, 1);
  EXPECT_TRUE(appended.ok);
  EXPECT_FALSE(appended.copy.has_value());
  EXPECT_EQ(sample.pages()[0], prompt.pages()[0]);
  EXPECT_EQ(cache.used_pages(), 2);
  cache.Release(prompt);
  cache.Release(sample);
  EXPECT_EQ(cache.used_pages(), 0);
}

TEST(KvCacheTest, AnyHistoryOfSharesAppendsAndReleasesEndsWithAllPagesFree) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::mt19937_64 random(seed);
    KvCache cache(40);
    struct Holder {
      PageTable table;
      int64_t cached = 0;
    };
    std::vector<Holder> holders(12);
    for (int step = 0; step < 500; ++step) {
      Holder& holder = holders[random() % holders.size()];
      switch (random() % 4) {
        case 0:
          cache.Release(holder.table);
          holder.cached = 0;
          break;
        case 1: {
          Holder& donor = holders[random() % holders.size()];
          if (&donor == &holder || holder.table.size() > 0 || donor.cached == 0) break;
          holder.cached = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(donor.cached));
          cache.Share(donor.table, holder.cached, holder.table);
          break;
        }
        default: {
          const int64_t count = 1 + static_cast<int64_t>(random() % 20);
          const int64_t needed = cache.PagesToAppend(holder.table, holder.cached, count);
          const int64_t free_before = cache.free_pages();
          const bool ok = cache.Append(holder.table, holder.cached, count).ok;
          ASSERT_EQ(ok, needed <= free_before) << "seed " << seed;
          if (ok) {
            // A dropped shared page had another holder, so exactly `needed` pages left the pool.
            ASSERT_EQ(free_before - cache.free_pages(), needed) << "seed " << seed;
            holder.cached += count;
            for (int64_t p = (holder.cached - count) / kPageTokens; p < PagesFor(holder.cached); ++p) {
              ASSERT_EQ(cache.references(holder.table.pages()[static_cast<size_t>(p)]), 1);
            }
          }
        }
      }
    }
    for (Holder& holder : holders) cache.Release(holder.table);
    ASSERT_EQ(cache.used_pages(), 0) << "seed " << seed;
    ASSERT_EQ(cache.free_pages(), cache.num_pages()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace lockstep
