// The KV cache as bookkeeping: a pool of pages with reference counts. Which bytes a page has is KvStorage's matter
// (engine/model/decoder.h); here is only who holds it. A page is writable by a sequence when it is the only holder; an
// append into a page that others hold as well takes a fresh page and asks the caller to copy the part in use
// (copy-on-write of the last, partly filled prompt page that the samples of a group share).
// One thread. Every page is either free or counted: used_pages() is 0 once all tables are released.
#ifndef LOCKSTEP_ROLLOUT_SERVER_KV_CACHE_H_
#define LOCKSTEP_ROLLOUT_SERVER_KV_CACHE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/kernels/ops.h"

namespace lockstep {

// Pages of `tokens` positions.
constexpr int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// The pages of one sequence: pages()[i] holds positions [16 i, 16 i + 16). Filled and emptied by KvCache alone.
class PageTable {
 public:
  std::span<const int32_t> pages() const { return pages_; }
  int64_t size() const { return static_cast<int64_t>(pages_.size()); }

 private:
  friend class KvCache;
  std::vector<int32_t> pages_;
};

class KvCache {
 public:
  struct PageCopy {
    int32_t from = 0;
    int32_t to = 0;
    int64_t tokens = 0;  // positions in use at the head of the page
  };
  struct Appended {
    bool ok = false;  // false: not enough free pages; nothing was changed
    std::optional<PageCopy> copy;
  };

  explicit KvCache(int64_t num_pages);

  // Fresh pages that Append(table, cached, count) would take.
  int64_t PagesToAppend(const PageTable& table, int64_t cached, int64_t count) const;
  // Makes positions [cached, cached + count) writable: pages are added, and a shared page that holds `cached` is
  // replaced by a fresh one, to be filled as `copy` says before anything is written.
  Appended Append(PageTable& table, int64_t cached, int64_t count);
  // `to` (empty) comes to hold the pages of the first `tokens` positions of `from` as well.
  void Share(const PageTable& from, int64_t tokens, PageTable& to);
  // Gives all pages of the table back.
  void Release(PageTable& table);

  // Pages that only this table holds: what Release would free.
  int64_t ExclusivePages(const PageTable& table) const;
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }
  int64_t num_pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t used_pages() const { return num_pages() - free_pages(); }

 private:
  int32_t Take();
  void Drop(int32_t page);
  bool TailIsShared(const PageTable& table, int64_t cached) const;

  std::vector<int32_t> references_;  // [num_pages]
  std::vector<int32_t> free_;        // stack
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_KV_CACHE_H_
