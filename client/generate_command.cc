// generate: samples responses to one prompt, or to a file of them, from a model folder, through a rollout server of
// its own.
#include <google/protobuf/text_format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/child.h"
#include "client/commands.h"
#include "client/config.h"
#include "client/generate_batch.h"
#include "client/launcher.h"
#include "client/temporary_folder.h"
#include "proto/channel.h"
#include "proto/rollout.grpc.pb.h"

namespace lockstep {
namespace {

constexpr double kCallSeconds = 30;
constexpr double kGenerateSeconds = 3600;

struct Options {
  std::string address;  // of a running server; empty: start one
  v1::RunConfig config = DefaultRunConfig();
  uint32_t n = 1;
  uint64_t seed = 1;
  bool greedy = false;
  std::string prompt;
  std::string prompts;  // JSON lines instead; "-": standard input
};

// All of it, without the last line's end.
std::string ReadStandardInput() {
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

absl::StatusOr<Options> Parse(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(
      arguments,
      {"model=", "address=", "n=", "max_tokens=", "temperature=", "seed=", "dtype=", "threads=", "prompts=", "greedy"});
  if (!split.ok()) return split.status();
  Options options;
  options.address = split->Get("address");
  options.config.mutable_model()->set_path(split->Get("model"));
  options.config.mutable_rollout()->set_dtype(split->Get("dtype", "fp16"));
  options.greedy = split->Has("greedy");
  uint32_t max_tokens = 256, threads = 2;
  float temperature = 1;
  if (!absl::SimpleAtoi(split->Get("n", "1"), &options.n) || options.n == 0 ||
      !absl::SimpleAtoi(split->Get("seed", "1"), &options.seed) ||
      !absl::SimpleAtoi(split->Get("max_tokens", "256"), &max_tokens) || max_tokens == 0 ||
      !absl::SimpleAtoi(split->Get("threads", "2"), &threads) || threads == 0 ||
      !absl::SimpleAtof(split->Get("temperature", "1"), &temperature) || !(temperature > 0)) {
    return absl::InvalidArgumentError(
        "generate: --n, --seed, --max_tokens, --threads and --temperature take positive numbers");
  }
  options.config.mutable_rollout()->set_max_tokens(max_tokens);
  options.config.mutable_rollout()->set_threads(threads);
  options.config.mutable_rollout()->set_temperature(temperature);
  options.prompts = split->Get("prompts");
  if (split->words.size() != (options.prompts.empty() ? 1 : 0)) {
    return absl::InvalidArgumentError(
        "usage: lockstep generate --model=DIR [flags] PROMPT (quote the prompt; - reads it from standard input), or "
        "--prompts=FILE.jsonl in place of PROMPT");
  }
  if (options.prompts.empty()) {
    options.prompt = split->words[0] == "-" ? ReadStandardInput() : split->words[0];
  } else if (options.prompts != "-" && !std::filesystem::exists(options.prompts)) {
    return absl::NotFoundError(absl::StrCat("--prompts: ", options.prompts, " does not exist"));
  }
  if (options.address.empty() && options.config.model().path().empty()) {
    return absl::InvalidArgumentError("generate needs --model=DIR or --address=host:port");
  }
  return options;
}

absl::StatusOr<std::string> StartServer(const Options& options, const std::string& folder,
                                        std::unique_ptr<Child>* child) {
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_rollout_server");
  if (!binary.ok()) return binary.status();
  std::string text;
  google::protobuf::TextFormat::PrintToString(options.config, &text);
  std::ofstream(folder + "/config.pbtxt") << text;
  absl::StatusOr<Child> started = Child::Start(
      "rollout server", *binary,
      {absl::StrCat("--config=", folder, "/config.pbtxt"), absl::StrCat("--address_file=", folder, "/address"),
       "--metrics_port=-1", absl::StrCat("--parent_pid=", getpid())},
      folder + "/server.log");
  if (!started.ok()) return started.status();
  *child = std::make_unique<Child>(*std::move(started));
  return WaitForAddress(**child, folder + "/address", kStartSeconds);
}

v1::SamplingParams Sampling(const Options& options) {
  v1::SamplingParams sampling;
  sampling.set_temperature(options.greedy ? 0 : options.config.rollout().temperature());
  sampling.set_top_p(1);
  sampling.set_max_tokens(options.config.rollout().max_tokens());
  return sampling;
}

v1::Group MakeGroup(const Options& options, const v1::TokenizeResponse& prompt) {
  v1::Group group;
  group.set_run_id("generate");
  group.set_group_id(1);
  group.set_attempt(1);
  group.set_num_samples(options.n);
  group.set_seed(options.seed);
  *group.mutable_prompt_token_ids() = prompt.token_ids();
  *group.mutable_sampling() = Sampling(options);
  *group.mutable_sampling()->mutable_stop_token_ids() = prompt.stop_token_ids();
  return group;
}

absl::Status Print(v1::TextTokenizer::Stub& text, const std::vector<int32_t>& ids, uint32_t n, uint32_t sample,
                   size_t* printed) {
  grpc::ClientContext context;
  SetDeadline(context, kCallSeconds);
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Add(ids.begin(), ids.end());
  v1::DetokenizeResponse response;
  if (grpc::Status status = text.Detokenize(&context, request, &response); !status.ok()) return ToAbslStatus(status);
  if (n == 1) {
    // A character that is not complete yet decodes to U+FFFD at the end: hold it back.
    std::string whole = response.text();
    while (whole.size() >= 3 && whole.compare(whole.size() - 3, 3, "\xEF\xBF\xBD") == 0) whole.resize(whole.size() - 3);
    if (whole.size() > *printed) std::fputs(whole.c_str() + *printed, stdout);
    *printed = std::max(*printed, whole.size());
  } else {
    std::printf("--- %u\n%s\n", sample, response.text().c_str());
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Generate(const Options& options, const std::string& address) {
  const auto channel = MakeChannel(address);
  const auto text = v1::TextTokenizer::NewStub(channel);
  const auto rollout = v1::Rollout::NewStub(channel);
  v1::TokenizeResponse prompt;
  {
    grpc::ClientContext context;
    SetDeadline(context, kCallSeconds);
    v1::TokenizeRequest request;
    request.set_text(options.prompt);
    if (grpc::Status status = text->Tokenize(&context, request, &prompt); !status.ok()) return ToAbslStatus(status);
  }
  grpc::ClientContext context;
  SetDeadline(context, kGenerateSeconds);
  const auto stream = rollout->Generate(&context);
  v1::GenerateRequest request;
  *request.mutable_group() = MakeGroup(options, prompt);
  std::map<uint32_t, std::vector<int32_t>> samples;
  uint32_t finished = 0;
  size_t printed = 0;
  bool sent = false;
  absl::Status refused;
  v1::GenerateResponse response;
  while (finished < options.n && stream->Read(&response)) {
    if (response.has_credits() && !sent) {
      sent = true;
      stream->Write(request);
    } else if (response.has_refused()) {
      refused = absl::InvalidArgumentError(response.refused().message());
      break;
    } else if (response.has_chunk()) {
      const v1::TokenChunk& chunk = response.chunk();
      std::vector<int32_t>& ids = samples[chunk.sample_index()];
      ids.insert(ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      const bool last = chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
      finished += last;
      if (options.n == 1 || last) {
        if (absl::Status status = Print(*text, ids, options.n, chunk.sample_index(), &printed); !status.ok())
          return status;
      }
    }
  }
  stream->WritesDone();
  if (finished < options.n) context.TryCancel();
  while (stream->Read(&response)) {
    // The status comes after the last message, such as the credit that the finished group gives back.
  }
  const grpc::Status end = stream->Finish();
  if (!refused.ok()) return refused;
  if (finished < options.n) {
    return absl::UnavailableError(absl::StrCat("the server ended the stream: ", end.error_message()));
  }
  if (options.n == 1) std::printf("\n");
  return absl::OkStatus();
}

absl::Status GenerateAll(const Options& options, const std::string& address) {
  if (options.prompts.empty()) return Generate(options, address);
  BatchOptions batch;
  batch.name = options.prompts == "-" ? "stdin" : options.prompts;
  batch.n = options.n;
  batch.seed = options.seed;
  batch.sampling = Sampling(options);
  if (options.prompts == "-") return GenerateBatch(std::cin, std::cout, batch, address);
  std::ifstream file(options.prompts);
  if (!file) return absl::NotFoundError(absl::StrCat("--prompts: cannot read ", options.prompts));
  return GenerateBatch(file, std::cout, batch, address);
}

}  // namespace

int GenerateCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Options> options = Parse(arguments);
  if (!options.ok()) return Fail(options.status(), 2);
  if (!options->address.empty()) {
    const absl::Status status = GenerateAll(*options, options->address);
    return status.ok() ? 0 : Fail(status);
  }
  const TemporaryFolder folder;
  std::unique_ptr<Child> child;
  absl::StatusOr<std::string> address = StartServer(*options, folder.path(), &child);
  if (!address.ok()) return Fail(address.status());
  const absl::Status status = GenerateAll(*options, *address);
  child->End(10);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace lockstep
