// Two kinds of methods that Ctrl-C cannot cut short: retried(function), for __exit__, and undoing(function, undo), for
// __enter__.
//
// CPython looks for signals at the first instruction of every Python function, so an __exit__ written in Python can end
// before it began, and an __enter__ can end when all is done and its caller does not know it yet. These are C: no
// instruction of Python lies between them and the `with` statement.
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

py::object call_or_undo(const py::function& function, const py::function& undo, const py::args& args) {
  try {
    return function(*args);
  } catch (py::error_already_set&) {
    call_again(undo, args);  // what it raises comes in place of the first error
    throw;
  }
}

template <typename Call>
py::object method_of(Call call) {
  const py::cpp_function method(call);
  PyObject* bound = PyInstanceMethod_New(method.ptr());
  if (bound == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(bound);
}

}  // namespace

void bind_retried(py::module_& module) {
  module.def(
      "retried",
      [](const py::function& function) {
        return method_of([function](const py::args& args) { return call_again(function, args); });
      },
      py::arg("function"),
      "Make a method of a function that can be called twice: after a KeyboardInterrupt it is called again, then the "
      "interrupt is raised.");
  module.def(
      "undoing",
      [](const py::function& function, const py::function& undo) {
        return method_of([function, undo](const py::args& args) { return call_or_undo(function, undo, args); });
      },
      py::arg("function"), py::arg("undo"),
      "Make a method of a function and one that undoes it: where the function raises, wherever that was, the other is "
      "called with the same arguments, again after a KeyboardInterrupt, and then the error is raised.");
}
