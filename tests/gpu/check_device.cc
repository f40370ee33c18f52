#include "tests/gpu/check_device.h"

#include <cstdio>
#include <string>

#include "weight_sync/device_wait.h"

namespace lockstep {

absl::Status CopyNow(DeviceRuntime& runtime, void* stream, void* to, const void* from, uint64_t bytes) {
  const absl::Status status = runtime.Copy(to, from, bytes, stream);
  if (!status.ok()) return status;
  const std::atomic<bool> never{false};
  return WaitForDevice("a copy", absl::Now() + absl::Seconds(60), never, [&] { return runtime.StreamDone(stream); });
}

int ExitCode(const char* what, const absl::Status& status) {
  const std::string message(status.message());
  if (absl::IsUnavailable(status)) {
    std::printf("%s\n", message.c_str());
    return kNoDevice;
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s failed: %s\n", what, message.c_str());
  return 1;
}

}  // namespace lockstep
