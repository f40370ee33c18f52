// Merges of byte-level BPE over token ids.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_BPE_H_
#define LOCKSTEP_ENGINE_TOKENIZER_BPE_H_

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace lockstep {

class MergeTable {
 public:
  void Reserve(size_t merges) { merges_.reserve(merges); }
  // The pair (left, right) becomes `merged`; a smaller rank merges first. The first rank of a pair counts.
  void Add(int32_t left, int32_t right, int32_t rank, int32_t merged) {
    merges_.try_emplace(Key(left, right), Merge{rank, merged});
  }
  // Merges in place until no pair is left that merges: always the smallest rank, the leftmost among equals.
  // O(n log n) for n ids, whatever they are.
  void Apply(std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  std::unordered_map<uint64_t, Merge> merges_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_BPE_H_
