// fastseq._comm: the communicator's interface, the single-process one, and the bucketizer. Uses neither torch nor MPI:
// tensors are passed as addresses, so this module loads everywhere and compiles in seconds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/ranks/bucketizer.h"
#include "core/ranks/single_process.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace fastseq {

namespace {

struct Buffer {
  std::shared_ptr<std::byte> memory;
  std::size_t bytes;
};

void* to_pointer(std::uintptr_t address) {
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr): addresses come from Python as ints
}

void register_communicator(const py::module_& m) {
  // Calls that wait for other ranks release the GIL.
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Buffer>(m, "Buffer", py::buffer_protocol(), "Memory from Communicator.allocate, as bytes.")
      .def_buffer([](Buffer& buffer) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(buffer.memory.get()),
                               static_cast<py::ssize_t>(buffer.bytes));
      });
  py::class_<Communicator, std::shared_ptr<Communicator>>(m, "Communicator")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("local_rank", &Communicator::local_rank)
      .def_property_readonly("local_size", &Communicator::local_size)
      .def_property_readonly("transport", &Communicator::transport)
      .def_property_readonly("any_thread", &Communicator::any_thread)
      .def(
          "allreduce",
          [](Communicator& comm, std::uintptr_t address, std::int64_t numel, DType dtype, bool mean) {
            comm.allreduce(to_pointer(address), numel, dtype, {.mean = mean});
          },
          py::arg("address"), py::arg("numel"), py::arg("dtype"), py::arg("mean"), Released())
      .def(
          "broadcast",
          [](Communicator& comm, std::uintptr_t address, std::size_t bytes, int root) {
            comm.broadcast({static_cast<std::byte*>(to_pointer(address)), bytes}, root);
          },
          py::arg("address"), py::arg("bytes"), py::arg("root"), Released())
      .def("barrier", &Communicator::barrier, Released())
      .def(
          "allocate", [](Communicator& comm, std::size_t bytes) { return Buffer{comm.allocate(bytes), bytes}; },
          py::arg("bytes"), Released())
      .def("is_shared", [](const Communicator& comm,
                           const Buffer& buffer) { return comm.is_shared(buffer.memory.get(), buffer.bytes); })
      .def("fail", &Communicator::fail, py::arg("message"), Released())
      .def("leave", &Communicator::leave, Released())
      .def("set_purpose", &Communicator::set_purpose, py::arg("purpose"))
      .def("abort", &Communicator::abort, py::arg("exit_code"));
  py::class_<SingleProcess, Communicator, std::shared_ptr<SingleProcess>>(m, "SingleProcess").def(py::init<>());
}

void register_bucketizer(const py::module_& m) {
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Bucketizer>(m, "Bucketizer")
      .def(py::init([](const std::shared_ptr<Communicator>& comm, const std::vector<std::int64_t>& numels,
                       const std::vector<DType>& dtypes, std::int64_t bucket_bytes, bool threaded, bool norm) {
             return std::make_unique<Bucketizer>(comm, numels, dtypes, bucket_bytes, threaded, norm);
           }),
           py::arg("comm"), py::arg("numels"), py::arg("dtypes"), py::arg("bucket_bytes"), py::arg("threaded"),
           py::arg("norm"), Released())
      .def_property_readonly("bucket_count", &Bucketizer::bucket_count)
      .def("members", &Bucketizer::members, py::arg("bucket"))
      .def(
          "buffers",
          [](const Bucketizer& self) {
            py::list buffers;
            for (const Bucketizer::Buffer& b : self.buffers()) {
              const std::size_t bytes = static_cast<std::size_t>(b.layout.numel) * item_size(b.dtype);
              buffers.append(py::make_tuple(b.members, b.layout.offsets, Buffer{b.memory, bytes}));
            }
            return buffers;
          },
          "[(members, offsets, memory), ...], one per dtype.")
      .def_property_readonly("started", &Bucketizer::started)
      .def("start", &Bucketizer::start, py::arg("weight"), py::arg("value"), py::arg("attention") = false,
           py::arg("scale") = 1.0)
      .def(
          "ready",
          [](Bucketizer& self, std::int64_t index, std::uintptr_t address) {
            return self.ready(index, to_pointer(address));
          },
          py::arg("index"), py::arg("address"), Released())
      .def(
          "finish",
          [](Bucketizer& self) {
            Bucketizer::Result result;
            {
              const py::gil_scoped_release released;
              result = self.finish();
            }
            return py::make_tuple(result.weight, result.value, result.nonfinite_rank, result.unused, result.attention,
                                  result.norm);
          },
          "(sum of weights, mean value, lowest rank with a non-finite gradient or -1, unused parameters, attention, "
          "norm)")
      .def("abandon", &Bucketizer::abandon, Released())
      .def("stop", &Bucketizer::stop, Released());
}

}  // namespace

PYBIND11_MODULE(_comm, m) {
  m.doc() = "fastseq's communicator and bucketizer, free of torch and MPI.";
  register_errors();
  py::enum_<DType>(m, "DType")
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBFloat16)
      .value("float32", DType::kFloat32)
      .value("float64", DType::kFloat64);
  register_communicator(m);
  register_bucketizer(m);
}

}  // namespace fastseq
