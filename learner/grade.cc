#include "learner/grade.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/process.h"

namespace lockstep {
namespace {

constexpr size_t kMaxLineBytes = size_t{64} << 20;

using Json = nlohmann::ordered_json;

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// The next line without its end. False at the end of the file, or when errno says why; a longer line ends early.
bool ReadLine(std::FILE* file, std::string* line) {
  line->clear();
  errno = 0;
  for (int c = getc_unlocked(file); c != EOF; c = getc_unlocked(file)) {
    if (c == '\n') return true;
    line->push_back(static_cast<char>(c));
    if (line->size() > kMaxLineBytes) return true;
  }
  return !line->empty() && std::ferror(file) == 0;
}

// A file that appears under its name once it is whole.
class OutputFile {
 public:
  explicit OutputFile(std::string path) : path_(std::move(path)), temporary_(absl::StrCat(path_, ".tmp.", getpid())) {
    file_.reset(std::fopen(temporary_.c_str(), "wbe"));
    open_error_ = errno;
  }
  ~OutputFile() {
    if (!done_ && file_ != nullptr) unlink(temporary_.c_str());
  }
  absl::Status Write(const std::string& bytes) {
    if (file_ == nullptr) return ErrnoStatus(open_error_, "cannot write", temporary_);
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) == bytes.size()) return absl::OkStatus();
    return ErrnoStatus(errno, "cannot write", path_);
  }
  absl::Status Finish() {
    if (absl::Status status = Write(""); !status.ok()) return status;
    if (std::fflush(file_.get()) != 0 || fsync(fileno(file_.get())) != 0)
      return ErrnoStatus(errno, "cannot write", path_);
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) return ErrnoStatus(errno, "cannot rename to", path_);
    done_ = true;
    const size_t slash = path_.rfind('/');
    return SyncDirectory(slash == std::string::npos ? "." : slash == 0 ? "/" : path_.substr(0, slash));
  }

 private:
  std::string path_, temporary_;
  File file_;
  int open_error_ = 0;
  bool done_ = false;
};

absl::StatusOr<double> GradeLine(const Json& object, RewardKind kind) {
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  const auto response = object.find("response");
  if (response == object.end() || !response->is_string()) return absl::InvalidArgumentError("no text under response");
  const auto answer = object.find("answer");
  if (answer == object.end() || !(answer->is_string() || answer->is_number())) {
    return absl::InvalidArgumentError("no text or number under answer");
  }
  if (const auto own = object.find("reward_kind"); own != object.end()) {
    if (!own->is_string()) return absl::InvalidArgumentError("reward_kind is no text");
    const auto parsed = ParseRewardKind(own->get_ref<const std::string&>());
    if (!parsed.ok())
      return absl::InvalidArgumentError(absl::StrCat("reward_kind: ", std::string(parsed.status().message())));
    kind = *parsed;
  }
  return Score(kind, response->get_ref<const std::string&>(),
               answer->is_string() ? answer->get_ref<const std::string&>() : answer->dump());
}

// The line with `reward`: its own bytes where it has none yet, so that nothing is rounded or reordered.
std::string WithReward(const std::string& line, Json& object, double reward) {
  if (object.contains("reward")) {
    object["reward"] = reward;
    return object.dump() + "\n";
  }
  const size_t end = line.rfind('}');
  return absl::StrCat(line.substr(0, end), ", \"reward\": ", Json(reward).dump(), "}\n");
}

}  // namespace

absl::StatusOr<GradeSummary> GradeFile(const std::string& path, const std::string& out, RewardKind kind) {
  const File file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) return ErrnoStatus(errno, "cannot read", path);
  OutputFile output(out);
  GradeSummary summary;
  std::string line;
  for (uint64_t number = 1; ReadLine(file.get(), &line); ++number) {
    const auto error = [&](std::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", std::string(what)));
    };
    if (line.size() > kMaxLineBytes) return error("the line is longer than 64 MiB");
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_discarded()) return error("not JSON");
    const auto reward = GradeLine(object, kind);
    if (!reward.ok()) return error(std::string(reward.status().message()));
    ++summary.lines;
    summary.right += *reward == 1;
    summary.reward_sum += *reward;
    if (absl::Status status = output.Write(WithReward(line, object, *reward)); !status.ok()) return status;
  }
  if (std::ferror(file.get()) != 0) return ErrnoStatus(errno, "cannot read", path);
  if (summary.lines == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no line to grade"));
  if (absl::Status status = output.Finish(); !status.ok()) return status;
  return summary;
}

}  // namespace lockstep
