// The walk over one level of a graph, whatever its vectors and links are made of.
//
// A Reader has `bool visit(node)`: whether this is the walk's first visit; `void gather(node, batch)`: the nodes that
// `node` links to and that were not visited yet, on their way to the cache; `float distance(node)`: from the query.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "scan.h"

namespace tttnn {

struct WalkLists {
  NearestList nearest{0};
  std::vector<std::uint8_t> expanded;  // by place in `nearest`
  std::vector<std::uint32_t> batch;
  std::vector<Candidate> frontier;  // a heap, for walks with a filter

  void begin(std::size_t ef) {
    nearest = NearestList(ef);
    expanded.assign(ef + 1, 0);
    frontier.clear();
  }
};

// The search of a layer in the HNSW paper (algorithm 2) with one ordered list in place of two heaps: a candidate that
// leaves the list of the ef nearest could never be expanded. `lists` has begun.
template <typename Reader>
void walk(Reader& reader, const Candidate& start, WalkLists& lists) {
  NearestList& nearest = lists.nearest;
  std::vector<std::uint8_t>& expanded = lists.expanded;
  reader.visit(start.node);
  nearest.offer(start);
  for (std::size_t next = 0; next < nearest.size();) {
    if (expanded[next]) {
      ++next;
      continue;
    }
    expanded[next] = 1;
    reader.gather(nearest[next].node, lists.batch);
    for (const std::uint32_t node : lists.batch) {
      const float d = reader.distance(node);
      if (!nearest.admits(d)) continue;
      const std::size_t before = nearest.size();
      const bool was_full = nearest.full();
      const std::size_t place = nearest.offer({d, node});
      if (was_full && place == before) continue;  // lost a tie
      const std::size_t moved = (was_full ? before - 1 : before) - place;
      std::memmove(expanded.data() + place + 1, expanded.data() + place, moved);
      expanded[place] = 0;
      next = std::min(next, place);
    }
  }
}

// The same walk, where only nodes with allowed[node] != 0 enter the answer but every node may be passed through.
template <typename Reader>
void walk_allowed(Reader& reader, const Candidate& start, const std::uint8_t* allowed, WalkLists& lists) {
  NearestList& nearest = lists.nearest;
  std::vector<Candidate>& frontier = lists.frontier;
  const auto farther = [](const Candidate& a, const Candidate& b) { return b < a; };
  reader.visit(start.node);
  frontier.push_back(start);
  if (allowed[start.node]) nearest.offer(start);
  while (!frontier.empty()) {
    std::pop_heap(frontier.begin(), frontier.end(), farther);
    const Candidate current = frontier.back();
    frontier.pop_back();
    if (!nearest.admits(current.distance)) break;
    reader.gather(current.node, lists.batch);
    for (const std::uint32_t node : lists.batch) {
      const float d = reader.distance(node);
      if (!nearest.admits(d)) continue;
      frontier.push_back({d, node});
      std::push_heap(frontier.begin(), frontier.end(), farther);
      if (allowed[node]) nearest.offer({d, node});
    }
  }
}

}  // namespace tttnn
