// mismatch: the offline analysis of arXiv 2510.26788 figure 2. A program of its own computes the log-probs and writes
// mismatch.json; this command shows its progress, then draws.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/child.h"
#include "client/commands.h"
#include "client/plot.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

constexpr double kStopSeconds = 60;  // an engine step, after Ctrl-C
// Below it nothing can be seen between 0 and 1: the axes are logarithmic.
constexpr double kLinearMedian = 0.02;

volatile sig_atomic_t g_interrupts = 0;

void CountInterrupt(int) { g_interrupts = g_interrupts + 1; }

// Prints what has been added to a log file since the last call, whole lines only, without the line of an error.
class LogTail {
 public:
  explicit LogTail(const std::string& path) : file_(path) {}
  void Print() {
    file_.clear();
    while (true) {
      const auto begin = file_.tellg();
      std::string line;
      std::getline(file_, line);
      if (file_.eof()) {  // not ended yet
        file_.clear();
        file_.seekg(begin);
        return;
      }
      if (line.rfind("error: ", 0) != 0) std::printf("%s\n", line.c_str());
      std::fflush(stdout);
    }
  }

 private:
  std::ifstream file_;
};

// Runs the program to its end. 0: mismatch.json is there.
int Compute(const std::vector<std::string>& flags, const std::string& out) {
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_mismatch");
  if (!binary.ok()) return Fail(binary.status());
  std::error_code error;
  std::filesystem::create_directories(out, error);
  const std::string log = out + "/mismatch.log";
  std::filesystem::remove(log, error);
  struct sigaction action = {};
  action.sa_handler = CountInterrupt;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  absl::StatusOr<Child> child = Child::Start("mismatch", *binary, flags, log);
  if (!child.ok()) return Fail(child.status());
  LogTail tail(log);
  while (!child->Poll().has_value() && g_interrupts == 0) {
    tail.Print();
    absl::SleepFor(absl::Milliseconds(20));
  }
  if (g_interrupts > 0) {
    child->End(kStopSeconds);
    tail.Print();
    std::fprintf(stderr,
                 "lockstep: stopped; what had been computed is kept in %s, the same command goes on from there\n",
                 out.c_str());
    return 130;
  }
  tail.Print();
  if (*child->Poll() == 0) return 0;
  // The program's own line, without the name of its log, where it said one.
  std::ifstream file(log);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("error: ", 0) == 0) return Fail(absl::InternalError(line.substr(7)));
  }
  return Fail(absl::InternalError(child->Reason()));
}

std::vector<double> Numbers(const Json& list) { return list.get<std::vector<double>>(); }

std::string FileName(std::string pair) {
  for (char& c : pair) {
    if (c == '/' || c == '@') c = '-';
  }
  return pair;
}

// Panels 1 and 2 of the paper's figure: a dot a token.
Plot TokenPlot(const Json& pair) {
  const Json& points = pair.at("token_points");
  PlotSeries tokens;
  tokens.x = Numbers(points.at("mu"));
  tokens.y = Numbers(points.at("pi"));
  tokens.style = PlotSeries::kPoints;
  tokens.name =
      absl::StrFormat("a token (%d of %d)", points.at("count").get<int64_t>(), points.at("of").get<int64_t>());
  tokens.look = 0;
  std::vector<double> sorted = tokens.x;
  std::sort(sorted.begin(), sorted.end());
  Plot plot;
  plot.log_x = plot.log_y = !sorted.empty() && sorted[sorted.size() / 2] < kLinearMedian;
  double low = plot.log_x ? 1.0 : 0.0;
  for (double p : tokens.x) low = std::min(low, p > 0 ? p : low);
  for (double p : tokens.y) low = std::min(low, p > 0 ? p : low);
  const double high = plot.log_x && !sorted.empty() ? std::min(1.0, 1.5 * sorted.back()) : 1.0;
  PlotSeries diagonal;
  diagonal.name = "y = x";
  diagonal.x = diagonal.y = {low, high};
  diagonal.look = 1;
  plot.title =
      absl::StrFormat("token probabilities, learner/rollout %s: mean |pi - mu| %.2e",
                      pair.at("pair").get<std::string>(), pair.at("mean_abs_probability_difference").get<double>());
  plot.x_label = "mu, of the rollout engine";
  plot.y_label = "pi, of the training pass";
  plot.series = {tokens, diagonal};
  return plot;
}

