#include "engine/kernels/cuda/emulation/races.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lockstep::emulation::races {
namespace {

constexpr unsigned kWarp = 32, kThreadsMax = 1024;
// Memory is followed by units of two bytes, an access of one byte as half of one.
constexpr uintptr_t kUnit = 2, kPageUnits = 2048;
constexpr size_t kCopyBytes = 16;

struct Touch {
  uint32_t block = 0;
  uint16_t thread = 0;
  uint16_t halves = 0;    // of the unit, a bit each; 0: no touch
  uint32_t barriers = 0;  // that the thread had passed
  uint32_t clock = 0;     // of the thread among its warp
  const void* at = nullptr;
};

struct Unit {
  uint32_t grid = 0;
  bool copying = false;  // an asynchronous copy is on its way here
  Touch write;
  std::array<Touch, 2> reads;  // the last ones, of two threads
};

struct Page {
  bool shared = false;
  std::array<Unit, kPageUnits> units;
};

struct Thread {
  bool inside = false;  // the kernel
  bool awaited = true;
  uint32_t barriers = 0;
  // What the thread knows of its warp: entry l is the clock of lane l up to which it is ordered behind it.
  std::array<uint32_t, kWarp> clocks = {};
};

struct Range {
  uintptr_t begin, end;
  bool Has(uintptr_t address) const { return address >= begin && address < end; }
};

struct State {
  uint32_t grid = 0, block = 0;
  unsigned thread = 0;
  bool enabled = false, running = false, busy = false, early = false;
  Range stack = {0, 0};
  std::array<Thread, kThreadsMax> threads;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  std::pair<uintptr_t, Page*> last_page = {0, nullptr};
  std::vector<Range> modules;  // writable segments: where __shared__ variables are
};

State& Get() {
  static State state;
  return state;
}

int AddModule(dl_phdr_info* info, size_t, void* modules) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD || (header.p_flags & PF_W) == 0) continue;
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    static_cast<std::vector<Range>*>(modules)->push_back({begin, begin + header.p_memsz});
  }
  return 0;
}

// threadIdx and its like are the emulation's: thread-local variables, which lie below the thread pointer.
bool IsThreadLocal(const void* address) {
  constexpr uintptr_t kBytes = 16384;
  const auto end = reinterpret_cast<uintptr_t>(__builtin_thread_pointer()), at = reinterpret_cast<uintptr_t>(address);
  return at < end && end - at <= kBytes;
}

bool IsShared(const State& s, uintptr_t address) {
  return std::any_of(s.modules.begin(), s.modules.end(), [&](const Range& range) { return range.Has(address); });
}

Page& PageOf(State& s, uintptr_t unit) {
  const uintptr_t page = unit / kPageUnits;
  if (s.last_page.second == nullptr || s.last_page.first != page) {
    auto& found = s.pages[page];
    if (found == nullptr) {
      found = std::make_unique<Page>();
      found->shared = IsShared(s, unit * kUnit);
    }
    s.last_page = {page, found.get()};
  }
  return *s.last_page.second;
}

Touch Now(const State& s, uint16_t halves, const void* at) {
  const Thread& self = s.threads[s.thread];
  return {s.block, static_cast<uint16_t>(s.thread), halves, self.barriers, self.clocks[s.thread % kWarp], at};
}

// Whether the running thread comes after `before`, or is the same.
bool Ordered(const State& s, const Touch& before, bool shared) {
  if (before.block != s.block) return shared;  // another block's shared memory is another memory
  if (before.thread == s.thread) return true;
  const Thread& self = s.threads[s.thread];
  if (before.barriers < self.barriers) return true;
  return before.thread / kWarp == s.thread / kWarp && self.clocks[before.thread % kWarp] >= before.clock;
}

void Where(const void* at, char* text, size_t size) {
  Dl_info info = {};
  if (at != nullptr && dladdr(at, &info) != 0 && info.dli_fname != nullptr) {
    std::snprintf(text, size, "%s+0x%zx", info.dli_fname,
                  static_cast<size_t>(static_cast<const char*>(at) - static_cast<const char*>(info.dli_fbase)));
  } else {
    std::snprintf(text, size, "an asynchronous copy");
  }
}

[[noreturn]] void Report(const State& s, const Touch& before, bool wrote, bool write, bool shared, const void* at) {
  char first[512], second[512];
  Where(before.at, first, sizeof(first));
  Where(at, second, sizeof(second));
  std::fprintf(stderr,
               "a race in %s memory: block %u thread %u %s (%s), then block %u thread %u %s (%s) with no barrier "
               "between\n",
               shared ? "shared" : "global", before.block, static_cast<unsigned>(before.thread),
               wrote ? "writes" : "reads", first, s.block, s.thread, write ? "writes" : "reads", second);
  std::abort();
}

