#include "engine/kernels/cuda/emulation/environment.h"

#include <cerrno>  // program_invocation_short_name
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

#include "engine/kernels/cuda/emulation/runtime.h"

namespace lockstep::emulation {
namespace {

[[noreturn]] void Refuse(const std::string& what) {
  std::fprintf(stderr, "error: the emulated device's environment: %s\n", what.c_str());
  std::exit(2);
}

std::map<std::string, std::string> ReadSettings() {
  std::map<std::string, std::string> settings = {{"devices", "1"},    {"memory_mib", "16384"}, {"used_mib", "0"},
                                                 {"driver", "13000"}, {"capability", "90"},    {"nccl", "1"},
                                                 {"faults", ""}};
  const char* const text = std::getenv("LOCKSTEP_EMULATED_GPU");
  std::istringstream words(text == nullptr ? "" : text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    const auto found = settings.find(word.substr(0, equals));
    if (equals == std::string::npos || found == settings.end()) Refuse("'" + word + "' is unknown");
    found->second = word.substr(equals + 1);
  }
  return settings;
}

long Number(const std::string& name) {
  const std::string& text = Environment().at(name);
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0) Refuse(name + " is '" + text + "', not a number");
  return value;
}

// What the process sees of `count` devices: a contiguous part is enough here.
void Choose(int count, Devices* devices) {
  devices->count = count;
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return;
  devices->count = 0;
  std::istringstream numbers(visible);
  for (std::string number; std::getline(numbers, number, ',');) {
    const int device = std::atoi(number.c_str());
    if (number != std::to_string(device) || device >= count) break;  // as CUDA: those after a wrong one are not seen
    if (devices->count == 0) devices->first_bus = 1 + device;
    if (device != devices->first_bus - 1 + devices->count) Refuse("CUDA_VISIBLE_DEVICES is not in ascending order");
    ++devices->count;
  }
}

void TakeFault(const std::string& path) {
  std::ifstream file(path);
  int skip = 0, error = 0;
  // Who removes it has it.
  if (!file || !(file >> skip >> error) || std::remove(path.c_str()) != 0) return;
  FailWork(skip, static_cast<cudaError_t>(error));
}

struct Setup {
  Setup() {
    Devices& devices = TheDevices();
    Choose(static_cast<int>(Number("devices")), &devices);
    devices.driver_version = static_cast<int>(Number("driver"));
    devices.major = static_cast<int>(Number("capability")) / 10;
    devices.minor = static_cast<int>(Number("capability")) % 10;
    if (devices.driver_version == 0) devices.get_device_count = cudaErrorInsufficientDriver;
    if (devices.driver_version > 0 && devices.count == 0) devices.get_device_count = cudaErrorNoDevice;
    SetMemoryLimit(static_cast<size_t>(Number("memory_mib")) << 20);
    devices.bytes_of_others = static_cast<size_t>(Number("used_mib")) << 20;
    const std::string& faults = Environment().at("faults");
    if (faults.empty()) return;
    SetWorkHook([path = faults + "/" + program_invocation_short_name] { TakeFault(path); });
  }
};

const Setup setup;

}  // namespace

const std::map<std::string, std::string>& Environment() {
  static const auto* const settings = new auto(ReadSettings());
  return *settings;
}

}  // namespace lockstep::emulation
