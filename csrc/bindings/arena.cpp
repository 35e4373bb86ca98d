#include <arena.h>
#include <parallel.h>
#include <pybind11/stl.h>
#include <shared_memory.h>

#include "bindings.h"

namespace py = pybind11;

namespace {

std::vector<tttnn::Span> spans_of(const std::vector<std::size_t>& offsets, const std::vector<std::size_t>& sizes,
                                  std::size_t limit) {
  if (offsets.size() != sizes.size())
    throw py::value_error("sizes must be as many as offsets (" + std::to_string(offsets.size()) + "), got " +
                          std::to_string(sizes.size()));
  std::vector<tttnn::Span> spans;
  spans.reserve(offsets.size());
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    if (offsets[i] > limit || sizes[i] > limit - offsets[i])
      throw py::value_error("span must end within the block (" + std::to_string(limit) + " bytes), got offset " +
                            std::to_string(offsets[i]) + " and size " + std::to_string(sizes[i]));
    spans.push_back({offsets[i], sizes[i]});
  }
  return spans;
}

}  // namespace

void bind_arena(py::module_& module) {
  using tttnn::Block;
  py::class_<Block>(
      module, "Block", py::buffer_protocol(),
      "Anonymous zeroed memory, aligned to 2 MiB, huge pages asked for; or a view of sealed shared memory. "
      "A writable buffer of bytes.")
      .def(py::init<std::size_t>(), py::arg("size"))
      .def(py::init<const tttnn::SharedMemory&>(), py::arg("shared"))
      .def_property_readonly("size", &Block::size, "Bytes, as asked for.")
      .def_property_readonly(
          "address", [](const Block& block) { return reinterpret_cast<std::uintptr_t>(block.data()); },
          "Address of the first byte.")
      .def_buffer([](Block& block) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(block.data()), static_cast<py::ssize_t>(block.size()));
      });
  module.def(
      "copy_spans",
      [](Block& destination, const Block& source, const std::vector<std::size_t>& offsets,
         const std::vector<std::size_t>& sizes, int max_threads) {
        const auto spans = spans_of(offsets, sizes, std::min(destination.size(), source.size()));
        // Safe without the GIL: the arguments keep both blocks alive, and no Python object is touched.
        py::gil_scoped_release release;
        tttnn::copy_spans(destination.data(), source.data(), spans, tttnn::shared_pool(), max_threads);
      },
      py::arg("destination"), py::arg("source"), py::arg("offsets"), py::arg("sizes"), py::arg("max_threads") = 0,
      "Copy spans (offset and size in bytes) from one block to the same places of another.");
  module.def(
      "copy_spans_cuda",
      [](std::uintptr_t destination, std::uintptr_t source, const std::vector<std::size_t>& offsets,
         const std::vector<std::size_t>& sizes, std::size_t limit, int device, std::uintptr_t stream) {
        const auto spans = spans_of(offsets, sizes, limit);
        // Only addresses are used; the caller's tensors live until the stream has run.
        py::gil_scoped_release release;
        tttnn::copy_spans_cuda(reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), spans,
                               device, reinterpret_cast<void*>(stream));
      },
      py::arg("destination"), py::arg("source"), py::arg("offsets"), py::arg("sizes"), py::kw_only(), py::arg("limit"),
      py::arg("device"), py::arg("stream"),
      "Copy spans between two addresses of a CUDA device, each of `limit` bytes, on a stream.");
  module.def(
      "fingerprint_spans",
      [](const Block& source, const std::vector<std::size_t>& offsets, const std::vector<std::size_t>& sizes,
         int max_threads) {
        const auto spans = spans_of(offsets, sizes, source.size());
        // Safe without the GIL: the argument keeps the block alive, and no Python object is touched.
        py::gil_scoped_release release;
        return tttnn::fingerprint_spans(source.data(), spans, tttnn::shared_pool(), max_threads);
      },
      py::arg("source"), py::arg("offsets"), py::arg("sizes"), py::arg("max_threads") = 0,
      "Return one 64-bit fingerprint per span of a block.");
  module.def(
      "keep_freed_memory", &tttnn::keep_freed_memory,
      "Ask the C library to keep freed memory for reuse, in the whole process and for good; False where it cannot.");
}
