// The operators' schemas, and the module whose import registers them. Implementations are registered beside their code,
// one block per dispatch key; fake kernels and autograd formulas are in python/fastseq/_ops.py.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "core/isa.h"

STABLE_TORCH_LIBRARY(fastseq, m) {
  m.def("pack(Tensor[] tensors, int alignment, float scale) -> Tensor");
  m.def("pack_checked_(Tensor(a!) flat, Tensor(b!) facts, Tensor[] tensors, int alignment, float scale) -> ()");
  m.def("unpack(Tensor flat, SymInt[] numels, int alignment, float scale) -> Tensor[]");
  m.def("bmm(Tensor a, Tensor b) -> Tensor");
}

namespace {

PyObject* active_isa(PyObject* /*self*/, PyObject* /*args*/) { return PyUnicode_FromString(fastseq::active_isa()); }

PyMethodDef methods[] = {
    {"active_isa", active_isa, METH_NOARGS, "The instruction set that the CPU kernels run with."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "fastseq's operators.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

// Python gives the name. NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
