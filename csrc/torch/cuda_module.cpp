// fastseq._cuda: importing it registers the operators on CUDA.
#include <Python.h>

namespace {

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_cuda", "fastseq's operators on CUDA.", -1, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace

// Python gives the name. NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&module); }