// Panels 3 and 4, in one: a dot a response, and the fitted line of each pair in the same colour.
Plot SequencePlot(const Json& pairs) {
  Plot plot;
  plot.title = "log(pi / mu) of whole responses; slopes by least squares, in nats per 1,000 tokens";
  plot.x_label = "response length, tokens";
  plot.y_label = "log(pi / mu), nats";
  int look = 0;
  for (const Json& pair : pairs) {
    PlotSeries dots;
    dots.x = Numbers(pair.at("sequence_points").at("length"));
    dots.y = Numbers(pair.at("sequence_points").at("log_ratio"));
    dots.style = PlotSeries::kPoints;
    dots.look = look;
    dots.name = pair.at("pair").get<std::string>();
    PlotSeries line;
    line.look = look++;
    if (!pair.at("slope").is_null() && !dots.x.empty()) {
      const double slope = pair.at("slope").get<double>(), intercept = pair.at("intercept").get<double>();
      const auto [low, high] = std::minmax_element(dots.x.begin(), dots.x.end());
      dots.name += absl::StrFormat(": slope %.3g", slope);
      line.x = {*low, *high};
      line.y = {intercept + slope * *low / 1000, intercept + slope * *high / 1000};
    } else {
      dots.name += ": one length, no slope";
    }
    plot.series.push_back(dots);
    plot.series.push_back(line);
  }
  return plot;
}

absl::Status Draw(const Json& result, const std::string& out) {
  for (const char* ending : {".png", ".svg"}) {
    for (const Json& pair : result.at("pairs")) {
      const std::string name = out + "/tokens-" + FileName(pair.at("pair").get<std::string>());
      if (absl::Status status = WritePlot(TokenPlot(pair), name + ending); !status.ok()) return status;
    }
    if (absl::Status status = WritePlot(SequencePlot(result.at("pairs")), out + "/sequences" + ending); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

void PrintTable(const Json& result) {
  std::printf("\n%-20s %9s %9s %11s %11s %11s %11s %11s %11s\n", "learner/rollout", "responses", "tokens", "KL k1",
              "KL k3", "mean |lr|", "max |lr|", "|pi - mu|", "nats/1000");
  for (const Json& pair : result.at("pairs")) {
    const auto number = [&](const char* key) { return pair.at(key).get<double>(); };
    std::printf("%-20s %9.0f %9.0f %11.3e %11.3e %11.3e %11.3e %11.3e %11s\n",
                pair.at("pair").get<std::string>().c_str(), number("num_sequences"), number("num_tokens"),
                number("kl_k1"), number("kl_k3"), number("mean_abs_log_ratio"), number("max_abs_log_ratio"),
                number("mean_abs_probability_difference"),
                pair.at("slope").is_null() ? "-" : absl::StrFormat("%.4g", number("slope")).c_str());
  }
}

}  // namespace

int MismatchCommand(const std::vector<std::string>& arguments) {
  const std::vector<std::string> known = {
      "model=",  "prompts=", "tokens=", "prompt_template=", "pairs=", "sample=",      "lengths=", "max_tokens=",
      "n=",      "limit=",   "seed=",   "batch=",           "chunk=", "temperature=", "threads=", "micro_batch_tokens=",
      "points=", "out="};
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, known);
  if (!split.ok()) return Fail(split.status(), 2);
  if (!split->words.empty()) return Usage("usage: lockstep mismatch --model=DIR --prompts=FILE.jsonl [--pairs=...]");
  const std::string out = split->Get("out", "mismatch");
  if (out.empty()) return Usage("--out needs a value");
  std::vector<std::string> flags = {absl::StrCat("--parent_pid=", getpid()), "--out=" + out};
  for (const auto& [flag, value] : split->flags) {
    if (value.empty()) return Usage(absl::StrCat("--", flag, " needs a value"));
    if (flag != "out") flags.push_back(absl::StrCat("--", flag, "=", value));
  }
  if (const int code = Compute(flags, out); code != 0) return code;
  const std::string path = out + "/mismatch.json";
  std::ifstream file(path);
  const Json result = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!result.is_object()) return Fail(absl::DataLossError(absl::StrCat(path, " cannot be read")));
  PrintTable(result);
  if (absl::Status status = Draw(result, out); !status.ok()) return Fail(status);
  std::printf("\n%s, %s/sequences.png and .svg, %s/tokens-*.png and .svg\n", path.c_str(), out.c_str(), out.c_str());
  return 0;
}

}  // namespace lockstep
