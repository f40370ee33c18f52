// LearnerControl over gRPC: answers from the RunMonitor, commands into it. Served by rank 0.
#ifndef LOCKSTEP_LEARNER_CONTROL_SERVICE_H_
#define LOCKSTEP_LEARNER_CONTROL_SERVICE_H_

#include <functional>
#include <memory>
#include <string>

#include "learner/run_monitor.h"
#include "proto/learner.grpc.pb.h"

namespace lockstep {

// The monitor outlives the service. add_server may be empty: a run without rollout servers.
std::unique_ptr<v1::LearnerControl::Service> MakeControlService(
    RunMonitor* monitor, std::function<void(const std::string& address)> add_server);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_CONTROL_SERVICE_H_
