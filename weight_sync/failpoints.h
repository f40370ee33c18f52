// Failpoints: named places in the code where a test makes a fault happen. Off unless asked for, one relaxed load each.
//
//   LOCKSTEP_FAILPOINTS="receiver.die:3,sender.skip_bucket:0"   fires at the third hit / at every hit
//
//   if (FailpointFires("receiver.die")) raise(SIGKILL);
//
// A fault test asserts FailpointFired(name): a fault that never happened proves nothing.
#ifndef LOCKSTEP_WEIGHT_SYNC_FAILPOINTS_H_
#define LOCKSTEP_WEIGHT_SYNC_FAILPOINTS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lockstep {

// Counts a hit of the failpoint; true when it fires at this hit.
bool FailpointFires(const char* name);
// How often it has fired since SetFailpoints.
uint64_t FailpointFired(const std::string& name);
// Replaces all failpoints; "" turns them off. The environment is read at the first hit.
absl::Status SetFailpoints(const std::string& specification);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_FAILPOINTS_H_
