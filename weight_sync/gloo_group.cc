#include "weight_sync/gloo_group.h"

#include <gloo/common/error.h>
#include <gloo/rendezvous/context.h>
#include <gloo/transport/tcp/device.h>
#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <exception>

#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

// "[/build/gloo-.../pair.cc:598] Connection closed by peer" -> "Connection closed by peer"; one line.
std::string Plain(const std::string& message) {
  std::string text = message;
  const size_t end = text.find("] ");
  if (!text.empty() && text[0] == '[' && end != std::string::npos) text = text.substr(end + 2);
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

absl::Status FromGloo(const std::string& what, const std::string& message) {
  const std::string text = absl::StrCat(what, ": ", Plain(message));
  if (text.find("imed out") != std::string::npos || text.find("timeout") != std::string::npos) {
    return absl::DeadlineExceededError(text);
  }
  return absl::AbortedError(text);
}

// The address of the interface from which the kernel would reach host:port. Connecting a datagram socket sends nothing.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", address, "\" is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int resolved = getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found);
  if (resolved != 0) {
    return absl::UnavailableError(absl::StrCat("cannot resolve ", address, ": ", gai_strerror(resolved)));
  }
  absl::Status status = absl::UnavailableError(absl::StrCat("no route to ", address));
  std::string local(NI_MAXHOST, '\0');
  for (const addrinfo* it = found; it != nullptr && !status.ok(); it = it->ai_next) {
    const int fd = socket(it->ai_family, it->ai_socktype | SOCK_CLOEXEC, it->ai_protocol);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t own_length = sizeof(own);
    if (connect(fd, it->ai_addr, it->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_length) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&own), own_length, local.data(), local.size(), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      status = absl::OkStatus();
    }
    close(fd);
  }
  freeaddrinfo(found);
  if (!status.ok()) return status;
  return std::string(local.c_str());
}

}  // namespace

absl::Status CatchGloo(const std::string& what, const std::function<void()>& body) {
  try {
    body();
    return absl::OkStatus();
  } catch (const gloo::IoException& error) {
    return FromGloo(what, error.what());
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(what, ": ", Plain(error.what())));
  }
}

absl::StatusOr<std::shared_ptr<gloo::Context>> ConnectGlooGroup(const GlooGroupOptions& options,
                                                                gloo::rendezvous::Store& store) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " is not in a group of ", options.size, " members"));
  }
  gloo::transport::tcp::attr attr;
  if (!options.interface.empty()) {
    attr.iface = options.interface;
  } else if (!options.hostname.empty()) {
    attr.hostname = options.hostname;
  } else if (!options.route_to.empty()) {
    absl::StatusOr<std::string> local = LocalAddressTowards(options.route_to);
    if (!local.ok()) return local.status();
    attr.hostname = *local;
  } else {
    attr.hostname = "127.0.0.1";
  }
  // Gloo writes to sockets without MSG_NOSIGNAL: a peer that dies under a write would end this process as well.
  signal(SIGPIPE, SIG_IGN);
  std::shared_ptr<gloo::rendezvous::Context> context;
  const absl::Status status =
      CatchGloo(absl::StrCat("joining a group as rank ", options.rank, " of ", options.size), [&] {
        std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(attr);
        context = std::make_shared<gloo::rendezvous::Context>(options.rank, options.size);
        context->setTimeout(std::chrono::milliseconds(absl::ToInt64Milliseconds(options.timeout)));
        context->connectFullMesh(store, device);
      });
  if (!status.ok()) return status;
  return std::shared_ptr<gloo::Context>(std::move(context));
}

}  // namespace lockstep
