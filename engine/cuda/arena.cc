#include "engine/cuda/arena.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/tensor/dtype.h"

namespace lockstep::cuda {
namespace {

int64_t Align(int64_t elements) { return (elements + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// Rows of a parameter's [rows, cols] from either source, in `dtype`.
void ReadRows(const ArenaLayout& layout, const ParamSource& source, int param, int64_t row, const Tensor& rows) {
  if (source.weights != nullptr) {
    source.weights->GetParamRows(param, row, rows);
    return;
  }
  const ParamSpec& spec = layout.params.params[static_cast<size_t>(param)];
  ConvertFromFloat(rows.dtype, source.arena + spec.offset + row * spec.cols, rows.data,
                   static_cast<size_t>(rows.rows * rows.cols));
}

}  // namespace

ArenaLayout::ArenaLayout(const ModelConfig& config) : params(config), offsets(params.params.size(), -1) {
  const auto place = [&](int param) {
    size = Align(size);
    offsets[static_cast<size_t>(param)] = size;
    size += params.params[static_cast<size_t>(param)].size();
  };
  for (int param = 0; param < static_cast<int>(offsets.size()); ++param) {
    if (offsets[static_cast<size_t>(param)] >= 0) continue;  // placed with its layer's experts
    const int64_t layer = params.params[static_cast<size_t>(param)].layer;
    const int first = layer < 0 ? -1 : params.layers[static_cast<size_t>(layer)].experts;
    if (first != param) {
      place(param);
      continue;
    }
    for (const int kind : {0, 1}) {  // all gate_up, then all down
      size = Align(size);
      for (int64_t e = 0; e < config.num_experts; ++e) {
        const auto expert = static_cast<size_t>(first + 2 * e + kind);
        offsets[expert] = size;
        size += params.params[expert].size();
      }
    }
  }
  size = Align(size);
}

Tensor ArenaLayout::View(int param, void* arena, DType dtype) const {
  if (param < 0) return Tensor();
  const ParamSpec& spec = params.params[static_cast<size_t>(param)];
  char* data = static_cast<char*>(arena) + offsets[static_cast<size_t>(param)] * static_cast<int64_t>(DTypeSize(dtype));
  return Tensor(data, dtype, spec.rows, spec.cols);
}

Tensor ArenaLayout::ViewExperts(int first_param, int64_t num_experts, void* arena, DType dtype) const {
  if (first_param < 0) return Tensor();
  Tensor view = View(first_param, arena, dtype);
  view.rows *= num_experts;
  return view;
}

absl::StatusOr<Staging> Staging::Create(size_t block_bytes) {
  Staging staging;
  for (Block& block : staging.blocks_) {
    auto buffer = PinnedBuffer::Allocate(block_bytes, "copies to and from the device");
    if (!buffer.ok()) return buffer.status();
    auto event = Event::Create();
    if (!event.ok()) return event.status();
    block = {*std::move(buffer), *std::move(event)};
  }
  return staging;
}

absl::Status Staging::ToDevice(const Stream& stream, void* device, size_t bytes, size_t unit, Fill fill) {
  const size_t step = blocks_[0].buffer.bytes() / unit * unit;
  LOCKSTEP_CHECK(step > 0, "a unit is larger than a staging block");
  for (size_t offset = 0; offset < bytes; offset += step) {
    Block& block = blocks_[std::exchange(next_, 1 - next_)];
    const size_t count = std::min(step, bytes - offset);
    if (absl::Status status = block.free.Wait(); !status.ok()) return status;
    fill(offset, count, block.buffer.data());
    absl::Status status = stream.CopyToDevice(static_cast<char*>(device) + offset, block.buffer.data(), count);
    if (status.ok()) status = block.free.Record(stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Staging::ToHost(const Stream& stream, const void* device, size_t bytes, size_t unit, Take take) {
  const size_t step = blocks_[0].buffer.bytes() / unit * unit;
  LOCKSTEP_CHECK(step > 0, "a unit is larger than a staging block");
  const auto copy = [&](size_t offset) {  // into the block whose turn it is
    Block& block = blocks_[next_];
    absl::Status status = block.free.Wait();
    if (status.ok()) {
      status = stream.CopyToHost(block.buffer.data(), static_cast<const char*>(device) + offset,
                                 std::min(step, bytes - offset));
    }
    return status.ok() ? block.free.Record(stream) : status;
  };
  if (bytes == 0) return absl::OkStatus();
  if (absl::Status status = copy(0); !status.ok()) return status;
  for (size_t offset = 0; offset < bytes; offset += step) {
    Block& block = blocks_[std::exchange(next_, 1 - next_)];
    if (offset + step < bytes) {  // the next piece is on its way while this one is taken
      if (absl::Status status = copy(offset + step); !status.ok()) return status;
    }
    if (absl::Status status = block.free.Wait(); !status.ok()) return status;
    take(offset, std::min(step, bytes - offset), block.buffer.data());
  }
  return absl::OkStatus();
}

absl::Status LoadArena(const ArenaLayout& layout, const ParamSource& source, DType dtype, void* arena,
                       const Stream& stream, Staging& staging) {
  for (int param = 0; param < static_cast<int>(layout.offsets.size()); ++param) {
    const Tensor view = layout.View(param, arena, dtype);
    const size_t unit = static_cast<size_t>(view.cols) * DTypeSize(dtype);
    const auto fill = [&](size_t offset, size_t count, void* host) {
      ReadRows(layout, source, param, static_cast<int64_t>(offset / unit),
               Tensor(host, dtype, static_cast<int64_t>(count / unit), view.cols));
    };
    absl::Status status = staging.ToDevice(stream, view.data, static_cast<size_t>(view.rows) * unit, unit, fill);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status StoreArena(const ArenaLayout& layout, DType dtype, const void* arena, float* values, const Stream& stream,
                        Staging& staging) {
  for (int param = 0; param < static_cast<int>(layout.offsets.size()); ++param) {
    const Tensor view = layout.View(param, const_cast<void*>(arena), dtype);
    float* const to = values + layout.params.params[static_cast<size_t>(param)].offset;
    const size_t size = DTypeSize(dtype);
    const auto take = [&](size_t offset, size_t count, const void* host) {
      ConvertToFloat(dtype, host, to + offset / size, count / size);
    };
    absl::Status status =
        staging.ToHost(stream, view.data, static_cast<size_t>(view.rows * view.cols) * size, size, take);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
