// The operators' schemas, and the module whose import registers them. Implementations are registered next to their
// code, one block per dispatch key; fake kernels and autograd formulas are in python/fastseq/nn/ops.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "core/base/isa.h"
#include "torch/tensors.h"

STABLE_TORCH_LIBRARY(fastseq, m) {
  m.def("pack(Tensor[] tensors, int alignment, float scale) -> Tensor");
  m.def("pack_checked_(Tensor(a!) flat, Tensor(b!) facts, Tensor[] tensors, int alignment, float scale) -> ()");
  m.def("sum_of_squares(Tensor[] tensors) -> float");
  m.def("unpack(Tensor flat, SymInt[] numels, int alignment, float scale) -> Tensor[]");
  m.def("bmm(Tensor a, Tensor b) -> Tensor");
  m.def(
      "random_kernels(Tensor x, Tensor? lengths, Tensor members, int[] dilations, Tensor thresholds, int least_steps) "
      "-> "
      "Tensor");
  m.def(
      "lstm(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor h0, Tensor c0, Tensor? lengths, "
      "bool reverse, bool save) -> (Tensor y, Tensor h, Tensor c, Tensor saved)");
  m.def(
      "gru(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor h0, Tensor? lengths, bool reverse, "
      "bool save) -> (Tensor y, Tensor h, Tensor saved)");
  m.def(
      "rnn(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor h0, Tensor? lengths, bool reverse, "
      "bool relu) -> (Tensor y, Tensor h)");
  m.def(
      "recurrence_backward(int cell, Tensor? dy, Tensor? dh, Tensor? dc, Tensor x, Tensor w_ih, Tensor w_hh, bool "
      "bias, "
      "Tensor h0, Tensor? c0, Tensor? lengths, bool reverse, Tensor y, Tensor? saved, bool need_x, bool need_weights, "
      "bool need_state) -> (Tensor dx, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dh0, Tensor "
      "dc0)");
}

namespace {

PyObject* active_isa(PyObject* /*self*/, PyObject* /*args*/) { return PyUnicode_FromString(fastseq::active_isa()); }

PyObject* parallel_for(PyObject* /*self*/, PyObject* /*args*/) {
  return PyLong_FromVoidPtr(reinterpret_cast<void*>(&fastseq::torch_ops::torch_parallel_for));
}

PyMethodDef methods[] = {
    {"active_isa", active_isa, METH_NOARGS, "The instruction set that the CPU kernels run with."},
    {"parallel_for", parallel_for, METH_NOARGS, "The address of a ParallelFor that runs on torch's threads."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "fastseq's operators.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

// Python gives the name. NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
