#include "weight_sync/bucket_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/digest.h"

namespace lockstep {
namespace {

std::string Name(DType dtype) { return std::string(DTypeName(dtype)); }

absl::Status Differs(const std::string& what, const std::string& theirs, const std::string& ours) {
  return absl::FailedPreconditionError(absl::StrCat("manifest refused: ", what, " is ", theirs, ", this server has ",
                                                    ours, "; learner and server must load the same model and dtype"));
}

std::string Shape(uint64_t rows, uint64_t cols) { return absl::StrCat("[", rows, ", ", cols, "]"); }

}  // namespace

uint64_t BucketBytes(const v1::WeightSyncConfig& sync, const std::string& transport) {
  const uint64_t mib = sync.bucket_mib() != 0 ? sync.bucket_mib() : transport.empty() || transport == "gloo" ? 32 : 64;
  return mib << 20;
}

absl::StatusOr<BucketPlan> MakeBucketPlan(const ParamLayout& layout, DType dtype, uint64_t bucket_bytes) {
  if (bucket_bytes < kMinBucketBytes || bucket_bytes > kMaxBucketBytes) {
    return absl::InvalidArgumentError(absl::StrCat("bucket size ", bucket_bytes, " bytes is not in ", kMinBucketBytes,
                                                   "..", kMaxBucketBytes, "; set weight_sync.bucket_mib"));
  }
  BucketPlan plan;
  plan.dtype = dtype;
  plan.bucket_bytes = bucket_bytes;
  Bucket bucket;
  const auto close_bucket = [&] {
    if (bucket.bytes == 0) return;
    plan.max_bytes = std::max(plan.max_bytes, bucket.bytes);
    plan.buckets.push_back(std::move(bucket));
    bucket = Bucket();
    bucket.begin = plan.total_bytes;
  };
  for (size_t param = 0; param < layout.params.size(); ++param) {
    const ParamSpec& spec = layout.params[param];
    const uint64_t row_bytes = static_cast<uint64_t>(spec.cols) * DTypeSize(dtype);
    if (row_bytes == 0) continue;
    for (int64_t row = 0; row < spec.rows;) {
      const uint64_t room = bucket_bytes > bucket.bytes ? bucket_bytes - bucket.bytes : 0;
      int64_t fit = static_cast<int64_t>(std::min<uint64_t>(room / row_bytes, static_cast<uint64_t>(spec.rows - row)));
      if (fit == 0 && bucket.bytes > 0) {
        close_bucket();
        continue;
      }
      fit = std::max<int64_t>(fit, 1);
      BucketPiece piece;
      piece.param = static_cast<int>(param);
      piece.row_begin = row;
      piece.rows = fit;
      piece.bucket_offset = bucket.bytes;
      piece.arena_offset = spec.offset + row * spec.cols;
      piece.elements = fit * spec.cols;
      bucket.pieces.push_back(piece);
      bucket.bytes += static_cast<uint64_t>(fit) * row_bytes;
      plan.total_bytes += static_cast<uint64_t>(fit) * row_bytes;
      row += fit;
    }
  }
  close_bucket();
  if (plan.buckets.size() > kMaxBuckets) {
    return absl::InvalidArgumentError(absl::StrCat(plan.total_bytes, " bytes in buckets of ", bucket_bytes, " are ",
                                                   plan.buckets.size(), " buckets, more than ", kMaxBuckets,
                                                   "; raise weight_sync.bucket_mib"));
  }
  return plan;
}

void RoundBucket(const BucketPlan& plan, const Bucket& bucket, const float* arena, void* wire) {
  for (const BucketPiece& piece : bucket.pieces) {
    ConvertFromFloat(plan.dtype, arena + piece.arena_offset, static_cast<char*>(wire) + piece.bucket_offset,
                     static_cast<size_t>(piece.elements));
  }
}

void StoreBucket(const BucketPlan& plan, const Bucket& bucket, void* wire, Weights* weights) {
  for (const BucketPiece& piece : bucket.pieces) {
    weights->SetParamRows(
        piece.param, piece.row_begin,
        Tensor(static_cast<char*>(wire) + piece.bucket_offset, plan.dtype, piece.rows, piece.elements / piece.rows));
  }
}

void LoadBucket(const BucketPlan& plan, const Bucket& bucket, const Weights& weights, void* wire) {
  for (const BucketPiece& piece : bucket.pieces) {
    weights.GetParamRows(
        piece.param, piece.row_begin,
        Tensor(static_cast<char*>(wire) + piece.bucket_offset, plan.dtype, piece.rows, piece.elements / piece.rows));
  }
}

uint64_t CombineDigests(const std::vector<uint64_t>& digests) {
  return Digest(digests.data(), digests.size() * sizeof(uint64_t));
}

v1::UpdateManifest MakeManifest(const ModelConfig& config, const ParamLayout& layout, const BucketPlan& plan,
                                const std::vector<uint64_t>& digests) {
  v1::UpdateManifest manifest;
  manifest.set_model_hash(config.Hash());
  for (const ParamSpec& spec : layout.params) {
    v1::TensorManifest* tensor = manifest.add_tensors();
    tensor->set_name(spec.name);
    tensor->set_dtype(Name(plan.dtype));
    tensor->set_rows(static_cast<uint64_t>(spec.rows));
    tensor->set_cols(static_cast<uint64_t>(spec.cols));
  }
  manifest.set_bucket_bytes(plan.bucket_bytes);
  for (size_t i = 0; i < plan.buckets.size(); ++i) {
    v1::BucketManifest* bucket = manifest.add_buckets();
    bucket->set_bytes(plan.buckets[i].bytes);
    bucket->set_digest(digests[i]);
  }
  manifest.set_digest(CombineDigests(digests));
  return manifest;
}

absl::StatusOr<BucketPlan> CheckManifest(const ModelConfig& config, const ParamLayout& layout, DType dtype,
                                         const v1::UpdateManifest& manifest) {
  if (manifest.tensors_size() != static_cast<int>(layout.params.size())) {
    return Differs("the number of tensors", absl::StrCat(manifest.tensors_size()), absl::StrCat(layout.params.size()));
  }
  for (int i = 0; i < manifest.tensors_size(); ++i) {
    const v1::TensorManifest& theirs = manifest.tensors(i);
    const ParamSpec& ours = layout.params[static_cast<size_t>(i)];
    if (theirs.name() != ours.name) {
      return Differs(absl::StrCat("the name of tensor ", i), theirs.name().substr(0, 100), ours.name);
    }
    if (theirs.rows() != static_cast<uint64_t>(ours.rows) || theirs.cols() != static_cast<uint64_t>(ours.cols)) {
      return Differs(absl::StrCat("the shape of ", ours.name), Shape(theirs.rows(), theirs.cols()),
                     Shape(static_cast<uint64_t>(ours.rows), static_cast<uint64_t>(ours.cols)));
    }
    if (theirs.dtype() != Name(dtype)) {
      return Differs(absl::StrCat("the dtype of ", ours.name), theirs.dtype().substr(0, 100), Name(dtype));
    }
  }
  // After the tensors: their difference says more than two hashes do.
  if (manifest.model_hash() != config.Hash()) {
    return Differs("the model hash", manifest.model_hash().substr(0, 100), config.Hash());
  }
  absl::StatusOr<BucketPlan> plan = MakeBucketPlan(layout, dtype, manifest.bucket_bytes());
  if (!plan.ok()) return plan.status();
  if (manifest.buckets_size() != static_cast<int>(plan->buckets.size())) {
    return Differs("the number of buckets", absl::StrCat(manifest.buckets_size()), absl::StrCat(plan->buckets.size()));
  }
  std::vector<uint64_t> digests;
  for (int i = 0; i < manifest.buckets_size(); ++i) {
    if (manifest.buckets(i).bytes() != plan->buckets[static_cast<size_t>(i)].bytes) {
      return Differs(absl::StrCat("the size of bucket ", i), absl::StrCat(manifest.buckets(i).bytes()),
                     absl::StrCat(plan->buckets[static_cast<size_t>(i)].bytes));
    }
    digests.push_back(manifest.buckets(i).digest());
  }
  if (manifest.digest() != CombineDigests(digests)) {
    return Differs("the digest of the bucket digests", DigestHex(manifest.digest()),
                   DigestHex(CombineDigests(digests)));
  }
  return plan;
}

}  // namespace lockstep
