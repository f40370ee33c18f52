#include "proto/channel.h"

#include <chrono>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/rollout.grpc.pb.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

// Answers GetServerInfo with whether the call carried a deadline (as `draining`) and a message of num bytes.
class EchoService final : public v1::Rollout::Service {
 public:
  explicit EchoService(size_t bytes) : bytes_(bytes) {}
  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::ServerInfoRequest*,
                             v1::ServerInfo* info) override {
    info->set_draining(HasDeadline(*context));
    info->set_server_id(std::string(bytes_, 'x'));
    return grpc::Status::OK;
  }

 private:
  size_t bytes_;
};

TEST(ChannelTest, CallsCarryTheirDeadline) {
  EchoService service(10);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  auto listening = StartServer(builder, "127.0.0.1", 0);
  ASSERT_TRUE(listening.ok()) << listening.status();
  auto stub = v1::Rollout::NewStub(MakeChannel(listening->address));
  v1::ServerInfo info;
  grpc::ClientContext with;
  SetDeadline(with, 10);
  ASSERT_TRUE(stub->GetServerInfo(&with, {}, &info).ok());
  EXPECT_TRUE(info.draining());
  grpc::ClientContext without;
  ASSERT_TRUE(stub->GetServerInfo(&without, {}, &info).ok());
  EXPECT_FALSE(info.draining());
}

TEST(ChannelTest, CarriesMessagesAboveTheGrpcDefault) {
  EchoService service(5 << 20);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  auto listening = StartServer(builder, "127.0.0.1", 0);
  ASSERT_TRUE(listening.ok());
  auto stub = v1::Rollout::NewStub(MakeChannel(listening->address));
  v1::ServerInfo info;
  grpc::ClientContext context;
  SetDeadline(context, 20);
  const grpc::Status status = stub->GetServerInfo(&context, {}, &info);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(info.server_id().size(), 5u << 20);
}

TEST(ChannelTest, APortInUseIsNamedInOneLine) {
  EchoService first_service(1), second_service(1);
  grpc::ServerBuilder first, second;
  first.RegisterService(&first_service);
  second.RegisterService(&second_service);
  auto listening = StartServer(first, "127.0.0.1", 0);
  ASSERT_TRUE(listening.ok());
  auto refused = StartServer(second, "127.0.0.1", listening->port);
  ASSERT_FALSE(refused.ok());
  const std::string message(refused.status().message());
  EXPECT_THAT(message, HasSubstr(absl::StrCat("127.0.0.1:", listening->port)));
  EXPECT_THAT(message, HasSubstr("Address already in use"));
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(ChannelTest, RefusesAPortOutOfRange) {
  grpc::ServerBuilder builder;
  auto refused = StartServer(builder, "127.0.0.1", 70000);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ChannelTest, ADeadServerIsUnavailableAtOnce) {
  std::string address;
  {
    EchoService service(1);
    grpc::ServerBuilder builder;
    builder.RegisterService(&service);
    auto listening = StartServer(builder, "127.0.0.1", 0);
    ASSERT_TRUE(listening.ok());
    address = listening->address;
    listening->server->Shutdown();
  }
  auto stub = v1::Rollout::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(context, 20);
  v1::ServerInfo info;
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = ToAbslStatus(stub->GetServerInfo(&context, {}, &info));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(ChannelTest, StatusesKeepCodeAndMessageBothWays) {
  const absl::Status status = absl::FailedPreconditionError("epoch 1 is behind 2");
  EXPECT_EQ(ToAbslStatus(ToGrpcStatus(status)), status);
  EXPECT_TRUE(ToAbslStatus(ToGrpcStatus(absl::OkStatus())).ok());
}

}  // namespace
}  // namespace lockstep
