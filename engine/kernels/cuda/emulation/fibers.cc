#include "engine/kernels/cuda/emulation/fibers.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/races.h"

// ThreadSanitizer follows fibers that it is told of; without it these are null.
extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
// AddressSanitizer's; a fiber never returns from its last frames, whose guards would stay on its stack.
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* from, size_t bytes);
// Leaves this stack, with its pointer in *from, for another that was left in the same way. glibc's swapcontext does the
// same and asks the kernel for the signal mask besides, which is most of an emulated kernel's time.
void lockstep_emulation_switch(void** from, void* to);
}
asm(R"(
.text
.globl lockstep_emulation_switch
.type lockstep_emulation_switch, @function
lockstep_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lockstep_emulation_switch, .-lockstep_emulation_switch
)");

namespace lockstep::emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kThreadsMax = 1024;
constexpr size_t kStackBytes = size_t{128} << 10;

// Threads wait in `generation` until the last of them raises it.
struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  // By the lowest lane of the mask: groups of a warp may wait on their own.
  std::array<Barrier, kWarp> barriers;
  std::array<unsigned, kWarp> masks = {};
  std::array<uint64_t, kWarp> values = {};
  // Two sets, taken in turn: a lane may be one exchange ahead of another that still reads.
  std::array<std::array<WarpWords, kWarp>, 2> words = {};
  std::array<unsigned, kWarp> exchanges = {};
};

struct Copy {
  void* to;
  const void* from;

  void Make() const {
    if (from != nullptr) std::memcpy(to, from, 16);
    if (from == nullptr) std::memset(to, 0, 16);
  }
};

struct Fiber {
  void* sp = nullptr;  // where it was left
  std::unique_ptr<char[]> stack;
  void* tsan = nullptr;
  bool done = false;
  bool awaited = false;                  // what precedes the grid
  std::vector<Copy> open;                // since the last commit
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
};

Order order_of_turns = Order::kAscending;

class Block {
 public:
  Block(unsigned block, unsigned threads, bool early, const std::function<void(unsigned, unsigned)>& body,
        const std::function<void(unsigned)>& resume, std::vector<Fiber>& fibers)
      : block_(block),
        threads_(threads),
        early_(early),
        body_(body),
        resume_(resume),
        fibers_(fibers),
        warps_(threads / kWarp + 1) {}

  void Run(std::mt19937& random);
  void SyncBlock() {
    Wait(barrier_, live_);
    races::PassBarrier();
  }
  void SyncWarp(unsigned mask) {
    if (WaitWarp(warps_[current_ / kWarp], mask)) races::JoinWarp(mask);
  }
  uint64_t Exchange(unsigned mask, uint64_t value, unsigned source);
  unsigned Ballot(unsigned mask, bool predicate);
  const WarpWords* ExchangeWords(const WarpWords& words);
  Fiber& Current() { return fibers_[current_]; }

 private:
  static void Enter();
  // Whether this thread was the last, for whom the others wait.
  bool Wait(Barrier& barrier, unsigned expected);
  bool WaitWarp(Warp& warp, unsigned mask);
  void SwitchTo(unsigned thread);
  void Yield();
  void Finish();

  unsigned block_, threads_;
  bool early_;
  const std::function<void(unsigned, unsigned)>& body_;
  const std::function<void(unsigned)>& resume_;
  std::vector<Fiber>& fibers_;
  std::vector<Warp> warps_;
  Barrier barrier_;
  void* scheduler_ = nullptr;  // where it was left
  void* tsan_scheduler_ = nullptr;
  unsigned current_ = 0;
  unsigned live_ = 0;
  uint64_t progress_ = 0;
};

Block* running = nullptr;

bool CopiesAreEarly() { return order_of_turns == Order::kDescending; }

std::vector<unsigned> Turns(unsigned count, std::mt19937& random) {
  std::vector<unsigned> turns(count);
  std::iota(turns.begin(), turns.end(), 0u);
  if (order_of_turns == Order::kDescending) std::reverse(turns.begin(), turns.end());
  if (order_of_turns == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
  return turns;
}

void Block::Enter() {
  Block* const block = running;
  block->body_(block->block_, block->current_);
  block->Finish();
}

// A stack that lockstep_emulation_switch enters `function` from: six registers, the address, and the place of a
// caller's own, at which a stack is 16 bytes aligned.
void* FreshStack(char* stack, void (*function)()) {
  if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(stack, kStackBytes);
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack + kStackBytes) / 16 * 16;
  auto* const words = reinterpret_cast<uintptr_t*>(top) - 8;
  std::fill_n(words, 8, uintptr_t{0});
  words[6] = reinterpret_cast<uintptr_t>(function);
  return words;
}

void Block::Run(std::mt19937& random) {
  running = this;
  live_ = threads_;
  races::BeginBlock(block_, threads_);
  if (__tsan_get_current_fiber != nullptr) tsan_scheduler_ = __tsan_get_current_fiber();
  for (unsigned t = 0; t < threads_; ++t) {
    Fiber& fiber = fibers_[t];
    fiber.done = fiber.awaited = false;
    if (fiber.stack == nullptr) fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    if (__tsan_create_fiber != nullptr) fiber.tsan = __tsan_create_fiber(0);
    fiber.sp = FreshStack(fiber.stack.get(), &Block::Enter);
  }
  bool first = true;
  while (live_ > 0) {
    const uint64_t before = progress_;
    for (const unsigned t : Turns(threads_, random)) {
      if (!fibers_[t].done) SwitchTo(t);
    }
    LOCKSTEP_CHECK(first || progress_ != before, "threads of a block wait at different barriers: a GPU would hang");
    first = false;
  }
  running = nullptr;
  if (__tsan_destroy_fiber == nullptr) return;
  for (unsigned t = 0; t < threads_; ++t) __tsan_destroy_fiber(fibers_[t].tsan);
}

