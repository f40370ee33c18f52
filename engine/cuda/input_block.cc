#include "engine/cuda/input_block.h"

#include <utility>

#include "engine/base/check.h"

namespace lockstep::cuda {

absl::Status InputBlock::Reserve() {
  if (!has_event_) {
    auto event = Event::Create();
    if (!event.ok()) return event.status();
    copied_ = *std::move(event);
    has_event_ = true;
  }
  if (absl::Status status = copied_.Wait(); !status.ok()) return status;
  if (used_ <= host_.bytes()) return absl::OkStatus();
  host_ = PinnedBuffer();
  device_ = DeviceBuffer();
  auto host = PinnedBuffer::Allocate(used_, "a batch's inputs");
  if (!host.ok()) return host.status();
  auto device = DeviceBuffer::Allocate(used_, "a batch's inputs");
  if (!device.ok()) return device.status();
  host_ = *std::move(host);
  device_ = *std::move(device);
  return absl::OkStatus();
}

absl::Status InputBlock::CopyFirst(size_t bytes, const Stream& stream) {
  LOCKSTEP_CHECK(bytes <= host_.bytes(), "Reserve comes before the copy of what was added");
  absl::Status status = stream.CopyToDevice(device_.data(), host_.data(), bytes);
  return status.ok() ? copied_.Record(stream) : status;
}

}  // namespace lockstep::cuda
