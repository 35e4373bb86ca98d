#include <error.h>
#include <hnsw.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "bindings.h"
#include "index_arguments.h"

namespace py = pybind11;

namespace {

using tttnn::Error;
using tttnn::ErrorCode;
using namespace index_arguments;

// Holds the array whose bytes the index reads.
struct BoundIndex {
  Bytes bytes;
  std::size_t ids;
  std::unique_ptr<const tttnn::HnswIndex> index;
};

}  // namespace

void bind_hnsw(py::module_& module) {
  py::class_<tttnn::HnswBuilder>(module, "HnswBuilder", "Adds vectors to an HNSW graph in order, on one thread.")
      .def(py::init([](std::size_t dim, const std::string& metric, std::size_t capacity, std::size_t M,
                       std::size_t ef_construction, std::size_t seed) {
             if (dim == 0) throw Error(ErrorCode::kInvalidArgument, "dim must be at least 1, got 0");
             return std::make_unique<tttnn::HnswBuilder>(dim, metric_named(metric), capacity,
                                                         tttnn::HnswOptions{M, ef_construction, seed});
           }),
           py::kw_only(), py::arg("dim"), py::arg("metric"), py::arg("capacity"), py::arg("M"),
           py::arg("ef_construction"), py::arg("seed"))
      .def(
          "add",
          [](tttnn::HnswBuilder& self, const Vectors& vectors, const Ids& ids) {
            if (vectors.ndim() != 2 || ids.ndim() != 1 || ids.shape(0) != vectors.shape(0))
              throw Error(ErrorCode::kInvalidArgument, "vectors must be (n, dim) and ids (n,)");
            const float* from = vectors.data();
            const std::int64_t* labels = ids.data();
            const auto count = static_cast<std::size_t>(vectors.shape(0));
            // The arguments hold the arrays; a builder belongs to one thread.
            py::gil_scoped_release release;
            self.add(from, labels, count);
          },
          py::arg("vectors"), py::arg("ids"), "Add vectors (n, dim) under ids (n,) that grow from call to call.")
      .def(
          "save",
          [](const tttnn::HnswBuilder& self, const std::string& path) {
            // Only C++ objects are read.
            py::gil_scoped_release release;
            self.save(path);
          },
          py::arg("path"), "Write hnswlib's own file.");

  py::class_<BoundIndex>(module, "HnswIndex", "Searches the bytes of an HNSW file where they lie.")
      .def(py::init([](Bytes bytes, const Ids& copies, std::size_t dim, const std::string& metric, std::size_t ids,
                       const std::string& name) {
             if (dim == 0) throw Error(ErrorCode::kInvalidArgument, "dim must be at least 1, got 0");
             auto pairs = pairs_of(copies);
             const auto* from = reinterpret_cast<const std::byte*>(bytes.data());
             const auto size = static_cast<std::size_t>(bytes.size());
             const tttnn::Metric kind = metric_named(metric);
             std::unique_ptr<const tttnn::HnswIndex> index;
             {
               // `bytes` is held by this frame; checking reads every link, which may read the disk.
               py::gil_scoped_release release;
               index = std::make_unique<tttnn::HnswIndex>(from, size, dim, kind, ids, std::move(pairs), name);
             }
             return std::make_unique<BoundIndex>(BoundIndex{std::move(bytes), ids, std::move(index)});
           }),
           py::arg("bytes"), py::arg("copies"), py::kw_only(), py::arg("dim"), py::arg("metric"), py::arg("ids"),
           py::arg("name"))
      .def_property_readonly("nodes", [](const BoundIndex& self) { return self.index->nodes(); })
      .def_property_readonly("held_bytes", [](const BoundIndex& self) { return self.index->held_bytes(); })
      .def_property_readonly("node_ids",
                             [](const BoundIndex& self) {
                               const auto& ids = self.index->node_ids();
                               return Ids(static_cast<py::ssize_t>(ids.size()), ids.data());
                             })
      .def_property_readonly(
          "vectors",
          [](const py::object& owner) {
            const auto& table = owner.cast<const BoundIndex&>().index->table();
            Vectors view({static_cast<py::ssize_t>(table.count), static_cast<py::ssize_t>(table.dim)},
                         {static_cast<py::ssize_t>(table.stride), static_cast<py::ssize_t>(sizeof(float))},
                         reinterpret_cast<const float*>(table.base), owner);
            view.attr("flags").attr("writeable") = false;
            return view;
          },
          "The vectors (nodes, dim), where they lie in the file.")
      .def(
          "search",
          [](const BoundIndex& self, const Vectors& queries, std::size_t k, std::size_t ef,
             const std::optional<Bytes>& allowed, const std::string& method, int threads) {
            check_matrix(queries, self.index->table().dim, "queries");
            return search_of(*self.index, self.ids, queries, k, ef, allowed, method, threads);
          },
          py::arg("queries"), py::arg("k"), py::kw_only(), py::arg("ef"), py::arg("allowed") = py::none(),
          py::arg("method") = "auto", py::arg("threads") = 0,
          "The k nearest ids (n, k) and distances (n, k) of queries (n, dim), padded with -1 and infinity; the "
          "distances "
          "computed for each query (n,); the queries answered by scanning.");

  module.def(
      "scan",
      [](const Vectors& vectors, const Vectors& queries, std::size_t k, const std::string& metric,
         const std::optional<Bytes>& allowed, int threads) {
        if (vectors.ndim() != 2 || vectors.shape(1) == 0)
          throw Error(ErrorCode::kInvalidArgument, "vectors must be (n, dim) float32");
        const auto dim = static_cast<std::size_t>(vectors.shape(1));
        check_matrix(queries, dim, "queries");
        if (allowed && allowed->size() != vectors.shape(0))
          throw Error(ErrorCode::kInvalidArgument, "allowed must be (n,) as vectors");
        const tttnn::VectorTable table{reinterpret_cast<const std::byte*>(vectors.data()), dim * sizeof(float),
                                       static_cast<std::size_t>(vectors.shape(0)), dim, metric_named(metric)};
        const auto count = static_cast<std::size_t>(queries.shape(0));
        Ids ids({queries.shape(0), static_cast<py::ssize_t>(k)});
        Vectors distances({queries.shape(0), static_cast<py::ssize_t>(k)});
        std::int64_t* to_ids = ids.mutable_data();
        float* to_distances = distances.mutable_data();
        const float* from = queries.data();
        const std::uint8_t* may = allowed ? allowed->data() : nullptr;
        {
          // The arguments hold the inputs, this frame the outputs.
          py::gil_scoped_release release;
          const auto lists = tttnn::scan(table, from, count, k, may, threads);
          for (std::size_t q = 0; q < count; ++q) {
            for (std::size_t i = 0; i < k; ++i) {
              const bool found = i < lists[q].size();
              to_ids[q * k + i] = found ? static_cast<std::int64_t>(lists[q][i].node) : -1;
              to_distances[q * k + i] = found ? lists[q][i].distance : std::numeric_limits<float>::infinity();
            }
          }
        }
        return py::make_tuple(ids, distances);
      },
      py::arg("vectors"), py::arg("queries"), py::arg("k"), py::kw_only(), py::arg("metric"),
      py::arg("allowed") = py::none(), py::arg("threads") = 0,
      "Exact search: the k nearest rows of vectors (n, dim), as HnswIndex.search.");
}
