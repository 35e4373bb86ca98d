// retried(function): a method that Ctrl-C cannot keep from running to its end.
//
// CPython looks for signals at the first instruction of every Python function, so an __exit__ written in Python can end
// before it began. This one is C: it calls the function again after a KeyboardInterrupt, and raises that afterwards.
#include "bindings.h"

namespace py = pybind11;

namespace {

// Calls until no KeyboardInterrupt cuts the call short. More than a few in a row are no accident of timing.
constexpr int kMaxCalls = 100;

py::object call_again(const py::function& function, const py::args& args) {
  for (int call = 1;; ++call) {
    try {
      return function(*args);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_KeyboardInterrupt) || call == kMaxCalls) throw;
      try {
        function(*args);
      } catch (py::error_already_set& second) {
        if (second.matches(PyExc_KeyboardInterrupt)) continue;
        throw;
      }
      throw;
    }
  }
}

}  // namespace

void bind_retried(py::module_& module) {
  module.def(
      "retried",
      [](const py::function& function) {
        const py::cpp_function method([function](const py::args& args) { return call_again(function, args); });
        PyObject* bound = PyInstanceMethod_New(method.ptr());
        if (bound == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(bound);
      },
      py::arg("function"),
      "Make a method of a function that can be called twice: after a KeyboardInterrupt it is called again, then the "
      "interrupt is raised.");
}
