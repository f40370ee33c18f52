#include "engine/tokenizer/bpe.h"

#include <queue>
#include <tuple>

namespace lockstep {
namespace {

// A piece is a doubly linked list over its first positions, so that a merge is O(1).
struct Node {
  int32_t id;
  int32_t previous;
  int32_t next;  // -1: none
};

struct Candidate {
  int32_t rank;
  int32_t position;  // of the left node
  int32_t left, right;
  int32_t merged;
  bool operator>(const Candidate& other) const {
    return std::tie(rank, position) > std::tie(other.rank, other.position);
  }
};

}  // namespace

void MergeTable::Apply(std::vector<int32_t>* ids) const {
  const int32_t n = static_cast<int32_t>(ids->size());
  if (n < 2 || merges_.empty()) return;
  std::vector<Node> nodes(n);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto push = [&](int32_t left) {
    const int32_t right = nodes[left].next;
    if (right < 0) return;
    const auto it = merges_.find(Key(nodes[left].id, nodes[right].id));
    if (it != merges_.end()) queue.push({it->second.rank, left, nodes[left].id, nodes[right].id, it->second.merged});
  };
  for (int32_t i = 0; i < n; ++i) nodes[i] = {(*ids)[i], i - 1, i + 1 < n ? i + 1 : -1};
  for (int32_t i = 0; i + 1 < n; ++i) push(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Node& left = nodes[top.position];
    // A candidate is out of date once either side was merged; a swallowed node has id -1.
    if (left.id != top.left || left.next < 0 || nodes[left.next].id != top.right) continue;
    Node& right = nodes[left.next];
    left.id = top.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) nodes[left.next].previous = top.position;
    push(top.position);
    if (left.previous >= 0) push(left.previous);
  }
  ids->clear();
  for (int32_t i = 0; i >= 0; i = nodes[i].next) ids->push_back(nodes[i].id);
}

}  // namespace lockstep
