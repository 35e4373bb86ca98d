#include "compact_index.h"

#include <cstring>

#include "error.h"
#include "parallel.h"
#include "walk.h"

namespace tttnn {

namespace {

constexpr std::size_t kLinesAhead = 4;      // cache lines of a vector to ask for; the processor follows the rest
constexpr std::size_t kFewestSlots = 8192;  // of a set of visited nodes
constexpr std::size_t kAtOnce = 4096;       // records that a thread checks at a time

std::uint32_t word(const std::byte* from) {
  std::uint32_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

RecordKind record_kind(CompactKind kind) {
  return kind == CompactKind::kInt8 ? RecordKind::kInt8 : RecordKind::kFloat16;
}

// Nodes that one walk has seen: as large as the walk, not as the graph. Those of earlier walks are told apart by their
// number, so nothing is cleared between walks.
class VisitedSet {
 public:
  VisitedSet() : slots_(kFewestSlots, 0) {}

  void begin() {
    used_ = 0;
    if (++walk_ == 0) {
      std::fill(slots_.begin(), slots_.end(), std::uint64_t{0});
      walk_ = 1;
    }
  }

  bool insert(std::uint32_t node) {
    if (2 * used_ >= slots_.size()) grow();
    return place(std::uint64_t{walk_} << 32 | node);
  }

 private:
  bool place(std::uint64_t entry) {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t at = static_cast<std::uint32_t>(entry) * std::uint64_t{0x9E3779B97F4A7C15} >> 20 & mask;;
         at = (at + 1) & mask) {
      if (slots_[at] == entry) return false;
      if (slots_[at] >> 32 == walk_) continue;
      slots_[at] = entry;
      ++used_;
      return true;
    }
  }

  void grow() {
    std::vector<std::uint64_t> before(2 * slots_.size(), 0);
    before.swap(slots_);
    used_ = 0;
    for (const std::uint64_t entry : before)
      if (entry >> 32 == walk_) place(entry);
  }

  std::vector<std::uint64_t> slots_;  // the walk's number in the high half, the node in the low one
  std::size_t used_ = 0;
  std::uint32_t walk_ = 0;
};

}  // namespace

struct CompactIndex::Scratch {
  VisitedSet visited;
  WalkLists lists;
};

// A record of a level above 0.
struct CompactIndex::Above {
  std::uint32_t node;
  std::uint32_t below;
  std::uint32_t size;
  const std::byte* links;
};

struct CompactIndex::Reader {
  Reader(const CompactIndex& from, const float* query, Scratch& of)
      : index(from), ready(from.kind_, from.metric_, query, from.dim()), scratch(of) {}

  bool visit(std::uint32_t node) { return scratch.visited.insert(node); }

  void gather(std::uint32_t of, std::vector<std::uint32_t>& batch) {
    const std::byte* const record = index.links_.record(0, of);
    const std::uint32_t size = word(record);
    if (size > index.links_.header().links0) index.links_.corrupt(0, of, "has too many links");
    batch.clear();
    for (std::uint32_t i = 0; i < size; ++i) {
      const std::uint32_t node = word(record + 4 + 4 * i);
      if (node >= index.nodes()) index.links_.corrupt(0, of, "has a wrong link");
      if (!visit(node)) continue;
      index.compact_.expect(0, node);  // of a cold file many pages are then read at once
      const auto* vector = reinterpret_cast<const char*>(index.compact_.at(0, node));
      for (std::size_t line = 0; line < kLinesAhead; ++line) __builtin_prefetch(vector + 64 * line);
      batch.push_back(node);
    }
  }

  float distance(std::uint32_t node) {
    ++computed;
    return ready.distance(index.compact_.record(0, node));
  }