void Block::SwitchTo(unsigned thread) {
  current_ = thread;
  resume_(thread);
  if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(fibers_[thread].tsan, 0);
  races::RunThread(thread, fibers_[thread].stack.get(), kStackBytes);
  lockstep_emulation_switch(&scheduler_, fibers_[thread].sp);
  races::RunThread(0, nullptr, 0);
}

void Block::Yield() {
  const unsigned self = current_;
  if (__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(tsan_scheduler_, 0);
  lockstep_emulation_switch(&fibers_[self].sp, scheduler_);
}

void Block::Finish() {
  Fiber& fiber = fibers_[current_];
  const bool empty = std::all_of(fiber.groups.begin(), fiber.groups.end(), [](const auto& g) { return g.empty(); });
  LOCKSTEP_CHECK(fiber.open.empty() && empty, "a thread ends with asynchronous copies on their way");
  LOCKSTEP_CHECK(!early_ || fiber.awaited, "a kernel that may begin early ends without AwaitPrevious");
  fiber.groups.clear();
  fiber.done = true;
  --live_;
  ++progress_;
  // Those who wait at the block's barrier wait for one fewer.
  if (live_ > 0 && barrier_.arrived == live_) {
    barrier_.arrived = 0;
    ++barrier_.generation;
  }
  Yield();
}

bool Block::Wait(Barrier& barrier, unsigned expected) {
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    ++progress_;
    return true;
  }
  while (barrier.generation == generation) Yield();
  return false;
}

bool Block::WaitWarp(Warp& warp, unsigned mask) {
  const unsigned lane = current_ % kWarp;
  LOCKSTEP_CHECK((mask >> lane & 1u) != 0, "a thread calls a warp function with a mask that does not name it");
  const auto slot = static_cast<size_t>(std::countr_zero(mask));
  Barrier& barrier = warp.barriers[slot];
  if (barrier.arrived == 0) warp.masks[slot] = mask;
  LOCKSTEP_CHECK(warp.masks[slot] == mask, "threads of a warp meet with different masks");
  return Wait(barrier, static_cast<unsigned>(std::popcount(mask)));
}

uint64_t Block::Exchange(unsigned mask, uint64_t value, unsigned source) {
  Warp& warp = warps_[current_ / kWarp];
  LOCKSTEP_CHECK((mask >> source & 1u) != 0, "a shuffle reads a thread outside of its mask");
  warp.values[current_ % kWarp] = value;
  WaitWarp(warp, mask);
  const uint64_t result = warp.values[source];
  WaitWarp(warp, mask);
  return result;
}

unsigned Block::Ballot(unsigned mask, bool predicate) {
  Warp& warp = warps_[current_ / kWarp];
  warp.values[current_ % kWarp] = predicate ? 1 : 0;
  WaitWarp(warp, mask);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) != 0 && warp.values[lane] != 0) votes |= 1u << lane;
  }
  WaitWarp(warp, mask);
  return votes;
}

const WarpWords* Block::ExchangeWords(const WarpWords& words) {
  Warp& warp = warps_[current_ / kWarp];
  const unsigned lane = current_ % kWarp;
  auto& set = warp.words[warp.exchanges[lane]++ % 2];
  set[lane] = words;
  WaitWarp(warp, 0xFFFFFFFFu);
  return set.data();
}

}  // namespace

void SetOrder(Order order) { order_of_turns = order; }

void RunGrid(unsigned blocks, unsigned threads, bool early, const std::function<void(unsigned, unsigned)>& body,
             const std::function<void(unsigned)>& resume) {
  LOCKSTEP_CHECK(threads <= kThreadsMax && running == nullptr, "one grid at a time, at most 1024 threads a block");
  static std::vector<Fiber> fibers(kThreadsMax);  // stacks are kept from grid to grid
  races::BeginGrid(early);
  std::mt19937 random(blocks * 31 + threads);
  for (const unsigned block : Turns(blocks, random)) Block(block, threads, early, body, resume, fibers).Run(random);
}

void SyncBlock() { running->SyncBlock(); }
void SyncWarp(unsigned mask) { running->SyncWarp(mask); }
void AwaitPrevious() {
  running->Current().awaited = true;
  races::AwaitPrevious();
}
uint64_t Exchange(unsigned mask, uint64_t value, unsigned source) { return running->Exchange(mask, value, source); }
unsigned Ballot(unsigned mask, bool predicate) { return running->Ballot(mask, predicate); }
const WarpWords* ExchangeWords(const WarpWords& words) { return running->ExchangeWords(words); }

void CopyAsync(void* to, const void* from) {
  races::BeginCopy(to, from);
  running->Current().open.push_back({to, from});
  if (CopiesAreEarly()) running->Current().open.back().Make();
}

void CommitCopies() {
  Fiber& fiber = running->Current();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void WaitCopies(int left) {
  Fiber& fiber = running->Current();
  for (; fiber.groups.size() > static_cast<size_t>(left); fiber.groups.pop_front()) {
    for (const Copy& copy : fiber.groups.front()) {
      if (!CopiesAreEarly()) copy.Make();
      races::EndCopy(copy.to, copy.from);
    }
  }
}

}  // namespace lockstep::emulation
