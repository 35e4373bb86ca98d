#include <mapped_file.h>
#include <pybind11/numpy.h>

#include <memory>

#include "bindings.h"

namespace py = pybind11;

void bind_mapped_file(py::module_& module) {
  using tttnn::MappedFile;
  py::class_<MappedFile>(module, "MappedFile",
                         "A file in memory, read-only, without a descriptor. Where it is cut short, or cannot be read, "
                         "its bytes are zeros instead of the end of the process.")
      .def(py::init([](const std::string& path) {
             // Safe: no Python object is touched.
             py::gil_scoped_release release;
             return std::make_unique<MappedFile>(path, tttnn::FileAccess::kMmap, false);
           }),
           py::arg("path"))
      .def_property_readonly("broken", &MappedFile::broken, "Whether zeros were read in the place of bytes.")
      .def_property_readonly(
          "bytes",
          [](const py::object& owner) {
            const auto& file = owner.cast<const MappedFile&>();
            py::array_t<std::uint8_t> view(static_cast<py::ssize_t>(file.size()), file.map(), owner);
            view.attr("flags").attr("writeable") = false;
            return view;
          },
          "All bytes (size,) of uint8; they keep the map alive.");
}
