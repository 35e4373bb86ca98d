// The only place that knows both the core's error codes and Python's exception classes.
#include <error.h>

#include "bindings.h"

namespace py = pybind11;

namespace {

// Looked up when an error is thrown: tttnn.errors imports nothing, so this works at any time after import.
void raise(const char* module_name, const char* class_name, const char* message) {
  const py::object type = py::module_::import(module_name).attr(class_name);
  PyErr_SetString(type.ptr(), message);
}

void translate(const tttnn::Error& error) {
  using tttnn::ErrorCode;
  const char* ours = "tttnn.errors";
  switch (error.code()) {
    case ErrorCode::kInvalidArgument:
      return PyErr_SetString(PyExc_ValueError, error.what());
    case ErrorCode::kOutOfRange:
      return PyErr_SetString(PyExc_IndexError, error.what());
    case ErrorCode::kNotFound:
      return PyErr_SetString(PyExc_FileNotFoundError, error.what());
    case ErrorCode::kIo:
      return PyErr_SetString(PyExc_OSError, error.what());
    case ErrorCode::kStoreCorrupt:
      return raise(ours, "StoreCorruptError", error.what());
    case ErrorCode::kStoreVersion:
      return raise(ours, "StoreVersionError", error.what());
    case ErrorCode::kIndexCorrupt:
      return raise(ours, "IndexCorruptError", error.what());
    case ErrorCode::kEmbedding:
      return raise(ours, "EmbeddingError", error.what());
    case ErrorCode::kRestore:
      return raise(ours, "RestoreError", error.what());
    case ErrorCode::kNonFinite:
      return raise(ours, "NonFiniteLossError", error.what());
    case ErrorCode::kDevice:
      return raise(ours, "DeviceError", error.what());
  }
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const tttnn::Error& error) {
      translate(error);
    }
  });
}
