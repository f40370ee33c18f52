#include "weight_sync/transport_choice.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/mutex.h"
#include "proto/channel.h"
#include "weight_sync/comm_device.h"
#include "weight_sync/member_identity.h"

namespace lockstep {
namespace {

bool Has(const TransportEnd& end, const std::string& transport) {
  return std::find(end.transports.begin(), end.transports.end(), transport) != end.transports.end();
}

// The first end that lacks it, or null.
const TransportEnd* Lacking(const std::vector<const TransportEnd*>& ends, const std::string& transport) {
  for (const TransportEnd* end : ends) {
    if (!Has(*end, transport)) return end;
  }
  return nullptr;
}

// Answers may come after the wait is over; they hold this.
struct Answers {
  Mutex mutex;
  CondVar changed;
  size_t awaited ABSL_GUARDED_BY(mutex) = 0;
  std::map<size_t, TransportEnd> ends ABSL_GUARDED_BY(mutex);
};

struct Call {
  grpc::ClientContext context;
  v1::DescribeRequest request;
  v1::ReceiverDescription response;
};

}  // namespace

TransportEnd DescribeThis(const std::string& who, const Transports& transports) {
  TransportEnd end;
  end.who = who;
  for (const auto& [name, kind] : transports) {
    end.transports.push_back(name);
    if (kind.device != nullptr) end.bus_id = kind.device->runtime->bus_id();
  }
  if (!end.bus_id.empty()) end.host = ThisHost();
  return end;
}

std::vector<TransportEnd> DescribeServers(const std::vector<std::shared_ptr<ServerPeer>>& peers,
                                          absl::Duration timeout) {
  auto answers = std::make_shared<Answers>();
  {
    MutexLock lock(&answers->mutex);
    answers->awaited = peers.size();
  }
  for (size_t i = 0; i < peers.size(); ++i) {
    auto call = std::make_shared<Call>();
    SetDeadline(call->context, absl::ToDoubleSeconds(timeout));
    const std::shared_ptr<ServerPeer>& peer = peers[i];
    peer->control->async()->Describe(
        &call->context, &call->request, &call->response, [call, answers, i, peer](const grpc::Status& status) {
          MutexLock lock(&answers->mutex);
          --answers->awaited;
          answers->changed.SignalAll();
          if (!status.ok()) return;
          const v1::ReceiverDescription& said = call->response;
          answers->ends[i] = {
              peer->address, {said.transports().begin(), said.transports().end()}, said.host(), said.bus_id()};
        });
  }
  const absl::Time deadline = absl::Now() + timeout + absl::Milliseconds(500);  // the calls end by themselves
  std::vector<TransportEnd> ends;
  MutexLock lock(&answers->mutex);
  while (answers->awaited > 0 && absl::Now() < deadline) answers->changed.WaitWithDeadline(&answers->mutex, deadline);
  for (const auto& [i, end] : answers->ends) ends.push_back(end);
  return ends;
}

TransportChoice ChooseTransport(const TransportEnd& learner, const std::vector<TransportEnd>& servers) {
  if (learner.bus_id.empty()) return {"gloo", "the learner has no GPU"};
  if (servers.empty()) return {Has(learner, "ipc") ? "ipc" : "nccl", "there is no server yet"};
  std::vector<const TransportEnd*> ends = {&learner};
  for (const TransportEnd& server : servers) ends.push_back(&server);
  std::map<std::pair<std::string, std::string>, const TransportEnd*> gpus;
  const TransportEnd *twin = nullptr, *first_of_twins = nullptr;
  for (const TransportEnd* end : ends) {
    if (end->bus_id.empty()) return {"gloo", absl::StrCat(end->who, " has no GPU")};
    const auto [it, is_new] = gpus.try_emplace({end->host, end->bus_id}, end);
    if (!is_new && twin == nullptr) {
      twin = end;
      first_of_twins = it->second;
    }
  }
  if (gpus.size() == 1) {
    const TransportEnd* const lacking = Lacking(ends, "ipc");
    if (lacking != nullptr) return {"gloo", absl::StrCat(lacking->who, " cannot have \"ipc\"")};
    return {"ipc", absl::StrCat("the learner and ", servers.size(), servers.size() == 1 ? " server" : " servers",
                                " share the GPU ", learner.bus_id)};
  }
  if (twin != nullptr) {
    return {"gloo", absl::StrCat(first_of_twins->who, " and ", twin->who, " share the GPU ", twin->bus_id,
                                 ", and others do not")};
  }
  const TransportEnd* const lacking = Lacking(ends, "nccl");
  if (lacking != nullptr) return {"gloo", absl::StrCat(lacking->who, " has no NCCL")};
  return {"nccl", absl::StrCat("the learner and ", servers.size(), servers.size() == 1 ? " server" : " servers",
                               " have a GPU each")};
}

}  // namespace lockstep
