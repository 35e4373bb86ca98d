#include "hnsw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <queue>

#include "error.h"
#include "hnswlib_graph.h"
#include "parallel.h"
#include "walk.h"

namespace tttnn {

namespace {

constexpr std::size_t kHeaderSize = 96;
constexpr std::size_t kMostLinks = 20000;  // hnswlib caps M at 10000, and level 0 has twice as many
constexpr std::size_t kLinesAhead = 4;     // cache lines of a vector to ask for; the processor follows the rest

template <typename T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

class Space : public hnswlib::SpaceInterface<float> {
 public:
  Space(std::size_t dim, Metric metric) : dim_(dim), distance_(distance_function(metric)) {}
  std::size_t get_data_size() override { return dim_ * sizeof(float); }
  hnswlib::DISTFUNC<float> get_dist_func() override { return distance_; }
  void* get_dist_func_param() override { return &dim_; }

 private:
  std::size_t dim_;
  DistanceFn distance_;
};

// A link list in the file: its length in the low 16 bits of the first word, then the nodes.
struct Links {
  const std::byte* at;
  std::size_t size() const { return read<std::uint16_t>(at); }
  std::uint32_t operator[](std::size_t i) const { return read<std::uint32_t>(at + 4 + 4 * i); }
};

}  // namespace

struct HnswBuilder::State {
  State(std::size_t dim, Metric metric, std::size_t capacity, const HnswOptions& options)
      : space(dim, metric),
        graph(&space, capacity, options.M, options.ef_construction, graph_seed(options.seed)),
        dim_(dim) {}
  Space space;
  hnswlib::HierarchicalNSW<float> graph;
  std::size_t dim_;
};

HnswBuilder::HnswBuilder(std::size_t dim, Metric metric, std::size_t capacity, const HnswOptions& options)
    : state_(std::make_unique<State>(dim, metric, std::max<std::size_t>(1, capacity), options)) {}

HnswBuilder::~HnswBuilder() = default;

void HnswBuilder::add(const float* vectors, const std::int64_t* ids, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    state_->graph.addPoint(vectors + i * state_->dim_, static_cast<hnswlib::labeltype>(ids[i]));
}

void HnswBuilder::save(const std::string& path) const {
  state_->graph.saveIndex(path);
  std::ifstream written(path, std::ios::binary | std::ios::ate);
  const std::size_t expected = state_->graph.indexFileSize();
  const auto found = written ? static_cast<std::streamoff>(written.tellg()) : -1;
  if (found < 0 || static_cast<std::size_t>(found) != expected)
    throw Error(ErrorCode::kIo, path + ": wrote " + std::to_string(std::max<std::streamoff>(0, found)) + " of " +
                                    std::to_string(expected) +
                                    " bytes. Free some space and run the same command again.");
}

struct HnswIndex::Scratch {
  explicit Scratch(std::size_t nodes) : visited(nodes, 0) {}

  // Marks of earlier walks are told apart by their number, so nothing is cleared between walks.
  void begin(std::size_t ef) {
    if (++walk == 0) {
      std::fill(visited.begin(), visited.end(), std::uint16_t{0});
      walk = 1;
    }
    lists.begin(ef);
    computed = 0;
  }
  bool visit(std::uint32_t node) {
    if (visited[node] == walk) return false;
    visited[node] = walk;
    return true;
  }

  std::vector<std::uint16_t> visited;  // by node: the number of the walk that saw it
  std::uint16_t walk = 0;
  WalkLists lists;
  std::int64_t computed = 0;  // distances, in the current walk
};

struct HnswIndex::Reader {
  const HnswIndex& index;
  const float* query;
  Scratch& scratch;

