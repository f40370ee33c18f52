#include "engine/cuda/paged_stage.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/kernels/contract.h"

namespace lockstep::cuda {
namespace {

void CheckBatch(const ModelConfig& config, const PagedBatch& batch) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  LOCKSTEP_CHECK(batch.positions.size() == batch.tokens.size(), "one position for each token");
  for (const int32_t token : batch.tokens) {
    LOCKSTEP_CHECK(token >= 0 && token < config.vocab_size, "token id outside the vocabulary");
  }
  for (const int32_t row : batch.output_rows) {
    LOCKSTEP_CHECK(row >= 0 && row < rows, "wanted row is not in the batch");
  }
  int64_t next = 0;
  for (const PagedSequence& sequence : batch.sequences) {
    LOCKSTEP_CHECK(sequence.row_begin == next && sequence.row_count >= 0, "the rows of sequences follow each other");
    next += sequence.row_count;
    const int64_t end = sequence.position_begin + sequence.row_count;
    LOCKSTEP_CHECK(sequence.position_begin >= 0 && end <= config.max_position_embeddings,
                   "position beyond the model's longest");
    LOCKSTEP_CHECK(static_cast<int64_t>(sequence.pages.size()) * kPageTokens >= end,
                   "a sequence has pages for its rows");
  }
  LOCKSTEP_CHECK(next == rows, "the sequences have all rows");
}

// A batch's arrays in a block.
struct Arrays {
  InputBlock::Array<int32_t> tokens, positions, slots, row_sequence, outputs, table;
};
Arrays Add(int64_t rows, int64_t outputs, int64_t table, InputBlock& block) {
  block.Begin();
  Arrays arrays;
  arrays.tokens = block.Add<int32_t>(rows);
  arrays.positions = block.Add<int32_t>(rows);
  arrays.slots = block.Add<int32_t>(rows);
  arrays.row_sequence = block.Add<int32_t>(rows);
  arrays.outputs = block.Add<int32_t>(outputs);
  arrays.table = block.Add<int32_t>(table);
  return arrays;
}

}  // namespace

size_t PagedStage::Bytes(const Limits& limits) {
  InputBlock block;
  Add(limits.rows, limits.outputs, limits.rows * limits.sequence_pages, block);
  return block.bytes();
}

absl::Status PagedStage::Reserve(const Limits& limits) {
  Add(limits.rows, limits.outputs, limits.rows * limits.sequence_pages, block_);
  return block_.Reserve();
}

absl::StatusOr<PagedInputs> PagedStage::Put(const ModelConfig& config, const PagedBatch& batch, const Stream& stream) {
  CheckBatch(config, batch);
  const auto T = static_cast<int64_t>(batch.tokens.size()), R = static_cast<int64_t>(batch.output_rows.size());
  PagedInputs inputs = {.rows = T, .outputs = R, .table_stride = 1};
  bool decoding = true;
  for (const PagedSequence& sequence : batch.sequences) {
    const int64_t end = sequence.position_begin + sequence.row_count;
    inputs.max_position = std::max(inputs.max_position, end - 1);
    inputs.table_stride = std::max(inputs.table_stride, (end + kPageTokens - 1) / kPageTokens);
    decoding = decoding && sequence.row_count == 1;
    if (decoding) ++inputs.decode_rows;
  }
  const int64_t stride = inputs.table_stride;
  const auto [tokens, positions, slots, row_sequence, outputs, table] =
      Add(T, R, static_cast<int64_t>(batch.sequences.size()) * stride, block_);
  if (absl::Status status = block_.Reserve(); !status.ok()) return status;
  std::copy(batch.tokens.begin(), batch.tokens.end(), block_.Host(tokens));
  std::copy(batch.output_rows.begin(), batch.output_rows.end(), block_.Host(outputs));
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const PagedSequence& sequence = batch.sequences[i];
    const int64_t pages = std::min(stride, static_cast<int64_t>(sequence.pages.size()));
    int32_t* const row_of_table = block_.Host(table) + static_cast<int64_t>(i) * stride;
    std::copy_n(sequence.pages.begin(), pages, row_of_table);
    std::fill_n(row_of_table + pages, stride - pages, -1);
    for (int64_t j = 0; j < sequence.row_count; ++j) {
      const int64_t row = sequence.row_begin + j, position = sequence.position_begin + j;
      LOCKSTEP_CHECK(batch.positions[static_cast<size_t>(row)] == position, "a row's position is its sequence's");
      block_.Host(positions)[row] = static_cast<int32_t>(position);
      block_.Host(row_sequence)[row] = static_cast<int32_t>(i);
      block_.Host(slots)[row] = row_of_table[position / kPageTokens] * static_cast<int32_t>(kPageTokens) +
                                static_cast<int32_t>(position % kPageTokens);
    }
  }
  if (absl::Status status = block_.Copy(stream); !status.ok()) return status;
  inputs.tokens = block_.Device(tokens);
  inputs.positions = block_.Device(positions);
  inputs.slots = block_.Device(slots);
  inputs.row_sequence = block_.Device(row_sequence);
  inputs.block_table = block_.Device(table);
  inputs.output_rows = block_.Device(outputs);
  return inputs;
}

}  // namespace lockstep::cuda
