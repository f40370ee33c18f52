// TextTokenizer: text to token ids and back, for clients without a tokenizer of their own. Thread safe.
#ifndef LOCKSTEP_ROLLOUT_SERVER_TEXT_SERVICE_H_
#define LOCKSTEP_ROLLOUT_SERVER_TEXT_SERVICE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "proto/rollout.grpc.pb.h"

namespace lockstep {

// Longest text and most ids of one call.
inline constexpr size_t kMaxTextBytes = size_t{1} << 20;

class TextService final : public v1::TextTokenizer::CallbackService {
 public:
  TextService(std::shared_ptr<const Tokenizer> tokenizer, std::vector<int32_t> stop_token_ids)
      : tokenizer_(std::move(tokenizer)), stop_token_ids_(std::move(stop_token_ids)) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::vector<int32_t> stop_token_ids_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_TEXT_SERVICE_H_
