// Prints the scalars of a folder of TensorBoard event files as a reader of theirs sees them: "step tag value" a line,
// sorted by step and tag. Files are taken in the order of their names; a start drops what came before of its step and
// later ones.
//   event_dump FOLDER
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "proto/event_file.h"
#include "proto/tensorboard.pb.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::error_code error;
  std::vector<std::string> paths;
  for (std::filesystem::directory_iterator it(argv[1], error), end; !error && it != end; it.increment(error)) {
    paths.push_back(it->path().string());
  }
  std::sort(paths.begin(), paths.end());
  std::map<std::pair<int64_t, std::string>, float> scalars;
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    const auto messages = lockstep::ReadTfRecords(bytes);
    if (!messages.ok()) {
      std::fprintf(stderr, "%s: %s\n", path.c_str(), std::string(messages.status().message()).c_str());
      return 1;
    }
    for (size_t i = 0; i < messages->size(); ++i) {
      lockstep::tensorboard::Event event;
      if (!event.ParseFromString((*messages)[i]) || (i == 0) != (event.file_version() == "brain.Event:2")) {
        std::fprintf(stderr, "%s: message %zu is not as it must be\n", path.c_str(), i);
        return 1;
      }
      if (event.session_log().status() == lockstep::tensorboard::SessionLog::START) {
        scalars.erase(scalars.lower_bound({event.step(), ""}), scalars.end());
      }
      for (const auto& value : event.summary().value()) {
        if (!scalars.insert({{event.step(), value.tag()}, value.simple_value()}).second) {
          std::fprintf(stderr, "%s: step %lld has %s twice\n", path.c_str(), static_cast<long long>(event.step()),
                       value.tag().c_str());
          return 1;
        }
      }
    }
  }
  for (const auto& [key, value] : scalars) {
    std::printf("%lld %s %.9g\n", static_cast<long long>(key.first), key.second.c_str(), static_cast<double>(value));
  }
  return scalars.empty() ? 1 : 0;
}
