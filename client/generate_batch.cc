#include "client/generate_batch.h"

#include <istream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/channel.h"
#include "proto/rollout.grpc.pb.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kCallSeconds = 30;
constexpr double kStreamSeconds = 24 * 3600;
constexpr size_t kMaxLineBytes = size_t{4} << 20;

const char* FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_NONFINITE:
      return "nonfinite";
    default:
      return "cancelled";
  }
}

struct SampleText {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
};

// A line under way.
struct Pending {
  Json prompt;  // text or token ids
  std::vector<SampleText> samples;
  uint32_t finished = 0;
};

class Batch {
 public:
  Batch(std::istream& in, std::ostream& out, const BatchOptions& options, const std::string& address)
      : in_(in),
        out_(out),
        options_(options),
        text_(v1::TextTokenizer::NewStub(MakeChannel(address))),
        rollout_(v1::Rollout::NewStub(MakeChannel(address))) {}

  absl::Status Run() {
    grpc::ClientContext context;
    SetDeadline(context, kStreamSeconds);
    stream_ = rollout_->Generate(&context);
    absl::Status status = Exchange();
    if (!status.ok()) context.TryCancel();
    v1::GenerateResponse rest;
    stream_->WritesDone();
    while (stream_->Read(&rest)) {
      // The status comes after the last message.
    }
    const grpc::Status end = stream_->Finish();
    if (status.ok() && (!pending_.empty() || !input_done_)) {
      return absl::UnavailableError(absl::StrCat("the server ended the stream: ", end.error_message()));
    }
    return status;
  }