  const CompactIndex& index;
  CompactQuery ready;
  Scratch& scratch;
  std::int64_t computed = 0;
};

CompactIndex::CompactIndex(const std::string& folder, CompactKind kind, std::size_t dim, Metric metric, std::size_t ids,
                           const std::vector<std::pair<std::int64_t, std::int64_t>>& copies)
    : links_(folder + "/graph.links", RecordKind::kLinks),
      full_(folder + "/vectors.full", RecordKind::kFloat32),
      compact_(folder + "/vectors." + kind_name(record_kind(kind)), record_kind(kind)),
      kind_(kind),
      metric_(metric),
      distance_(distance_function(metric)) {
  for (const RecordFile* file : {&full_, &compact_}) {
    if (file->header().tie != links_.header().tie || file->count(0) != links_.count(0))
      file->corrupt("is not of the same index as graph.links");
    if (file->header().dim != dim)
      file->corrupt("holds vectors of " + std::to_string(file->header().dim) + " dimensions, expected " +
                    std::to_string(dim));
  }
  if (nodes() + copies.size() != ids)
    full_.corrupt("holds " + std::to_string(nodes()) + " vectors, expected " + std::to_string(ids - copies.size()));
  for (std::size_t i = 0; i < copies.size(); ++i) {
    const std::int64_t before = copies[i].first - static_cast<std::int64_t>(i);
    if (copies[i].first < 1 || static_cast<std::size_t>(copies[i].first) >= ids ||
        (i > 0 && copies[i].first <= copies[i - 1].first))
      full_.corrupt("id " + std::to_string(copies[i].first) + " is listed as a copy out of order");
    nodes_before_.push_back(before);
  }
  for (const auto& [id, first] : copies) {
    const auto at = std::lower_bound(copies.begin(), copies.end(), std::make_pair(first, std::int64_t{-1}));
    if (first < 0 || first >= id || (at != copies.end() && at->first == first))
      full_.corrupt("id " + std::to_string(id) + " is listed as a copy of id " + std::to_string(first) +
                    ", which is not in the graph");
    copies_.emplace_back(static_cast<std::uint32_t>(first - (at - copies.begin())), id);
  }
  std::sort(copies_.begin(), copies_.end());
}

CompactIndex::~CompactIndex() = default;

std::size_t CompactIndex::held_bytes() const noexcept {
  return links_.held_bytes() + full_.held_bytes() + compact_.held_bytes() +
         nodes_before_.capacity() * sizeof(nodes_before_[0]) + copies_.capacity() * sizeof(copies_[0]);
}

void CompactIndex::require_whole() const {
  for (const RecordFile* file : {&links_, &full_, &compact_}) file->require_whole();
}

std::int64_t CompactIndex::id_of(std::uint32_t node) const {
  const auto copies = std::upper_bound(nodes_before_.begin(), nodes_before_.end(), std::int64_t{node});
  return static_cast<std::int64_t>(node) + (copies - nodes_before_.begin());
}

CompactIndex::Above CompactIndex::above(std::size_t level, std::size_t position) const {
  const std::byte* const record = links_.record(level, position);
  const Above found{word(record), word(record + 4), word(record + 8), record + 12};
  // What it stands for on the level below is the same node.
  if (found.node >= nodes() || found.below >= links_.count(level - 1) ||
      (level == 1 ? found.below : word(links_.record(level - 1, found.below))) != found.node)
    links_.corrupt(level, position, "is of a wrong node");
  if (found.size > links_.header().links) links_.corrupt(level, position, "has too many links");
  return found;
}

// The node nearest to the query that a greedy walk over the upper levels finds.
Candidate CompactIndex::descend(Reader& reader) const {
  std::size_t level = links_.header().sections.size() - 1;
  std::uint32_t position = links_.header().entry;
  if (level == 0) return {reader.distance(position), position};
  Above best = above(level, position);
  float best_distance = reader.distance(best.node);
  for (;; --level) {
    for (bool moved = true; moved;) {
      moved = false;
      const Above from = best;
      for (std::uint32_t i = 0; i < from.size; ++i) {
        const std::uint32_t to = word(from.links + 4 * i);
        if (to >= links_.count(level)) links_.corrupt(level, position, "has a wrong link");
        const Above candidate = above(level, to);
        const float d = reader.distance(candidate.node);
        if (d < best_distance) {
          best_distance = d;
          best = candidate;
          position = to;
          moved = true;
        }
      }
    }
    if (level == 1) return {best_distance, best.node};
    position = best.below;
    best = above(level - 1, position);
  }
}

void CompactIndex::rank_again(const float* query, std::size_t k, const NearestList& found, NearestList& best) const {
  const std::size_t kept = std::min(found.size(), ranked_again(k));
  const std::size_t size = dim();
  for (std::size_t i = 0; i < kept; ++i) full_.expect(0, found[i].node);
  for (std::size_t i = 0; i < kept; ++i)
    best.offer({distance_(query, full_.record(0, found[i].node), &size), found[i].node});
}

void CompactIndex::check_vectors(const std::uint8_t* allowed, int threads) const {
  const auto task = [&](std::size_t part) {
    const std::size_t begin = part * kAtOnce, end = std::min(nodes(), begin + kAtOnce);
    if (allowed == nullptr) full_.read_ahead(0, begin, end);
    for (std::size_t node = begin; node < end; ++node)
      if (allowed == nullptr || allowed[node] != 0) full_.record(0, node);
  };
  shared_pool().run((nodes() + kAtOnce - 1) / kAtOnce, task, threads);
}

std::unique_ptr<CompactIndex::Scratch> CompactIndex::take_scratch() const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      auto scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<Scratch>();
}

void CompactIndex::give_scratch(std::unique_ptr<Scratch> scratch) const {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(scratch));
}

