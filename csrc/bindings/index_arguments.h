// What the bindings of both kinds of index share: names, checks, and a search with arrays.
#pragma once

#include <error.h>
#include <pybind11/numpy.h>
#include <search_request.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace index_arguments {

namespace py = pybind11;
using Vectors = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

inline tttnn::Metric metric_named(const std::string& name) {
  if (name == "l2") return tttnn::Metric::kL2;
  if (name == "ip") return tttnn::Metric::kIp;
  throw tttnn::Error(tttnn::ErrorCode::kInvalidArgument, "metric must be l2 or ip, got " + name);
}

inline tttnn::SearchMethod method_named(const std::string& name) {
  if (name == "auto") return tttnn::SearchMethod::kAuto;
  if (name == "graph") return tttnn::SearchMethod::kGraph;
  if (name == "scan") return tttnn::SearchMethod::kScan;
  throw tttnn::Error(tttnn::ErrorCode::kInvalidArgument, "method must be auto, graph or scan, got " + name);
}

inline void check_matrix(const Vectors& vectors, std::size_t dim, const char* what) {
  if (vectors.ndim() != 2 || static_cast<std::size_t>(vectors.shape(1)) != dim)
    throw tttnn::Error(tttnn::ErrorCode::kInvalidArgument,
                       std::string(what) + " must be (n, " + std::to_string(dim) + ") float32");
}

inline std::vector<std::pair<std::int64_t, std::int64_t>> pairs_of(const Ids& copies) {
  if (copies.ndim() != 2 || copies.shape(1) != 2)
    throw tttnn::Error(tttnn::ErrorCode::kInvalidArgument, "copies must be (n, 2)");
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  for (py::ssize_t i = 0; i < copies.shape(0); ++i) pairs.emplace_back(copies.at(i, 0), copies.at(i, 1));
  return pairs;
}

// ids (n, k), distances (n, k), the distances computed for each query (n,), the queries answered by scanning.
template <typename Index>
py::tuple search_of(const Index& index, std::size_t num_ids, const Vectors& queries, std::size_t k, std::size_t ef,
                    const std::optional<Bytes>& allowed, const std::string& method, int threads) {
  if (allowed && static_cast<std::size_t>(allowed->size()) != num_ids)
    throw tttnn::Error(tttnn::ErrorCode::kInvalidArgument, "allowed must have one value for each id");
  Ids ids({queries.shape(0), static_cast<py::ssize_t>(k)});
  Vectors distances({queries.shape(0), static_cast<py::ssize_t>(k)});
  Ids computed(queries.shape(0));
  tttnn::SearchRequest request{queries.data(), static_cast<std::size_t>(queries.shape(0)), k, ef};
  request.allowed = allowed ? allowed->data() : nullptr;
  request.method = method_named(method);
  request.threads = threads;
  std::int64_t* to_ids = ids.mutable_data();
  float* to_distances = distances.mutable_data();
  std::int64_t* to_computed = computed.mutable_data();
  std::size_t scanned = 0;
  {
    // The arguments hold the inputs, this frame the outputs; the index never changes.
    py::gil_scoped_release release;
    scanned = index.search(request, to_ids, to_distances, to_computed);
  }
  return py::make_tuple(ids, distances, computed, scanned);
}

}  // namespace index_arguments
