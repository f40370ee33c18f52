// What code that is compiled with -fsanitize=thread calls, in place of ThreadSanitizer's runtime (races.h).
#include <cstddef>

#include "engine/kernels/cuda/emulation/races.h"

namespace {

using lockstep::emulation::races::Access;

[[maybe_unused]] const bool enabled = [] {
  lockstep::emulation::races::Enable();
  return true;
}();

}  // namespace

#define LOCKSTEP_RACE_HOOKS(bytes)                                                                     \
  void __tsan_read##bytes(void* p) { Access(p, bytes, false, __builtin_return_address(0)); }           \
  void __tsan_write##bytes(void* p) { Access(p, bytes, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##bytes(void* p) { Access(p, bytes, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* p) { Access(p, bytes, true, __builtin_return_address(0)); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Atomics of host code: the guards of static variables, reference counts.
signed char __tsan_atomic8_load(const volatile signed char* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_load(const volatile int* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_fetch_add(volatile int* p, int n, int) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_fetch_sub(volatile int* p, int n, int) { return __atomic_fetch_sub(p, n, __ATOMIC_SEQ_CST); }
LOCKSTEP_RACE_HOOKS(1)
LOCKSTEP_RACE_HOOKS(2)
LOCKSTEP_RACE_HOOKS(4)
LOCKSTEP_RACE_HOOKS(8)
LOCKSTEP_RACE_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { Access(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { Access(p, bytes, true, __builtin_return_address(0)); }
}
