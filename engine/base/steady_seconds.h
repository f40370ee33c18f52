// Seconds of a clock that never goes back, for durations.
#ifndef LOCKSTEP_ENGINE_BASE_STEADY_SECONDS_H_
#define LOCKSTEP_ENGINE_BASE_STEADY_SECONDS_H_

#include <chrono>

namespace lockstep {

inline double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_STEADY_SECONDS_H_