  bool visit(std::uint32_t node) { return scratch.visit(node); }
  void gather(std::uint32_t of, std::vector<std::uint32_t>& batch) { index.gather_unvisited(of, scratch, batch); }
  float distance(std::uint32_t node) const { return index.distance_(query, index.table_.at(node), &index.table_.dim); }
};

HnswIndex::~HnswIndex() = default;

HnswIndex::HnswIndex(const std::byte* bytes, std::size_t size, std::size_t dim, Metric metric, std::size_t ids,
                     std::vector<std::pair<std::int64_t, std::int64_t>> copies, const std::string& name)
    : distance_(distance_function(metric)) {
  const auto corrupt = [&name](const std::string& what) {
    return Error(ErrorCode::kIndexCorrupt, name + ": " + what + ". Restore the file or rebuild the datastore.");
  };
  if (size < kHeaderSize)
    throw corrupt("holds " + std::to_string(size) + " bytes, but a header has " + std::to_string(kHeaderSize));
  const auto offset0 = read<std::uint64_t>(bytes);
  const auto count = read<std::uint64_t>(bytes + 16);
  record_size_ = read<std::uint64_t>(bytes + 24);
  const auto id_offset = read<std::uint64_t>(bytes + 32);
  const auto vector_offset = read<std::uint64_t>(bytes + 40);
  top_level_ = read<std::int32_t>(bytes + 48);
  entry_ = read<std::uint32_t>(bytes + 52);
  max_links_ = read<std::uint64_t>(bytes + 56);
  max_links0_ = read<std::uint64_t>(bytes + 64);

  if (offset0 != 0 || max_links_ < 1 || max_links_ > kMostLinks || max_links0_ < 1 || max_links0_ > kMostLinks ||
      vector_offset != 4 * max_links0_ + 4 || id_offset != vector_offset + 4 * dim || record_size_ != id_offset + 8)
    throw corrupt("its header does not describe vectors of " + std::to_string(dim) + " dimensions");
  const std::size_t body = size - kHeaderSize;
  if (count > body / record_size_ || count > std::numeric_limits<std::uint32_t>::max() / 2)
    throw corrupt("its header promises " + std::to_string(count) + " vectors, more than its " + std::to_string(size) +
                  " bytes hold");
  if (count == 0 ? top_level_ != -1 : (top_level_ < 0 || top_level_ > 255 || entry_ >= count))
    throw corrupt("its entry point is not a node of its graph");

  level0_ = bytes + kHeaderSize;
  table_ = VectorTable{level0_ + vector_offset, record_size_, count, dim, metric};
  ids_.resize(count);
  upper_.resize(count, nullptr);
  levels_.resize(count, 0);
  const std::size_t upper_list = 4 * max_links_ + 4;
  const std::byte* at = level0_ + count * record_size_;
  const std::byte* const end = bytes + size;
  for (std::size_t node = 0; node < count; ++node) {
    const auto id = read<std::uint64_t>(level0_ + node * record_size_ + id_offset);
    if (id >= ids || (node > 0 && static_cast<std::int64_t>(id) <= ids_[node - 1]))
      throw corrupt("node " + std::to_string(node) + " has id " + std::to_string(id) + ", which is out of order");
    ids_[node] = static_cast<std::int64_t>(id);
    if (end - at < 4) throw corrupt("ends inside the links of node " + std::to_string(node));
    const auto bytes_of_lists = read<std::uint32_t>(at);
    at += 4;
    if (bytes_of_lists == 0) continue;
    const std::size_t levels = bytes_of_lists / upper_list;
    if (bytes_of_lists % upper_list != 0 || levels > static_cast<std::size_t>(top_level_) ||
        static_cast<std::size_t>(end - at) < bytes_of_lists)
      throw corrupt("the links of node " + std::to_string(node) + " have a wrong size");
    upper_[node] = at;
    levels_[node] = static_cast<std::uint8_t>(levels);
    at += bytes_of_lists;
  }
  if (at != end) throw corrupt(std::to_string(end - at) + " bytes follow its last link");
  if (count > 0 && levels_[entry_] != top_level_) throw corrupt("its entry point is not on its top level");
  check_links(name);

  copies_.reserve(copies.size());
  for (const auto& [id, first] : copies) {
    const auto place = std::lower_bound(ids_.begin(), ids_.end(), first);
    if (place == ids_.end() || *place != first || id <= first || static_cast<std::size_t>(id) >= ids)
      throw corrupt("id " + std::to_string(id) + " is listed as a copy of id " + std::to_string(first) +
                    ", which is not in the graph");
    copies_.emplace_back(static_cast<std::uint32_t>(place - ids_.begin()), id);
  }
  std::sort(copies_.begin(), copies_.end());
}

void HnswIndex::check_links(const std::string& name) const {
  const std::size_t upper_list = 4 * max_links_ + 4;
  for (std::size_t node = 0; node < table_.count; ++node) {
    for (int level = 0; level <= levels_[node]; ++level) {
      const Links links{level == 0 ? level0_ + node * record_size_
                                   : upper_[node] + static_cast<std::size_t>(level - 1) * upper_list};
      const std::size_t size = links.size();
      bool good = size <= (level == 0 ? max_links0_ : max_links_);
      for (std::size_t i = 0; good && i < size; ++i)
        good = links[i] < table_.count && levels_[links[i]] >= level && links[i] != node;
      if (!good)
        throw Error(ErrorCode::kIndexCorrupt, name + ": node " + std::to_string(node) + " has a wrong link on level " +
                                                  std::to_string(level) +
                                                  ". Restore the file or rebuild the datastore.");
    }
  }
}

// The node nearest to the query that a greedy walk over the upper levels finds.
std::uint32_t HnswIndex::descend(const float* query, Scratch& scratch) const {
  std::uint32_t best = entry_;
  ++scratch.computed;
  float best_distance = distance_(query, table_.at(best), &table_.dim);
  const std::size_t upper_list = 4 * max_links_ + 4;
  for (int level = top_level_; level > 0; --level) {
    for (bool moved = true; moved;) {
      moved = false;
      const Links links{upper_[best] + static_cast<std::size_t>(level - 1) * upper_list};
      const std::size_t size = links.size();
      scratch.computed += static_cast<std::int64_t>(size);
      for (std::size_t i = 0; i < size; ++i) __builtin_prefetch(table_.at(links[i]));
      for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t node = links[i];
        const float d = distance_(query, table_.at(node), &table_.dim);
        // Of a file that was cut short while it is mapped, links read as zeros: node 0 need not be on this level.
        if (d < best_distance && levels_[node] >= level) {
          best_distance = d;
          best = node;
          moved = true;
        }
      }
    }
  }
  return best;
}

