// Shared by the binary modules: both translate the same C++ errors.
#pragma once

#include <pybind11/pybind11.h>

#include "core/ranks/communicator.h"

namespace fastseq {

// Translates fastseq's C++ errors to the classes of fastseq/errors.py, in the module that calls this.
inline void register_errors() {
  namespace py = pybind11;
  // pybind11 gives the signature.
  // NOLINTNEXTLINE(performance-unnecessary-value-param)
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const RemoteFailure& error) {
      const py::object type = py::module_::import("fastseq.errors").attr("RemoteError");
      PyErr_SetObject(type.ptr(), type(error.rank, error.what()).ptr());
    } catch (const CommunicationError& error) {
      const py::object type = py::module_::import("fastseq.errors").attr("CommunicationError");
      PyErr_SetObject(type.ptr(), type(error.what()).ptr());
    }
  });
}

}  // namespace fastseq
