// The one way in which this folder waits for a device: asks, sleeps a little, asks again, until done, failed, closed or
// late.
#ifndef LOCKSTEP_WEIGHT_SYNC_DEVICE_WAIT_H_
#define LOCKSTEP_WEIGHT_SYNC_DEVICE_WAIT_H_

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace lockstep {

// Between two questions: short at first, since most buckets take less than a millisecond.
inline constexpr absl::Duration kShortestSleep = absl::Microseconds(10);
inline constexpr absl::Duration kLongestSleep = absl::Milliseconds(1);

inline absl::Status GroupClosed() { return absl::CancelledError("the control plane closed the group"); }

// The status with "what: " before its message, its code and its payloads: one of those says what has to happen before
// the device computes again (engine/cuda/errors).
inline absl::Status Prefixed(const std::string& what, const absl::Status& status) {
  absl::Status prefixed(status.code(), absl::StrCat(what, ": ", std::string(status.message())));
  status.ForEachPayload(
      [&prefixed](absl::string_view name, const absl::Cord& payload) { prefixed.SetPayload(name, payload); });
  return prefixed;
}

// `done` is asked on this thread; its error keeps code and payloads. DEADLINE_EXCEEDED and CANCELLED (`closed`) begin
// with, or name, what was awaited.
inline absl::Status WaitForDevice(const std::string& what, absl::Time deadline, const std::atomic<bool>& closed,
                                  const std::function<absl::StatusOr<bool>()>& done) {
  for (absl::Duration sleep = kShortestSleep;; sleep = std::min(sleep * 2, kLongestSleep)) {
    if (closed) return GroupClosed();
    const absl::StatusOr<bool> is_done = done();
    if (!is_done.ok()) {
      return Prefixed(what, is_done.status());
    }
    if (*is_done) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, ": not done within the deadline; a member died or stopped"));
    }
    absl::SleepFor(sleep);
  }
}

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_DEVICE_WAIT_H_
