// fastseq._reader: the background reader. Uses neither torch nor MPI; buffers are passed as addresses.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <chrono>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "core/reader/chunk_filters.h"
#include "core/reader/slab_reader.h"

namespace py = pybind11;

namespace fastseq {

namespace {

constexpr py::ssize_t kPieceColumns = 7;
static_assert(sizeof(Piece) == kPieceColumns * sizeof(std::int64_t));

using Pieces = py::array_t<std::int64_t, py::array::c_style>;
using Address = std::optional<std::uintptr_t>;  // None and 0: no address

template <class T>
T* to_pointer(Address address) {
  return reinterpret_cast<T*>(address.value_or(0));  // NOLINT(performance-no-int-to-ptr): addresses come as ints
}

// Open readers: their threads must end before Python frees the buffers they fill.
std::set<SlabReader*>& open_readers() {
  static std::set<SlabReader*> readers;
  return readers;
}

class RegisteredReader : public SlabReader {
 public:
  RegisteredReader() { open_readers().insert(this); }
  ~RegisteredReader() { open_readers().erase(this); }
  RegisteredReader(const RegisteredReader&) = delete;
  RegisteredReader& operator=(const RegisteredReader&) = delete;
};

std::int64_t add_file(RegisteredReader& reader, const py::object& path, bool strict) {
  const auto name = py::module_::import("os").attr("fsencode")(path).cast<std::string>();
  try {
    return reader.add_file(name, strict);
  } catch (const std::system_error& error) {  // FileNotFoundError, PermissionError, …
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path.ptr());
    throw py::error_already_set();
  }
}

SlabRead parse_read(py::handle handle) {
  if (!py::isinstance<py::tuple>(handle) || py::len(handle) != 9) {
    throw py::type_error("a read is (from_type, swapped, to_type, pieces, address, numel, features, center, inverse)");
  }
  const auto read = py::reinterpret_borrow<py::tuple>(handle);
  const auto pieces = read[3].cast<Pieces>();
  if (pieces.ndim() != 2 || pieces.shape(1) != kPieceColumns) {
    throw py::type_error("pieces must be an int64 array of shape (P, 7)");
  }
  const auto* rows = reinterpret_cast<const Piece*>(pieces.data());
  return {.convert = ElementConverter({.from = read[0].cast<ElementType>(),
                                       .swapped = read[1].cast<bool>(),
                                       .to = read[2].cast<ElementType>(),
                                       .features = read[6].cast<std::int64_t>(),
                                       .center = to_pointer<const double>(read[7].cast<Address>()),
                                       .inverse = to_pointer<const double>(read[8].cast<Address>())}),
          .pieces = std::vector<Piece>(rows, rows + pieces.shape(0)),
          .to = to_pointer<std::byte>(read[4].cast<Address>()),
          .numel = read[5].cast<std::int64_t>()};
}

void submit(RegisteredReader& reader, const py::list& reads) {
  std::vector<SlabRead> parsed;
  parsed.reserve(reads.size());
  for (const py::handle read : reads) parsed.push_back(parse_read(read));
  reader.submit(std::move(parsed));
}

// Waits, and checks meanwhile for signals that Python has to handle (Ctrl-C).
std::vector<std::int64_t> wait(RegisteredReader& reader) {
  while (true) {
    {
      const py::gil_scoped_release released;
      if (auto counts = reader.wait(std::chrono::milliseconds(100))) return std::move(*counts);
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

std::int64_t convert(ElementType from_type, bool swapped, ElementType to_type, std::uintptr_t from_address,
                     std::int64_t numel, std::uintptr_t to_address, std::int64_t features, Address center,
                     Address inverse) {
  const ElementConverter converter({.from = from_type,
                                    .swapped = swapped,
                                    .to = to_type,
                                    .features = features,
                                    .center = to_pointer<const double>(center),
                                    .inverse = to_pointer<const double>(inverse)});
  const py::gil_scoped_release released;
  return converter(to_pointer<const void>(from_address), numel, to_pointer<void>(to_address));
}

// The bytes of contiguous memory, as long as `info` lives.
std::span<const std::byte> bytes_of(const py::buffer_info& info) {
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) throw py::value_error("the memory must be contiguous");
  return {static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize)};
}

std::span<std::byte> writable_bytes_of(const py::buffer_info& info) {
  if (info.readonly) throw py::value_error("the memory must be writable");
  const std::span<const std::byte> bytes = bytes_of(info);
  return {static_cast<std::byte*>(info.ptr), bytes.size()};
}

void unshuffle_buffer(const py::buffer& from, std::size_t item, const py::buffer& to) {
  const py::buffer_info source = from.request();
  const py::buffer_info target = to.request(true);
  const std::span<std::byte> out = writable_bytes_of(target);
  const std::span<const std::byte> in = bytes_of(source);
  if (in.size() != out.size()) {
    throw py::value_error(std::to_string(in.size()) + " bytes do not fill " + std::to_string(out.size()));
  }
  const py::gil_scoped_release released;
  unshuffle(in, item, out);
}

std::uint32_t fletcher32_of(const py::buffer& bytes) {
  const py::buffer_info info = bytes.request();
  const std::span<const std::byte> in = bytes_of(info);
  const py::gil_scoped_release released;
  return fletcher32(in);
}

void undo_scale_offset_of(const py::buffer& from, const std::vector<std::uint32_t>& parameters, const py::buffer& to) {
  const py::buffer_info source = from.request();
  const py::buffer_info target = to.request(true);
  const std::span<std::byte> out = writable_bytes_of(target);
  const std::span<const std::byte> in = bytes_of(source);
  const py::gil_scoped_release released;
  undo_scale_offset(in, parameters, out);
}

void register_read_error() {
  // pybind11 gives the signature.
  // NOLINTNEXTLINE(performance-unnecessary-value-param)
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ReadError& error) {
      const py::object type = py::module_::import("fastseq.errors").attr("ReadError");
      PyErr_SetObject(type.ptr(), type(error.what(), error.index).ptr());
    }
  });
}

