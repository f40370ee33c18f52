// What learner ranks do together. Every call has a deadline and every rank makes the same calls in the same order.
// After an error the object is of no more use: the learner ends and is started again from its checkpoint.
#ifndef LOCKSTEP_LEARNER_COLLECTIVES_H_
#define LOCKSTEP_LEARNER_COLLECTIVES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lockstep {

class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  // Whether `data` of the calls below may lie on a device.
  virtual bool takes_device_memory() const { return false; }

  // data[i] = sum over ranks, in place, the same bits on every rank: each element is reduced in one place, in ring
  // order, then copied. n elements of at most 2^40 bytes.
  virtual absl::Status AllReduceSum(float* data, int64_t n, absl::Duration timeout) = 0;
  virtual absl::Status AllReduceSum(double* data, int64_t n, absl::Duration timeout) = 0;
  virtual absl::Status AllReduceMax(double* data, int64_t n, absl::Duration timeout) = 0;
  // True when every rank says true.
  virtual absl::StatusOr<bool> AllAgree(bool value, absl::Duration timeout) = 0;
  // Rank 0's bytes to every rank; `bytes` is resized on the others. At most kMaxBroadcastBytes.
  virtual absl::Status Broadcast(std::string* bytes, absl::Duration timeout) = 0;
  // Rank 0's floats to every rank, in place: for state whose size all ranks know.
  virtual absl::Status Broadcast(float* data, int64_t n, absl::Duration timeout) = 0;
  virtual absl::Status Barrier(absl::Duration timeout) = 0;
};

inline constexpr int64_t kMaxBroadcastBytes = int64_t{1} << 30;

// world_size 1: every call is done at once.
std::unique_ptr<Collectives> MakeSingleRankCollectives();

struct GlooCollectivesOptions {
  int rank = 0;
  int world_size = 1;
  std::string rank0_address;  // host:port that serves WeightSource.StoreSet / StoreGet
  std::string prefix;         // unique to this group of ranks on that store
  absl::Duration connect_timeout = absl::Seconds(60);
};

// TCP through Gloo; all ranks call it at about the same time.
absl::StatusOr<std::unique_ptr<Collectives>> MakeGlooCollectives(const GlooCollectivesOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_COLLECTIVES_H_
