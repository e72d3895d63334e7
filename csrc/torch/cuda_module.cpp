// fastseq._cuda: importing it registers the operators on CUDA.
#include <Python.h>

#include "cuda/support.h"

namespace {

PyObject* obstacle(PyObject* /*self*/, PyObject* /*args*/) {
  return PyUnicode_FromString(fastseq::cuda::obstacle().c_str());
}

PyMethodDef methods[] = {
    {"obstacle", obstacle, METH_NOARGS, "Return why the current GPU cannot run the kernels; empty if it can."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_cuda", "fastseq's operators on CUDA.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

// Python gives the name. NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&module); }
