#include "tests/gpu/bench/limits.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/gpu/bench/bench_kernels.h"

namespace lockstep::cuda {
namespace {

constexpr int64_t kReadBlocks = 2048;  // several for each multiprocessor of the largest device
// Copies before the first measurement: a device that did nothing has low clocks for some tenths of a second.
constexpr int kWakeUp = 500;

double AsDouble(int64_t n) { return static_cast<double>(n); }

absl::StatusOr<double> CopyBandwidth(const BenchOptions& options, const Stream& stream, const DeviceBuffer& from,
                                     const DeviceBuffer& to) {
  const auto copy = [&] { return stream.CopyOnDevice(to.data(), from.data(), from.bytes()); };
  for (int i = 0; !options.tiny && i < kWakeUp; ++i) {
    if (absl::Status status = copy(); !status.ok()) return status;
  }
  const auto seconds = MedianSeconds(stream, options.repeats, copy);
  if (!seconds.ok()) return seconds.status();
  return 2 * static_cast<double>(from.bytes()) / *seconds;
}

absl::StatusOr<double> ReadBandwidth(const BenchOptions& options, const Stream& stream, const DeviceBuffer& from) {
  const int64_t blocks = options.tiny ? 2 : kReadBlocks;
  const auto found = DeviceBuffer::Allocate(static_cast<size_t>(blocks * kReadThreads) * sizeof(float), "sums");
  if (!found.ok()) return found.status();
  const auto bytes = static_cast<int64_t>(from.bytes());
  const auto seconds = MedianSeconds(stream, options.repeats, [&] {
    return CudaStatus(ReadAll(from.data(), bytes, blocks, found->As<float>(), stream.get()), "reading");
  });
  if (!seconds.ok()) return seconds.status();
  return AsDouble(bytes) / *seconds;
}

absl::StatusOr<double> MatrixRate(const BenchOptions& options, DeviceGemm& gemm, const Stream& stream) {
  const int64_t n = options.matrix_size;
  const size_t bytes = static_cast<size_t>(n * n) * DTypeSize(options.dtype);
  const auto memory = DeviceBuffer::Allocate(3 * bytes, "matrices");
  if (!memory.ok()) return memory.status();
  Tensor matrix[3];  // x, w, out
  for (int i = 0; i < 3; ++i) {
    matrix[i] = Tensor(memory->As<char>() + static_cast<size_t>(i) * bytes, options.dtype, n, n);
    const cudaError_t error = FillUniform(matrix[i], static_cast<uint64_t>(i), 0, 1, stream.get());
    if (error != cudaSuccess) return CudaStatus(error, "random matrices");
  }
  const auto seconds = MedianSeconds(stream, options.repeats, [&] {
    return CudaStatus(gemm.Linear(matrix[0], matrix[1], {}, {}, matrix[2], stream.get()), "a product");
  });
  if (!seconds.ok()) return seconds.status();
  return 2 * AsDouble(n) * AsDouble(n) * AsDouble(n) / *seconds;
}

}  // namespace

absl::StatusOr<DeviceLimits> MeasureLimits(const BenchOptions& options, DeviceGemm* native, DeviceGemm& matched,
                                           const Stream& stream, Tables& tables) {
  DeviceLimits limits;
  {
    const auto size = static_cast<size_t>(options.copied_bytes);
    const auto from = DeviceBuffer::Allocate(size, "what is copied");
    if (!from.ok()) return from.status();
    const auto to = DeviceBuffer::Allocate(size, "its copy");
    if (!to.ok()) return to.status();
    const Tensor values(from->data(), DType::kF32, 1, options.copied_bytes / 4);
    const cudaError_t error = FillUniform(values, 1, 0, 1, stream.get());
    if (error != cudaSuccess) return CudaStatus(error, "random bytes");
    const auto copy = CopyBandwidth(options, stream, *from, *to);
    if (!copy.ok()) return copy.status();
    const auto read = ReadBandwidth(options, stream, *from);
    if (!read.ok()) return read.status();
    limits.copy = *copy;
    limits.read = *read;
  }
  tables.Begin("Measured limits of this device", {"limit", "figure"});
  tables.Row({"copy on the device (bytes read and written)", absl::StrCat(Number(limits.copy * 1e-9, 0), " GB/s")});
  tables.Row({"read by a kernel", absl::StrCat(Number(limits.read * 1e-9, 0), " GB/s")});
  const auto row = [&](const char* name, DeviceGemm& gemm) -> absl::Status {
    const auto rate = MatrixRate(options, gemm, stream);
    if (!rate.ok()) return rate.status();
    tables.Row(
        {absl::StrCat(name, ", ", options.matrix_size, "^3"), absl::StrCat(Number(*rate * 1e-12, 1), " TFLOP/s")});
    if (*rate > limits.matrix) limits.matrix = *rate;
    return absl::OkStatus();
  };
  absl::Status status = native == nullptr ? absl::OkStatus() : row("matrix product by cuBLASLt", *native);
  if (status.ok()) status = row("matrix product by the matched kernel", matched);
  if (!status.ok()) return status;
  return limits;
}

ModelSize SizeOf(const ModelConfig& config, DType dtype) {
  ModelSize size;
  const ParamLayout layout(config);
  for (size_t i = 0; i < layout.params.size(); ++i) {
    const ParamSpec& param = layout.params[i];
    const double count = AsDouble(param.size());
    size.parameters += count;
    if (static_cast<int>(i) == layout.embed && layout.output() != layout.embed) continue;
    if (param.kind != ParamSpec::Kind::kVector) size.matrix_parameters += count;
    size.weight_bytes += count * static_cast<double>(DTypeSize(dtype));
  }
  size.kv_bytes =
      2 * AsDouble(config.num_layers * config.num_kv_heads * config.head_dim) * static_cast<double>(DTypeSize(dtype));
  return size;
}

double DecodeBytes(const ModelConfig& config, DType dtype, double batch, double context) {
  const ModelSize size = SizeOf(config, dtype);
  return size.weight_bytes + batch * (context + 1) * size.kv_bytes;
}

double DecodeFlop(const ModelConfig& config, DType dtype, double batch, double context) {
  return batch * (2 * SizeOf(config, dtype).matrix_parameters +
                  4 * AsDouble(config.num_layers * config.num_heads * config.head_dim) * context);
}

double TrainingFlop(const ModelConfig& config, DType dtype, double sequences, double length) {
  return sequences * length *
         (6 * SizeOf(config, dtype).matrix_parameters +
          6 * AsDouble(config.num_layers * config.num_heads * config.head_dim) * length);
}

absl::Status FillParameters(const ArenaLayout& layout, void* arena, DType dtype, const Stream& stream) {
  for (size_t i = 0; i < layout.params.params.size(); ++i) {
    const ParamSpec& param = layout.params.params[i];
    const bool norm = absl::EndsWith(param.name, "norm");
    const cudaError_t error = FillUniform(layout.View(static_cast<int>(i), arena, dtype), 100 + i, norm ? 1.0f : 0.0f,
                                          norm ? 0.1f : 0.035f, stream.get());
    if (error != cudaSuccess) return CudaStatus(error, "random weights");
  }
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
