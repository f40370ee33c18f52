// Writes a set of weights in device memory from pieces of its wire image (wire_image.h) that something else brings to
// the device, and digests what lies in the set then:
//
//   writer.Begin(&set, pieces);
//   for each piece in order: memory = writer.Memory(piece); ... its bytes into memory ...; writer.Install(piece);
//   digests = writer.Finish();
//
// A piece that is one range of the arena is brought where it belongs; any other one to a staging buffer, from which its
// rows are copied into the set and back, so that what is digested is the set itself. All of it on an own stream: the
// next piece may come meanwhile.
#ifndef LOCKSTEP_ENGINE_CUDA_SET_WRITER_H_
#define LOCKSTEP_ENGINE_CUDA_SET_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/device_weights.h"
#include "engine/cuda/wire_image.h"

namespace lockstep::cuda {

// Bytes [begin, begin + bytes) of the wire image, whole elements.
struct ImagePiece {
  uint64_t begin = 0;
  uint64_t bytes = 0;
};

class SetWriter {
 public:
  static absl::StatusOr<std::unique_ptr<SetWriter>> Create();
  // Waits for what it has enqueued.
  ~SetWriter();
  // Device memory that it takes for a set of these pieces; kept for the next one.
  static size_t Bytes(const ModelConfig& config, DType dtype, std::span<const ImagePiece> pieces);

  // The set outlives the writing, and nothing else uses it. An error of the device, RESOURCE_EXHAUSTED among them.
  absl::Status Begin(const DeviceWeights* set, std::span<const ImagePiece> pieces);
  // Where the piece's bytes are to lie: piece.bytes, a multiple of 16 as address. Waits until nothing uses it.
  absl::StatusOr<void*> Memory(size_t piece);
  // They lie there. Does not wait.
  absl::Status Install(size_t piece);
  // Waits; the BlockDigest (engine/base/digest.h) of every piece, as it lies in the set.
  absl::StatusOr<std::vector<uint64_t>> Finish();
  // Waits for what is enqueued, where the pieces do not go on: the set is free then.
  absl::Status Abandon() { return stream_.Wait("putting weights in place"); }

 private:
  SetWriter() = default;
  struct Place {
    uint64_t bytes = 0;
    std::vector<WireRun> runs;
    bool in_place = false;
    size_t first_digest = 0;  // of its blocks
  };
  static std::vector<Place> PlacesOf(const ArenaLayout& layout, DType dtype, std::span<const ImagePiece> pieces);
  // Bytes of one staging buffer; 0: every piece is in place.
  static size_t StagingBytes(std::span<const Place> places);
  static size_t NumDigests(std::span<const Place> places);

  Stream stream_;
  DeviceBuffer staging_[2];
  Event staging_free_[2];
  DeviceBuffer digests_;  // of blocks of 4,096 bytes
  PinnedBuffer host_digests_;

  const DeviceWeights* set_ = nullptr;
  std::vector<Place> places_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_SET_WRITER_H_
