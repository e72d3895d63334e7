// fastseq._mpi: the communicator over MPI. A separate module, so that only programs that run under MPI load MPI.
#include <pybind11/pybind11.h>

#include "mpi/connect.h"
#include "mpi/mpi_communicator.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace fastseq {

PYBIND11_MODULE(_mpi, m) {
  m.doc() = "fastseq's communicator over MPI.";
  py::module_::import("fastseq._comm");  // registers the base class
  register_errors();
  m.def("library_version", &mpi_library_version, "The version text of the MPI library that fastseq was built with.");
  m.def(
      "connect",
      [](int fortran_handle, const std::string& transport, double timeout, int ranks_per_node, bool half_wire) {
        return connect(MPI_Comm_f2c(fortran_handle), {.transport = transport,
                                                      .timeout_seconds = timeout,
                                                      .ranks_per_node = ranks_per_node,
                                                      .half_wire = half_wire});
      },
      py::arg("fortran_handle"), py::arg("transport"), py::arg("timeout"), py::arg("ranks_per_node"),
      py::arg("half_wire"), py::call_guard<py::gil_scoped_release>(),
      "A communicator of the ranks behind `fortran_handle` (mpi4py: comm.py2f()). Collective.");
}

}  // namespace fastseq
