// The shadow in host memory, packed for the CPU: a set of engine/model/model.h. One bucket is put in place while the
// next one arrives.
#ifndef LOCKSTEP_WEIGHT_SYNC_HOST_SHADOW_H_
#define LOCKSTEP_WEIGHT_SYNC_HOST_SHADOW_H_

#include <memory>

#include "engine/model/model.h"
#include "weight_sync/shadow.h"

namespace lockstep {

// Its memory is that of the set and of two buckets.
std::unique_ptr<Shadow> MakeHostShadow(const ModelConfig& config, const BucketPlan& plan, WeightId id);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_HOST_SHADOW_H_
