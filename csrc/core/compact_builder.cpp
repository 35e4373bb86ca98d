#include "compact_builder.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "error.h"
#include "hnswlib_graph.h"
#include "store_format.h"

namespace tttnn {

namespace {

class CompactSpace : public hnswlib::SpaceInterface<float> {
 public:
  CompactSpace(CompactKind kind, Metric metric, std::size_t dim)
      : dim_(dim), bytes_(compact_bytes(kind, dim)), distance_(compact_distance_function(kind, metric)) {}
  std::size_t get_data_size() override { return bytes_; }
  hnswlib::DISTFUNC<float> get_dist_func() override { return distance_; }
  void* get_dist_func_param() override { return &dim_; }

 private:
  std::size_t dim_, bytes_;
  DistanceFn distance_;
};

// A list's length stands in the low half of its first word.
std::uint32_t hnswlib_size(const hnswlib::linklistsizeint* list) { return *list & 0xFFFFu; }

void put(std::byte* to, std::uint32_t value) { std::memcpy(to, &value, sizeof(value)); }

}  // namespace

struct CompactBuilder::State {
  State(std::size_t dim_, CompactKind kind_, Metric metric, std::size_t capacity, const HnswOptions& options)
      : space(kind_, metric, dim_),
        graph(&space, capacity, options.M, options.ef_construction, graph_seed(options.seed)),
        dim(dim_),
        kind(kind_),
        one(compact_bytes(kind_, dim_)) {
    const std::uint64_t settings[] = {static_cast<std::uint64_t>(kind),
                                      static_cast<std::uint64_t>(metric),
                                      dim,
                                      options.M,
                                      options.ef_construction,
                                      options.seed};
    tie = checksum64(settings, sizeof(settings));
  }
  RecordHeader header(RecordKind of) const {
    RecordHeader made;
    made.kind = of;
    made.tie = tie;
    made.dim = static_cast<std::uint32_t>(dim);
    made.sections = {graph.cur_element_count.load()};
    return made;
  }
  CompactSpace space;
  hnswlib::HierarchicalNSW<float> graph;
  std::size_t dim;
  CompactKind kind;
  std::vector<std::byte> one;
  std::uint64_t tie;
};

CompactBuilder::CompactBuilder(std::size_t dim, CompactKind kind, Metric metric, std::size_t capacity,
                               const HnswOptions& options) {
  if (dim < 1 || dim > kMostCompactDim)
    throw Error(ErrorCode::kInvalidArgument, "dim must be between 1 and " + std::to_string(kMostCompactDim) +
                                                 " for compact vectors, got " + std::to_string(dim));
  state_ = std::make_unique<State>(dim, kind, metric, std::max<std::size_t>(1, capacity), options);
}

CompactBuilder::~CompactBuilder() = default;

std::size_t CompactBuilder::dim() const noexcept { return state_->dim; }

void CompactBuilder::add(const float* vectors, const std::int64_t* ids, std::size_t count) {
  State& s = *state_;
  for (std::size_t i = 0; i < count; ++i) {
    const float* const vector = vectors + i * s.dim;
    if (!compact(s.kind, vector, s.dim, s.one.data()))
      throw Error(ErrorCode::kEmbedding,
                  "vector " + std::to_string(ids[i]) + ": every element must be " +
                      (s.kind == CompactKind::kFloat16 ? "below 65520 in float16" : "small enough for int8") +
                      ". Build the index with float32 vectors.");
    s.tie = checksum64(vector, s.dim * sizeof(float), s.tie);
    s.graph.addPoint(s.one.data(), s.graph.cur_element_count.load());
  }
}

void CompactBuilder::save(const std::string& links, const std::string& vectors) const {
  const State& s = *state_;
  const auto count = static_cast<std::uint32_t>(s.graph.cur_element_count.load());
  RecordHeader header = s.header(RecordKind::kLinks);
  header.dim = 0;
  header.links0 = static_cast<std::uint32_t>(s.graph.maxM0_);
  header.links = static_cast<std::uint32_t>(s.graph.maxM_);
  // Nodes of each level, and each node's position on the level that is being written and on the one below.
  std::vector<std::vector<std::uint32_t>> levels;
  for (std::uint32_t node = 0; node < count; ++node)
    for (std::size_t level = 0; level < static_cast<std::size_t>(s.graph.element_levels_[node]); ++level) {
      if (levels.size() <= level) levels.emplace_back();
      levels[level].push_back(node);
    }
  for (const auto& level : levels) header.sections.push_back(level.size());
  const auto position = [&](std::size_t level, std::uint32_t node) {
    if (level == 0) return node;
    const auto& nodes = levels[level - 1];
    return static_cast<std::uint32_t>(std::lower_bound(nodes.begin(), nodes.end(), node) - nodes.begin());
  };
  header.entry = count == 0 ? 0 : position(levels.size(), s.graph.enterpoint_node_);

  RecordWriter writer(links, header);
  std::vector<std::byte> record;
  for (std::size_t level = 0; level <= levels.size(); ++level) {
    record.resize(header.record_bytes(level));
    const std::size_t listed = level == 0 ? count : levels[level - 1].size();
    for (std::size_t i = 0; i < listed; ++i) {
      const std::uint32_t node = level == 0 ? static_cast<std::uint32_t>(i) : levels[level - 1][i];
      std::fill(record.begin(), record.end(), std::byte{0});
      std::byte* at = record.data();
      if (level > 0) {
        put(at, node);
        put(at + 4, position(level - 1, node));
        at += 8;
      }
      auto* const list = s.graph.get_linklist_at_level(node, static_cast<int>(level));
      const std::uint32_t size = hnswlib_size(list);
      put(at, size);
      for (std::uint32_t j = 0; j < size; ++j)
        put(at + 4 + 4 * static_cast<std::size_t>(j), position(level, static_cast<std::uint32_t>(list[1 + j])));
      writer.add(record.data());
    }
  }
  writer.finish();

  RecordWriter compact_writer(vectors,
                              s.header(s.kind == CompactKind::kInt8 ? RecordKind::kInt8 : RecordKind::kFloat16));
  for (std::uint32_t node = 0; node < count; ++node)
    compact_writer.add(reinterpret_cast<const std::byte*>(s.graph.getDataByInternalId(node)));
  compact_writer.finish();
}

std::unique_ptr<RecordWriter> CompactBuilder::full_writer(const std::string& path) const {
  return std::make_unique<RecordWriter>(path, state_->header(RecordKind::kFloat32));
}

}  // namespace tttnn
