// The only file that sets gRPC options: channels, servers, deadlines, statuses. Numbers and why:
//  - keepalive ping 10 s, answer within 5 s, also without calls: a peer that stops or vanishes is seen within 15 s
//    instead of at the call's deadline; servers allow pings that often (gRPC's default would drop the connection).
//  - messages up to 64 MiB each way (gRPC's default is 4 MiB).
//  - no gRPC retries: they end at the response headers, and streams are resumed by (group, sample, attempt) instead.
//  - no SO_REUSEPORT: a port in use is an error at start and not a second listener.
//  - no HTTP proxy: services are reached directly.
#ifndef LOCKSTEP_PROTO_CHANNEL_H_
#define LOCKSTEP_PROTO_CHANNEL_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

inline constexpr int kKeepaliveMs = 10'000;
inline constexpr int kKeepaliveTimeoutMs = 5'000;
inline constexpr int kMaxMessageBytes = 64 << 20;
inline constexpr int kConnectTimeoutMs = 5'000;
inline constexpr int kMaxReconnectBackoffMs = 1'000;

// A channel with an own connection (not shared with other channels to the address). "host:port".
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Turns on the standard health service (SetServing below) and reflection for all servers built from here on; call
// before the ServerBuilder is constructed.
void EnableHealthAndReflection();
// Options of a server; StartServer calls it.
void ConfigureServer(grpc::ServerBuilder& builder);

struct ListeningServer {
  std::unique_ptr<grpc::Server> server;
  int port = 0;
  std::string address;  // "bind:port" with the port that was bound
};

// Binds (port 0: a free one) and serves what is registered on the builder. One-line errors, such as
// "cannot listen on 127.0.0.1:7000: Address already in use; stop the other process or choose another --port".
absl::StatusOr<ListeningServer> StartServer(grpc::ServerBuilder& builder, const std::string& bind, int port);

// Health of a service name of the server; "" is the process.
void SetServing(grpc::Server& server, const std::string& name, bool serving);

// Every call has a deadline.
void SetDeadline(grpc::ClientContext& context, double seconds);
// Whether the client of this call set one.
bool HasDeadline(const grpc::ServerContextBase& context);

// Codes are the same numbers on both sides; the message is kept.
absl::Status ToAbslStatus(const grpc::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace lockstep

#endif  // LOCKSTEP_PROTO_CHANNEL_H_
