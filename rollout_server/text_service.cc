#include "rollout_server/text_service.h"

#include "absl/strings/str_cat.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

absl::Status TooLong(size_t size) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the request holds ", size, " bytes or ids; send at most ", kMaxTextBytes, " a call"));
}

}  // namespace

grpc::ServerUnaryReactor* TextService::Tokenize(grpc::CallbackServerContext* context,
                                                const v1::TokenizeRequest* request, v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (request->text().size() > kMaxTextBytes) {
    reactor->Finish(ToGrpcStatus(TooLong(request->text().size())));
    return reactor;
  }
  const absl::StatusOr<std::vector<int32_t>> ids = tokenizer_->EncodePrompt(request->text());
  if (ids.ok()) {
    response->mutable_token_ids()->Add(ids->begin(), ids->end());
    response->mutable_stop_token_ids()->Add(stop_token_ids_.begin(), stop_token_ids_.end());
  }
  reactor->Finish(ToGrpcStatus(ids.status()));
  return reactor;
}

grpc::ServerUnaryReactor* TextService::Detokenize(grpc::CallbackServerContext* context,
                                                  const v1::DetokenizeRequest* request,
                                                  v1::DetokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (static_cast<size_t>(request->token_ids_size()) > kMaxTextBytes) {
    reactor->Finish(ToGrpcStatus(TooLong(static_cast<size_t>(request->token_ids_size()))));
    return reactor;
  }
  const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
  response->set_text(ToValidUtf8(tokenizer_->Decode(ids, /*skip_special_tokens=*/true)));
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace lockstep
