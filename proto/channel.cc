#include "proto/channel.h"

#include <arpa/inet.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <latch>

#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

// Deadlines further away than this count as none: a client without a deadline shows up as "infinitely far".
constexpr auto kNoDeadline = std::chrono::hours(24 * 365);

// gRPC does not say why a port could not be bound; the same bind once more does.
std::string BindError(const std::string& bind, int port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int resolved = getaddrinfo(bind.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (resolved != 0) return gai_strerror(resolved);
  std::string reason;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    reason = std::strerror(errno);
  } else {
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (::bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) reason = std::strerror(errno);
    close(fd);
  }
  freeaddrinfo(found);
  return reason.empty() ? "the port was taken for a moment" : reason;
}

// gRPC 1.51 ends the threads that run callbacks with the last channel that uses them, and takes the queue apart under
// one that is still in it: the process aborts ("assertion failed: prior > 0"). A channel that is never given back keeps
// them: a call that has ended before it began makes it a user.
void KeepCallbackThreads() {
  struct Keeper {
    grpc::GenericStub stub{grpc::CreateChannel("ipv4:127.0.0.1:9", grpc::InsecureChannelCredentials())};
    grpc::ClientContext context;
    grpc::Slice nothing{""};
    grpc::ByteBuffer request{&nothing, 1}, response;
  };
  static Keeper* volatile keeper = [] {  // volatile: kept, so that leak checkers see that it is still reachable
    auto* made = new Keeper;
    std::latch ended(1);  // which, unlike Abseil's, the thread sanitizer sees
    made->context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
    made->stub.UnaryCall(&made->context, "/lockstep.Keep/Threads", grpc::StubOptions(), &made->request, &made->response,
                         [&ended](const grpc::Status&) { ended.count_down(); });
    ended.wait();
    return made;
  }();
  (void)keeper;
}

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  KeepCallbackThreads();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Despite its name, the least time that one connection attempt is given.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectBackoffMs);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

void EnableHealthAndReflection() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
}

void ConfigureServer(grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Half of the client's period, so that a ping that comes early by jitter is no strike.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kKeepaliveMs / 2);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
}

absl::StatusOr<ListeningServer> StartServer(grpc::ServerBuilder& builder, const std::string& bind, int port) {
  if (port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port ", port, " is not in 0..65535"));
  }
  ConfigureServer(builder);
  ListeningServer listening;
  const std::string requested =
      bind.find(':') == std::string::npos ? absl::StrCat(bind, ":", port) : absl::StrCat("[", bind, "]:", port);
  builder.AddListeningPort(requested, grpc::InsecureServerCredentials(), &listening.port);
  listening.server = builder.BuildAndStart();
  if (listening.server == nullptr || listening.port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", requested, ": ", BindError(bind, port),
                                               "; stop the other process or choose another --port"));
  }
  listening.address = requested.substr(0, requested.rfind(':') + 1) + std::to_string(listening.port);
  return listening;
}

void SetServing(grpc::Server& server, const std::string& name, bool serving) {
  grpc::HealthCheckServiceInterface* health = server.GetHealthCheckService();
  if (health != nullptr) health->SetServingStatus(name, serving);
}

void SetDeadline(grpc::ClientContext& context, double seconds) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
}

bool HasDeadline(const grpc::ServerContextBase& context) {
  return context.deadline() < std::chrono::system_clock::now() + kNoDeadline;
}

absl::Status ToAbslStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace lockstep
