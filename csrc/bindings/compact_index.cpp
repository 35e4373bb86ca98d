#include <compact_builder.h>
#include <compact_index.h>
#include <error.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

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

tttnn::CompactKind kind_named(const std::string& name) {
  if (name == "float16") return tttnn::CompactKind::kFloat16;
  if (name == "int8") return tttnn::CompactKind::kInt8;
  throw Error(ErrorCode::kInvalidArgument, "vectors must be float16 or int8, got " + name);
}

}  // namespace

void bind_compact_index(py::module_& module) {
  py::class_<tttnn::RecordWriter>(module, "FullVectorWriter", "Writes the full vectors of a compact index, in order.")
      .def(
          "add",
          [](tttnn::RecordWriter& self, const Vectors& vectors) {
            if (vectors.ndim() != 2) throw Error(ErrorCode::kInvalidArgument, "vectors must be (n, dim)");
            const float* from = vectors.data();
            const py::ssize_t count = vectors.shape(0), dim = vectors.shape(1);
            if (static_cast<std::size_t>(dim) * sizeof(float) != self.record_bytes())
              throw Error(ErrorCode::kInvalidArgument, "vectors must have as many dimensions as the index");
            // The argument holds the array; a writer belongs to one thread.
            py::gil_scoped_release release;
            for (py::ssize_t i = 0; i < count; ++i) self.add(reinterpret_cast<const std::byte*>(from + i * dim));
          },
          py::arg("vectors"), "Write vectors (n, dim).")
      .def(
          "finish",
          [](tttnn::RecordWriter& self) {
            // Only C++ objects are read.
            py::gil_scoped_release release;
            self.finish();
          },
          "Close the file; there must have been as many vectors as in the graph.");

  py::class_<tttnn::CompactBuilder>(module, "CompactBuilder",
                                    "Builds the graph of a compact index in order, on one thread.")
      .def(py::init([](std::size_t dim, const std::string& vectors, const std::string& metric, std::size_t capacity,
                       std::size_t M, std::size_t ef_construction, std::size_t seed) {
             return std::make_unique<tttnn::CompactBuilder>(dim, kind_named(vectors), metric_named(metric), capacity,
                                                            tttnn::HnswOptions{M, ef_construction, seed});
           }),
           py::kw_only(), py::arg("dim"), py::arg("vectors"), py::arg("metric"), py::arg("capacity"), py::arg("M"),
           py::arg("ef_construction"), py::arg("seed"))
      .def(
          "add",
          [](tttnn::CompactBuilder& self, const Vectors& vectors, const Ids& ids) {
            check_matrix(vectors, self.dim(), "vectors");
            if (ids.ndim() != 1 || ids.shape(0) != vectors.shape(0))
              throw Error(ErrorCode::kInvalidArgument, "ids must be (n,) as vectors");
            const float* from = vectors.data();
            const std::int64_t* names = ids.data();
            const auto count = static_cast<std::size_t>(vectors.shape(0));
            // The argument holds the array; a builder belongs to one thread.
            py::gil_scoped_release release;
            self.add(from, names, count);
          },
          py::arg("vectors"), py::arg("ids"), "Add vectors (n, dim); ids (n,) name them in messages.")
      .def(
          "save",
          [](const tttnn::CompactBuilder& self, const std::string& links, const std::string& vectors) {
            // Only C++ objects are read.
            py::gil_scoped_release release;
            self.save(links, vectors);
          },
          py::arg("links"), py::arg("vectors"), "Write the links and the compact vectors to these paths.")
      .def("full_writer", &tttnn::CompactBuilder::full_writer, py::arg("path"),
           "Begin the file of full vectors, which are given once more, in the same order.");

  py::class_<tttnn::CompactIndex>(module, "CompactIndex", "Searches the files of a compact index where they lie.")
      .def(py::init([](const std::string& folder, const Ids& copies, std::size_t dim, const std::string& vectors,
                       const std::string& metric, std::size_t ids) {
             const auto pairs = pairs_of(copies);
             const tttnn::CompactKind kind = kind_named(vectors);
             const tttnn::Metric measure = metric_named(metric);
             // Safe: no Python object is touched; the headers are read from the disk.
             py::gil_scoped_release release;
             return std::make_unique<tttnn::CompactIndex>(folder, kind, dim, measure, ids, pairs);
           }),
           py::arg("folder"), py::arg("copies"), py::kw_only(), py::arg("dim"), py::arg("vectors"), py::arg("metric"),
           py::arg("ids"))
      .def_property_readonly("nodes", &tttnn::CompactIndex::nodes)
      .def_property_readonly("held_bytes", &tttnn::CompactIndex::held_bytes)
      .def_property_readonly("walked_bytes", &tttnn::CompactIndex::walked_bytes)
      .def(
          "require_whole", [](const tttnn::CompactIndex& self) { self.require_whole(); },
          "Refuse what was read where a file was cut short since it was opened.")
      .def(
          "verify",
          [](const tttnn::CompactIndex& self, int threads) {
            // The index never changes.
            py::gil_scoped_release release;
            self.verify(threads);
          },
          py::arg("threads") = 0, "Check every record and every link.")
      .def(
          "read",
          [](const tttnn::CompactIndex& self, const Ids& nodes) {
            if (nodes.ndim() != 1) throw Error(ErrorCode::kInvalidArgument, "nodes must be (n,)");
            Vectors out({nodes.shape(0), static_cast<py::ssize_t>(self.dim())});
            const std::int64_t* wanted = nodes.data();
            float* to = out.mutable_data();
            const auto count = static_cast<std::size_t>(nodes.shape(0));
            {
              // The argument holds the input, this frame the output; the index never changes.
              py::gil_scoped_release release;
              self.read(wanted, count, to);
            }
            return out;
          },
          py::arg("nodes"), "The full vectors of nodes (n,), (n, dim).")
      .def(
          "search",
          [](const tttnn::CompactIndex& self, const Vectors& queries, std::size_t k, std::size_t ef,
             const std::optional<Bytes>& allowed, const std::string& method, int threads) {
            check_matrix(queries, self.dim(), "queries");
            return search_of(self, self.ids(), queries, k, ef, allowed, method, threads);
          },
          py::arg("queries"), py::arg("k"), py::kw_only(), py::arg("ef"), py::arg("allowed") = py::none(),
          py::arg("method") = "auto", py::arg("threads") = 0, "As HnswIndex.search.");
}
