#include <arena.h>
#include <parallel.h>
#include <pybind11/numpy.h>
#include <shared_memory.h>

#include "bindings.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

}  // namespace

void bind_shared_memory(py::module_& module) {
  using tttnn::SharedMemory;
  py::class_<SharedMemory>(module, "SharedMemory",
                           "Memory that several processes read and, once sealed, none can write. Linux only.")
      .def(py::init<std::size_t>(), py::arg("size"))
      .def(py::init<int, std::size_t>(), py::arg("descriptor"), py::arg("size"))
      .def_property_readonly("size", &SharedMemory::size, "Bytes.")
      .def("fileno", &SharedMemory::descriptor, "The file descriptor; it stays this object's own.")
      .def(
          "write",
          [](SharedMemory& memory, std::size_t offset, const Bytes& data) {
            const std::uint8_t* from = data.data();
            const auto bytes = static_cast<std::size_t>(data.size());
            // Safe without the GIL: the argument keeps the array alive, and no Python object is touched.
            py::gil_scoped_release release;
            memory.write(offset, from, bytes);
          },
          py::arg("offset"), py::arg("data").noconvert(), "Write bytes before the memory is sealed.")
      .def("seal", &SharedMemory::seal, "Let nobody change a byte from here on.");
  module.def(
      "fingerprint",
      [](const Bytes& data, int max_threads) {
        const auto* from = reinterpret_cast<const std::byte*>(data.data());
        const std::vector<tttnn::Span> whole = {{0, static_cast<std::size_t>(data.size())}};
        // Safe without the GIL: the argument keeps the array alive, and no Python object is touched.
        py::gil_scoped_release release;
        return tttnn::fingerprint_spans(from, whole, tttnn::shared_pool(), max_threads).front();
      },
      py::arg("data").noconvert(), py::arg("max_threads") = 0,
      "Return the fingerprint of bytes, as fingerprint_spans gives it for a span that holds them.");
}