 private:
  absl::Status Exchange() {
    v1::GenerateResponse response;
    while (!(input_done_ && pending_.empty()) && stream_->Read(&response)) {
      absl::Status status;
      if (response.has_credits()) {
        credits_ += response.credits().groups();
      } else if (response.has_refused()) {
        return LineError(response.refused().group_id(), response.refused().message());
      } else if (response.has_chunk()) {
        status = Take(response.chunk());
      }
      if (status.ok()) status = Send();
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status LineError(uint64_t line, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(options_.name, ":", line, ": ", what));
  }

  // As many lines as there are credits.
  absl::Status Send() {
    std::string text;
    while (credits_ > 0 && !input_done_) {
      if (!std::getline(in_, text)) {
        input_done_ = true;
        return in_.bad() ? absl::DataLossError(absl::StrCat("reading ", options_.name, " failed")) : absl::OkStatus();
      }
      ++line_;
      if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
      v1::GenerateRequest request;
      v1::Group& group = *request.mutable_group();
      group.set_run_id("generate");
      group.set_group_id(line_);
      group.set_attempt(1);
      group.set_num_samples(options_.n);
      group.set_seed(options_.seed);
      *group.mutable_sampling() = options_.sampling;
      Pending pending;
      if (absl::Status status = ReadLine(text, &group, &pending.prompt); !status.ok()) {
        return LineError(line_, std::string(status.message()));
      }
      pending.samples.resize(options_.n);
      pending_.emplace(line_, std::move(pending));
      --credits_;
      if (!stream_->Write(request)) return absl::UnavailableError("the server ended the stream");
    }
    return absl::OkStatus();
  }

  absl::Status ReadLine(const std::string& text, v1::Group* group, Json* prompt) {
    if (text.size() > kMaxLineBytes) {
      return absl::InvalidArgumentError(absl::StrCat("the line has ", text.size(), " bytes, limit ", kMaxLineBytes));
    }
    const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (value.is_string()) return Tokenize(*prompt = value, group);
    if (!value.is_object()) return absl::InvalidArgumentError("neither a JSON object nor a text");
    if (const auto tokens = value.find("tokens"); tokens != value.end()) {
      if (!tokens->is_array()) return absl::InvalidArgumentError("tokens must be an array of token ids");
      for (const Json& token : *tokens) {
        if (!token.is_number_unsigned() || token.get<uint64_t>() > INT32_MAX) {
          return absl::InvalidArgumentError(absl::StrCat("tokens has ", token.dump(), ", which is no token id"));
        }
        group->add_prompt_token_ids(token.get<int32_t>());
      }
      *prompt = *tokens;
      return absl::OkStatus();
    }
    for (const char* key : {"prompt", "problem", "question", "input"}) {
      if (const auto found = value.find(key); found != value.end() && found->is_string()) {
        return Tokenize(*prompt = *found, group);
      }
    }
    return absl::InvalidArgumentError("no text under prompt, problem, question or input, and no tokens");
  }

  absl::Status Tokenize(const Json& text, v1::Group* group) {
    grpc::ClientContext context;
    SetDeadline(context, kCallSeconds);
    v1::TokenizeRequest request;
    request.set_text(text.get<std::string>());
    v1::TokenizeResponse response;
    if (grpc::Status status = text_->Tokenize(&context, request, &response); !status.ok()) return ToAbslStatus(status);
    *group->mutable_prompt_token_ids() = response.token_ids();
    *group->mutable_sampling()->mutable_stop_token_ids() = response.stop_token_ids();
    return absl::OkStatus();
  }

  absl::Status Take(const v1::TokenChunk& chunk) {
    const auto found = pending_.find(chunk.group_id());
    if (found == pending_.end() || chunk.sample_index() >= options_.n) return absl::OkStatus();
    SampleText& sample = found->second.samples[chunk.sample_index()];
    if (chunk.token_index() != sample.tokens.size()) {
      return absl::DataLossError(absl::StrCat("tokens of line ", chunk.group_id(), " are missing"));
    }
    sample.tokens.insert(sample.tokens.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    sample.log_probs.insert(sample.log_probs.end(), chunk.log_probs().begin(), chunk.log_probs().end());
    if (chunk.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return absl::OkStatus();
    sample.finish = chunk.finish_reason();
    ++found->second.finished;
    while (!pending_.empty() && pending_.begin()->second.finished == options_.n) {
      if (absl::Status status = Print(pending_.begin()->first, pending_.begin()->second); !status.ok()) return status;
      pending_.erase(pending_.begin());
    }
    return absl::OkStatus();
  }

  absl::Status Print(uint64_t line, const Pending& pending) {
    for (uint32_t i = 0; i < options_.n; ++i) {
      const SampleText& sample = pending.samples[i];
      grpc::ClientContext context;
      SetDeadline(context, kCallSeconds);
      v1::DetokenizeRequest request;
      request.mutable_token_ids()->Add(sample.tokens.begin(), sample.tokens.end());
      v1::DetokenizeResponse response;
      if (grpc::Status status = text_->Detokenize(&context, request, &response); !status.ok()) {
        return ToAbslStatus(status);
      }
      Json result;
      result["line"] = line;
      result["sample"] = i;
      result[pending.prompt.is_string() ? "prompt" : "prompt_tokens"] = pending.prompt;
      result["text"] = response.text();
      result["tokens"] = sample.tokens;
      result["log_probs"] = sample.log_probs;
      result["finish_reason"] = FinishName(sample.finish);
      out_ << result.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    }
    out_.flush();
    return out_.good() ? absl::OkStatus() : absl::UnavailableError("the output cannot be written; is the disk full?");
  }

  std::istream& in_;
  std::ostream& out_;
  const BatchOptions& options_;
  const std::unique_ptr<v1::TextTokenizer::Stub> text_;
  const std::unique_ptr<v1::Rollout::Stub> rollout_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::GenerateRequest, v1::GenerateResponse>> stream_;
  std::map<uint64_t, Pending> pending_;  // by line
  uint64_t line_ = 0;
  uint32_t credits_ = 0;
  bool input_done_ = false;
};

}  // namespace

absl::Status GenerateBatch(std::istream& in, std::ostream& out, const BatchOptions& options,
                           const std::string& address) {
  return Batch(in, out, options, address).Run();
}

}  // namespace lockstep
