#include "engine/cuda/set_writer.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/digest.h"
#include "engine/kernels/cuda/digest.h"
#include "engine/tensor/dtype.h"

namespace lockstep::cuda {
namespace {

// Of an address to which pieces are brought, for wide accesses of whatever brings and digests them.
constexpr int64_t kPieceAlignment = 16;

absl::Status Grow(DeviceBuffer& buffer, size_t bytes, absl::string_view purpose) {
  if (buffer.bytes() >= bytes) return absl::OkStatus();
  buffer = DeviceBuffer();  // first: both need not fit
  auto larger = DeviceBuffer::Allocate(bytes, purpose);
  if (!larger.ok()) return larger.status();
  buffer = *std::move(larger);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SetWriter>> SetWriter::Create() {
  std::unique_ptr<SetWriter> writer(new SetWriter);
  auto stream = Stream::Create();
  if (!stream.ok()) return stream.status();
  writer->stream_ = *std::move(stream);
  for (Event& event : writer->staging_free_) {
    auto made = Event::Create();
    if (!made.ok()) return made.status();
    event = *std::move(made);
  }
  return writer;
}

SetWriter::~SetWriter() { static_cast<void>(Abandon()); }

std::vector<SetWriter::Place> SetWriter::PlacesOf(const ArenaLayout& layout, DType dtype,
                                                  std::span<const ImagePiece> pieces) {
  const WireMap map(layout);
  const auto size = static_cast<int64_t>(DTypeSize(dtype));
  std::vector<Place> places;
  size_t digests = 0;
  for (const ImagePiece& piece : pieces) {
    Place place;
    place.bytes = piece.bytes;
    place.runs = map.Cut(static_cast<int64_t>(piece.begin) / size, static_cast<int64_t>(piece.bytes) / size);
    place.in_place = place.runs.size() == 1 && place.runs.front().arena * size % kPieceAlignment == 0;
    place.first_digest = digests;
    digests += DigestBlocks(piece.bytes);
    places.push_back(std::move(place));
  }
  return places;
}

size_t SetWriter::StagingBytes(std::span<const Place> places) {
  uint64_t bytes = 0;
  for (const Place& place : places) {
    if (!place.in_place) bytes = std::max(bytes, place.bytes);
  }
  return bytes;
}

size_t SetWriter::NumDigests(std::span<const Place> places) {
  return places.empty() ? 0 : places.back().first_digest + DigestBlocks(places.back().bytes);
}

size_t SetWriter::Bytes(const ModelConfig& config, DType dtype, std::span<const ImagePiece> pieces) {
  const std::vector<Place> places = PlacesOf(ArenaLayout(config), dtype, pieces);
  return 2 * StagingBytes(places) + NumDigests(places) * sizeof(uint64_t);
}

absl::Status SetWriter::Begin(const DeviceWeights* set, std::span<const ImagePiece> pieces) {
  set_ = set;
  places_ = PlacesOf(set->layout(), set->dtype(), pieces);
  for (DeviceBuffer& buffer : staging_) {
    absl::Status status = Grow(buffer, StagingBytes(places_), "buckets of an update");
    if (!status.ok()) return status;
  }
  const size_t digest_bytes = NumDigests(places_) * sizeof(uint64_t);
  if (absl::Status status = Grow(digests_, digest_bytes, "digests of an update"); !status.ok()) return status;
  if (host_digests_.bytes() < digest_bytes) {
    auto host = PinnedBuffer::Allocate(digest_bytes, "digests of an update");
    if (!host.ok()) return host.status();
    host_digests_ = *std::move(host);
  }
  return absl::OkStatus();
}

absl::StatusOr<void*> SetWriter::Memory(size_t piece) {
  const Place& place = places_[piece];
  if (place.in_place) {
    return static_cast<char*>(set_->arena()) +
           place.runs.front().arena * static_cast<int64_t>(DTypeSize(set_->dtype()));
  }
  if (absl::Status status = staging_free_[piece % 2].Wait(); !status.ok()) return status;
  return staging_[piece % 2].data();
}

absl::Status SetWriter::Install(size_t piece) {
  const Place& place = places_[piece];
  const absl::StatusOr<void*> memory = Memory(piece);
  if (!memory.ok()) return memory.status();
  absl::Status status;
  if (!place.in_place) {
    status = ImageToArena(place.runs, set_->dtype(), *memory, set_->arena(), stream_);
    if (status.ok()) status = ArenaToImage(place.runs, set_->dtype(), set_->arena(), *memory, stream_);
    if (!status.ok()) return status;
  }
  status = CudaStatus(DigestsOfBlocks(*memory, static_cast<int64_t>(place.bytes),
                                      digests_.As<uint64_t>() + place.first_digest, stream_.get()),
                      "digesting weights");
  return status.ok() && !place.in_place ? staging_free_[piece % 2].Record(stream_) : status;
}

absl::StatusOr<std::vector<uint64_t>> SetWriter::Finish() {
  const size_t bytes = NumDigests(places_) * sizeof(uint64_t);
  absl::Status status = stream_.CopyToHost(host_digests_.data(), digests_.data(), bytes);
  if (status.ok()) status = stream_.Wait("putting weights in place");
  if (!status.ok()) return status;
  std::vector<uint64_t> digests;
  for (const Place& place : places_) {
    digests.push_back(
        Digest(host_digests_.As<uint64_t>() + place.first_digest, DigestBlocks(place.bytes) * sizeof(uint64_t)));
  }
  return digests;
}

}  // namespace lockstep::cuda