// Puts the neighbors of `of` that were not visited yet into `batch`, their vectors on the way to the cache.
void HnswIndex::gather_unvisited(std::uint32_t of, Scratch& scratch, std::vector<std::uint32_t>& batch) const {
  const Links links{level0_ + of * record_size_};
  const std::size_t size = links.size();
  batch.clear();
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t node = links[i];
    if (!scratch.visit(node)) continue;
    const auto* vector = reinterpret_cast<const char*>(table_.at(node));
    for (std::size_t line = 0; line < kLinesAhead; ++line) __builtin_prefetch(vector + 64 * line);
    batch.push_back(node);
  }
  scratch.computed += static_cast<std::int64_t>(batch.size());
}

std::unique_ptr<HnswIndex::Scratch> HnswIndex::take_scratch() const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      auto scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<Scratch>(table_.count);
}

void HnswIndex::give_scratch(std::unique_ptr<Scratch> scratch) const {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(scratch));
}

std::size_t HnswIndex::held_bytes() const {
  return ids_.capacity() * sizeof(ids_[0]) + upper_.capacity() * sizeof(upper_[0]) + levels_.capacity() +
         copies_.capacity() * sizeof(copies_[0]);
}

std::size_t HnswIndex::search(const SearchRequest& request, std::int64_t* out_ids, float* out_distances,
                              std::int64_t* out_computed) const {
  std::vector<std::uint8_t> allowed_nodes;
  std::size_t candidates = table_.count;
  if (request.allowed != nullptr) {
    allowed_nodes.resize(table_.count);
    for (std::size_t node = 0; node < table_.count; ++node) allowed_nodes[node] = request.allowed[ids_[node]] != 0;
    for (const auto& [node, id] : copies_) allowed_nodes[node] |= request.allowed[id] != 0;
    candidates = static_cast<std::size_t>(std::count(allowed_nodes.begin(), allowed_nodes.end(), 1));
  }
  const std::uint8_t* allowed = request.allowed == nullptr ? nullptr : allowed_nodes.data();
  const std::size_t ef = std::min(std::max(request.ef, request.k), std::max<std::size_t>(1, table_.count));

  const auto id_of = [this](std::uint32_t node) { return ids_[node]; };
  const auto emit = [&](const NearestList& nearest, std::size_t q) {
    write_answer(nearest, id_of, copies_, request, out_ids + q * request.k, out_distances + q * request.k);
  };

  if (prefers_scan(request.method, ef, table_.count, candidates)) {
    const auto lists = scan(table_, request.queries, request.count, request.k, allowed, request.threads);
    for (std::size_t q = 0; q < request.count; ++q) emit(lists[q], q);
    if (out_computed != nullptr) std::fill_n(out_computed, request.count, static_cast<std::int64_t>(candidates));
    return request.count;
  }
  const auto task = [&](std::size_t q) {
    auto scratch = take_scratch();
    Reader reader{*this, request.queries + q * table_.dim, *scratch};
    scratch->begin(ef);
    const std::uint32_t node = descend(reader.query, *scratch);
    const Candidate start{reader.distance(node), node};
    if (allowed == nullptr) {
      walk(reader, start, scratch->lists);
    } else {
      walk_allowed(reader, start, allowed, scratch->lists);
    }
    emit(scratch->lists.nearest, q);
    if (out_computed != nullptr) out_computed[q] = scratch->computed;
    give_scratch(std::move(scratch));
  };
  shared_pool().run(request.count, task, request.threads);
  return 0;
}

}  // namespace tttnn
