#include "rollout_server/kv_cache.h"

#include "engine/base/check.h"

namespace lockstep {

KvCache::KvCache(int64_t num_pages) : references_(static_cast<size_t>(num_pages), 0) {
  LOCKSTEP_CHECK(num_pages >= 0 && num_pages <= INT32_MAX, "number of pages");
  free_.reserve(static_cast<size_t>(num_pages));
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

bool KvCache::TailIsShared(const PageTable& table, int64_t cached) const {
  const int64_t index = cached / kPageTokens;
  return index < table.size() && references(table.pages_[static_cast<size_t>(index)]) > 1;
}

int64_t KvCache::PagesToAppend(const PageTable& table, int64_t cached, int64_t count) const {
  if (count <= 0) return 0;
  const int64_t added = PagesFor(cached + count) - table.size();
  return (added > 0 ? added : 0) + (TailIsShared(table, cached) ? 1 : 0);
}

KvCache::Appended KvCache::Append(PageTable& table, int64_t cached, int64_t count) {
  LOCKSTEP_CHECK(PagesFor(cached) <= table.size(), "cached positions have pages");
  Appended result;
  if (PagesToAppend(table, cached, count) > free_pages()) return result;
  result.ok = true;
  if (count <= 0) return result;
  if (TailIsShared(table, cached)) {
    int32_t& slot = table.pages_[static_cast<size_t>(cached / kPageTokens)];
    const int32_t fresh = Take();
    if (cached % kPageTokens != 0) result.copy = PageCopy{slot, fresh, cached % kPageTokens};
    Drop(slot);
    slot = fresh;
  }
  while (table.size() < PagesFor(cached + count)) table.pages_.push_back(Take());
  return result;
}

void KvCache::Share(const PageTable& from, int64_t tokens, PageTable& to) {
  LOCKSTEP_CHECK(to.pages_.empty(), "a table takes over shared pages only while it is empty");
  LOCKSTEP_CHECK(PagesFor(tokens) <= from.size(), "the donor holds the shared positions");
  for (int64_t i = 0; i < PagesFor(tokens); ++i) {
    const int32_t page = from.pages_[static_cast<size_t>(i)];
    ++references_[static_cast<size_t>(page)];
    to.pages_.push_back(page);
  }
}

void KvCache::Release(PageTable& table) {
  for (int32_t page : table.pages_) Drop(page);
  table.pages_.clear();
}

int64_t KvCache::ExclusivePages(const PageTable& table) const {
  int64_t count = 0;
  for (int32_t page : table.pages_) count += references(page) == 1 ? 1 : 0;
  return count;
}

int32_t KvCache::Take() {
  const int32_t page = free_.back();
  free_.pop_back();
  LOCKSTEP_CHECK(references_[static_cast<size_t>(page)] == 0, "a free page has no holder");
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void KvCache::Drop(int32_t page) {
  int32_t& count = references_[static_cast<size_t>(page)];
  LOCKSTEP_CHECK(count > 0, "a page is given back once per holder");
  if (--count == 0) free_.push_back(page);
}

}  // namespace lockstep