void Follow(State& s, Unit& unit, const Touch& now, bool write, bool shared) {
  if (!shared && !s.threads[s.thread].awaited) {
    char where[512];
    Where(now.at, where, sizeof(where));
    std::fprintf(stderr, "block %u thread %u %s global memory before AwaitPrevious (%s)\n", s.block, s.thread,
                 write ? "writes" : "reads", where);
    std::abort();
  }
  if (unit.grid != s.grid || (shared && unit.write.halves != 0 && unit.write.block != s.block)) {
    unit = Unit{.grid = s.grid, .copying = false, .write = {}, .reads = {}};
  }
  if (unit.copying) Report(s, unit.write, true, write, shared, now.at);
  if ((unit.write.halves & now.halves) != 0 && !Ordered(s, unit.write, shared)) {
    Report(s, unit.write, true, write, shared, now.at);
  }
  if (!write) {
    Touch& slot = unit.reads[0].halves == 0 || unit.reads[0].thread == now.thread ? unit.reads[0] : unit.reads[1];
    if (&slot == &unit.reads[1]) std::swap(unit.reads[0], unit.reads[1]);  // the last but one stays
    unit.reads[0] = now;
    return;
  }
  for (Touch& read : unit.reads) {
    if ((read.halves & now.halves) != 0 && !Ordered(s, read, shared)) Report(s, read, false, write, shared, now.at);
    read = {};
  }
  unit.write = now;
}

// Calls body(unit, halves, shared) for the units of a range.
template <typename Body>
void ForUnits(State& s, const void* address, size_t bytes, Body&& body) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t unit = begin / kUnit; unit * kUnit < begin + bytes; ++unit) {
    const bool low = unit * kUnit >= begin, high = unit * kUnit + 1 < begin + bytes;
    Page& page = PageOf(s, unit);
    body(page.units[unit % kPageUnits], static_cast<uint16_t>((low ? 1 : 0) | (high ? 2 : 0)), page.shared);
  }
}

}  // namespace

void BeginGrid(bool early) {
  State& s = Get();
  if (!s.enabled) return;
  s.early = early;
  if (s.modules.empty()) dl_iterate_phdr(AddModule, &s.modules);
  ++s.grid;
}

void BeginBlock(unsigned block, unsigned threads) {
  State& s = Get();
  if (!s.enabled) return;
  s.block = block;
  for (unsigned t = 0; t < threads; ++t) {
    s.threads[t] = Thread{};
    s.threads[t].awaited = !s.early;
    s.threads[t].clocks[t % kWarp] = 1;
  }
}

void RunThread(unsigned thread, const char* stack, size_t stack_bytes) {
  State& s = Get();
  s.running = stack != nullptr;
  s.thread = thread;
  s.stack = {reinterpret_cast<uintptr_t>(stack), reinterpret_cast<uintptr_t>(stack) + stack_bytes};
}

void EnterKernel() {
  State& s = Get();
  s.threads[s.thread].inside = true;
}
void LeaveKernel() {
  State& s = Get();
  s.threads[s.thread].inside = false;
}

void AwaitPrevious() {
  State& s = Get();
  if (s.enabled) s.threads[s.thread].awaited = true;
}

void PassBarrier() {
  State& s = Get();
  if (!s.enabled) return;
  ++s.threads[s.thread].barriers;
}

void JoinWarp(unsigned mask) {
  State& s = Get();
  if (!s.enabled) return;
  Thread* const warp = &s.threads[s.thread / kWarp * kWarp];
  std::array<uint32_t, kWarp> joined = {};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    for (unsigned l = 0; l < kWarp; ++l) joined[l] = std::max(joined[l], warp[lane].clocks[l]);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    warp[lane].clocks = joined;
    ++warp[lane].clocks[lane];
  }
}

void BeginCopy(const void* to, const void* from) {
  State& s = Get();
  if (!s.enabled) return;
  if (from != nullptr) Access(from, kCopyBytes, false, nullptr);
  Access(to, kCopyBytes, true, nullptr);
  ForUnits(s, to, kCopyBytes, [](Unit& unit, uint16_t, bool) { unit.copying = true; });
}

void EndCopy(const void* to, const void* from) {
  State& s = Get();
  if (!s.enabled) return;
  ForUnits(s, to, kCopyBytes, [](Unit& unit, uint16_t, bool) { unit.copying = false; });
  if (from != nullptr) Access(from, kCopyBytes, false, nullptr);
  Access(to, kCopyBytes, true, nullptr);
}

void Access(const void* address, size_t bytes, bool write, const void* at) {
  State& s = Get();
  if (!s.enabled || !s.running || s.busy || !s.threads[s.thread].inside ||
      s.stack.Has(reinterpret_cast<uintptr_t>(address)))
    return;
  if (IsThreadLocal(address)) return;
  s.busy = true;
  ForUnits(s, address, bytes,
           [&](Unit& unit, uint16_t halves, bool shared) { Follow(s, unit, Now(s, halves, at), write, shared); });
  s.busy = false;
}

void Enable() { Get().enabled = true; }
bool Enabled() { return Get().enabled; }

}  // namespace lockstep::emulation::races
