// Whether objects of Python are still what they were: by identity, without running code of theirs.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastseq {

// What must not have changed: tuples, as attributes of an object of Python, so that the garbage collector sees them.
struct Seen {
  PyObject* objects;     // (object, type, attributes)
  PyObject* containers;  // (list, (item, …)) or (dict, (key, value, …))
  PyObject* entries;     // (dict or class, key, value): others may change; no value: no such key
  PyObject* tensors;     // (tensor, data_ptr(), shape, dtype), contiguous
};

namespace unchanged {

inline PyObject* item(PyObject* tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple, i); }

// Whether all tuples in `tuples` pass `check`.
template <class Check>
bool all(PyObject* tuples, const Check& check) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuples); ++i) {
    if (!check(item(tuples, i))) return false;
  }
  return true;
}

inline bool object(PyObject* seen) {
  PyObject* const thing = item(seen, 0);
  if (reinterpret_cast<PyObject*>(Py_TYPE(thing)) != item(seen, 1)) return false;
  const auto attributes = pybind11::reinterpret_steal<pybind11::object>(PyObject_GenericGetDict(thing, nullptr));
  return attributes.ptr() == item(seen, 2);
}

inline bool container(PyObject* seen) {
  PyObject* const holder = item(seen, 0);
  PyObject* const contents = item(seen, 1);
  if (PyList_CheckExact(holder)) {
    if (PyList_GET_SIZE(holder) != PyTuple_GET_SIZE(contents)) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(holder); ++i) {
      if (PyList_GET_ITEM(holder, i) != item(contents, i)) return false;
    }
    return true;
  }
  if (2 * PyDict_Size(holder) != PyTuple_GET_SIZE(contents)) return false;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t place = 0;
  for (Py_ssize_t i = 0; PyDict_Next(holder, &place, &key, &value) != 0; i += 2) {
    if (key != item(contents, i) || value != item(contents, i + 1)) return false;
  }
  return true;
}

// What a class itself defines.
inline PyObject* dict_of(PyObject* type) { return reinterpret_cast<PyTypeObject*>(type)->tp_dict; }

inline bool entry(PyObject* seen) {
  PyObject* const holder = PyType_Check(item(seen, 0)) ? dict_of(item(seen, 0)) : item(seen, 0);
  const PyObject* const found = PyDict_GetItemWithError(holder, item(seen, 1));
  return PyTuple_GET_SIZE(seen) == 2 ? found == nullptr : found == item(seen, 2);
}

// A tensor's `data` may have been replaced, its storage moved, its axes swapped in place.
inline bool tensor(PyObject* seen) {
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  static PyObject* const shape = PyUnicode_InternFromString("shape");
  static PyObject* const dtype = PyUnicode_InternFromString("dtype");
  static PyObject* const is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* const thing = item(seen, 0);
  const auto is = [](PyObject* found, PyObject* wanted) {
    const auto owned = pybind11::reinterpret_steal<pybind11::object>(found);
    return found != nullptr && PyObject_RichCompareBool(found, wanted, Py_EQ) == 1;
  };
  return is(PyObject_CallMethodNoArgs(thing, data_ptr), item(seen, 1)) &&
         is(PyObject_GetAttr(thing, shape), item(seen, 2)) && is(PyObject_GetAttr(thing, dtype), item(seen, 3)) &&
         is(PyObject_CallMethodNoArgs(thing, is_contiguous), Py_True);
}

}  // namespace unchanged

inline bool is_unchanged(const Seen& seen) {
  const bool same = unchanged::all(seen.objects, unchanged::object) &&
                    unchanged::all(seen.containers, unchanged::container) &&
                    unchanged::all(seen.entries, unchanged::entry) && unchanged::all(seen.tensors, unchanged::tensor);
  if (!same) PyErr_Clear();  // a tensor without memory raises
  return same;
}

}  // namespace fastseq
