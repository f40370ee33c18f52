// LOCKSTEP_CHECK: an invariant of ours. A failure is a bug in Lockstep, never an operating error (those are
// absl::Status).
#ifndef LOCKSTEP_ENGINE_BASE_CHECK_H_
#define LOCKSTEP_ENGINE_BASE_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define LOCKSTEP_CHECK(condition, message)                                                             \
  do {                                                                                                 \
    if (!(condition)) [[unlikely]] {                                                                   \
      std::fprintf(stderr, "%s:%d: check failed: %s (%s)\n", __FILE__, __LINE__, #condition, message); \
      std::abort();                                                                                    \
    }                                                                                                  \
  } while (false)

#endif  // LOCKSTEP_ENGINE_BASE_CHECK_H_