void register_element_type(const py::module_& m) {
  py::enum_<ElementType>(m, "ElementType")
      .value("bool", ElementType::kBool)
      .value("int8", ElementType::kInt8)
      .value("uint8", ElementType::kUInt8)
      .value("int16", ElementType::kInt16)
      .value("uint16", ElementType::kUInt16)
      .value("int32", ElementType::kInt32)
      .value("uint32", ElementType::kUInt32)
      .value("int64", ElementType::kInt64)
      .value("uint64", ElementType::kUInt64)
      .value("float16", ElementType::kFloat16)
      .value("bfloat16", ElementType::kBFloat16)
      .value("float32", ElementType::kFloat32)
      .value("float64", ElementType::kFloat64);
}

}  // namespace

PYBIND11_MODULE(_reader, m) {
  m.doc() = "fastseq's background reader, free of torch and MPI.";
  register_read_error();
  register_element_type(m);
  py::class_<RegisteredReader>(m, "SlabReader")
      .def(py::init<>())
      .def("add_file", &add_file, py::arg("path"), py::arg("strict"),
           "Opens a file and returns its number; OSError. A strict one must not change from then on.")
      .def("add_memory", &SlabReader::add_memory, py::arg("address"),
           "Number of the memory at `address`, which the caller keeps alive until close().")
      .def("submit", &submit, py::arg("reads"),
           "Queues one request, [(from_type, swapped, to_type, pieces, address, numel, features, center, inverse), "
           "...].")
      .def("wait", &wait,
           "The number of non-finite values per read of the oldest request; raises what went wrong in it.")
      .def("close", &SlabReader::close, py::call_guard<py::gil_scoped_release>(),
           "Drops what is queued, ends the threads, within one system read, and closes the files.");
  m.def("convert", &convert, py::arg("from_type"), py::arg("swapped"), py::arg("to_type"), py::arg("from_address"),
        py::arg("numel"), py::arg("to_address"), py::arg("features") = 1, py::arg("center") = Address(),
        py::arg("inverse") = Address(), "Converts at once; returns the number of non-finite values.");
  m.def("unshuffle", &unshuffle_buffer, py::arg("source"), py::arg("item"), py::arg("to"),
        "Undoes HDF5's shuffle filter, of elements of `item` bytes, into memory of the same size.");
  m.def("fletcher32", &fletcher32_of, py::arg("source"), "The checksum of HDF5's filter of this name.");
  m.def("undo_scale_offset", &undo_scale_offset_of, py::arg("source"), py::arg("parameters"), py::arg("to"),
        "Undoes HDF5's scale-offset filter with its parameters in the dataset.");
  py::module_::import("atexit").attr("register")(py::cpp_function([] {
    for (SlabReader* reader : open_readers()) reader->close();
  }));
}

}  // namespace fastseq
