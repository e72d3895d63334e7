// fastseq._mpi: the communicator over MPI. A module of its own, so that only programs that run under MPI load MPI.
#include <pybind11/pybind11.h>

#include "mpi/mpi_communicator.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace fastseq {

PYBIND11_MODULE(_mpi, m) {
  m.doc() = "fastseq's communicator over MPI.";
  py::module_::import("fastseq._comm");  // registers the base class
  register_errors();
  m.def("library_version", &mpi_library_version, "The version text of the MPI library that fastseq was built with.");
  py::class_<MpiCommunicator, Communicator, std::shared_ptr<MpiCommunicator>>(m, "MpiCommunicator")
      .def(py::init([](int fortran_handle) { return std::make_shared<MpiCommunicator>(MPI_Comm_f2c(fortran_handle)); }),
           py::arg("fortran_handle"), py::call_guard<py::gil_scoped_release>(),
           "Duplicates the communicator behind `fortran_handle` (mpi4py: comm.py2f()). Collective.");
}

}  // namespace fastseq