std::size_t CompactIndex::search(const SearchRequest& request, std::int64_t* out_ids, float* out_distances,
                                 std::int64_t* out_computed) const {
  std::vector<std::uint8_t> allowed_nodes;
  std::size_t candidates = nodes();
  if (request.allowed != nullptr) {
    allowed_nodes.resize(nodes());
    std::size_t copy = 0;
    for (std::size_t node = 0; node < nodes(); ++node) {
      while (copy < nodes_before_.size() && nodes_before_[copy] <= static_cast<std::int64_t>(node)) ++copy;
      allowed_nodes[node] = request.allowed[node + copy] != 0;
    }
    for (const auto& [node, id] : copies_) allowed_nodes[node] |= request.allowed[id] != 0;
    candidates = static_cast<std::size_t>(std::count(allowed_nodes.begin(), allowed_nodes.end(), 1));
  }
  const std::uint8_t* allowed = request.allowed == nullptr ? nullptr : allowed_nodes.data();
  const std::size_t ef = std::min(std::max(request.ef, request.k), nodes());
  const auto emit = [&](const NearestList& nearest, std::size_t q) {
    write_answer(
        nearest, [this](std::uint32_t node) { return id_of(node); }, copies_, request, out_ids + q * request.k,
        out_distances + q * request.k);
  };

  if (prefers_scan(request.method, ef, nodes(), candidates)) {
    check_vectors(allowed, request.threads);
    const VectorTable table{full_.at(0, 0), full_.stride(0), nodes(), dim(), metric_};
    const auto lists = scan(table, request.queries, request.count, request.k, allowed, request.threads);
    for (std::size_t q = 0; q < request.count; ++q) emit(lists[q], q);
    if (out_computed != nullptr) std::fill_n(out_computed, request.count, static_cast<std::int64_t>(candidates));
    require_whole();
    return request.count;
  }
  const auto task = [&](std::size_t q) {
    auto scratch = take_scratch();
    const float* const query = request.queries + q * dim();
    Reader reader(*this, query, *scratch);
    scratch->visited.begin();
    scratch->lists.begin(ef);
    const Candidate start = descend(reader);
    if (allowed == nullptr) {
      walk(reader, start, scratch->lists);
    } else {
      walk_allowed(reader, start, allowed, scratch->lists);
    }
    NearestList best(std::min(request.k, nodes()));
    rank_again(query, request.k, scratch->lists.nearest, best);
    emit(best, q);
    if (out_computed != nullptr)
      out_computed[q] =
          reader.computed + static_cast<std::int64_t>(std::min(scratch->lists.nearest.size(), ranked_again(request.k)));
    give_scratch(std::move(scratch));
  };
  shared_pool().run(request.count, task, request.threads);
  require_whole();
  return 0;
}

void CompactIndex::read(const std::int64_t* nodes_wanted, std::size_t count, float* out) const {
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t node = nodes_wanted[i];
    if (node < 0 || static_cast<std::size_t>(node) >= nodes())
      throw Error(ErrorCode::kOutOfRange,
                  "node must be between 0 and " + std::to_string(nodes() - 1) + ", got " + std::to_string(node));
    std::memcpy(out + i * dim(), full_.record(0, static_cast<std::size_t>(node)), dim() * sizeof(float));
  }
  full_.require_whole();
}

void CompactIndex::verify(int threads) const {
  const std::size_t bytes = compact_bytes(kind_, dim());
  const auto vectors = [&](std::size_t part) {
    const std::size_t begin = part * kAtOnce, end = std::min(nodes(), begin + kAtOnce);
    full_.read_ahead(0, begin, end);
    compact_.read_ahead(0, begin, end);
    links_.read_ahead(0, begin, end);
    std::vector<float> vector(dim());
    std::vector<std::byte> expected(bytes);
    for (std::size_t node = begin; node < end; ++node) {
      std::memcpy(vector.data(), full_.record(0, node), dim() * sizeof(float));
      if (!compact(kind_, vector.data(), dim(), expected.data()) ||
          std::memcmp(expected.data(), compact_.record(0, node), bytes) != 0)
        compact_.corrupt(0, node, "is not the vector of vectors.full");
      const std::byte* const record = links_.record(0, node);
      const std::uint32_t size = word(record);
      if (size > links_.header().links0) links_.corrupt(0, node, "has too many links");
      for (std::uint32_t i = 0; i < size; ++i)
        if (word(record + 4 + 4 * i) >= nodes()) links_.corrupt(0, node, "has a wrong link");
    }
  };
  shared_pool().run((nodes() + kAtOnce - 1) / kAtOnce, vectors, threads);
  for (std::size_t level = 1; level < links_.header().sections.size(); ++level) {
    for (std::size_t position = 0; position < links_.count(level); ++position) {
      const Above from = above(level, position);
      for (std::uint32_t i = 0; i < from.size; ++i)
        if (word(from.links + 4 * i) >= links_.count(level)) links_.corrupt(level, position, "has a wrong link");
    }
  }
  require_whole();
}

}  // namespace tttnn
