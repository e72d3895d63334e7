// fastseq._cuda_comm: the bucketizer of gradients on a GPU. Needs CUDA's runtime, and no torch: tensors are passed as
// addresses, streams as their handles.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device_bucketizer.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace fastseq::cuda {

namespace {

struct Memory {
  std::shared_ptr<std::byte> memory;
  std::size_t bytes;
};

// Addresses and handles come from Python as ints.
template <class Pointer>
Pointer to_pointer(std::uintptr_t address) {
  return reinterpret_cast<Pointer>(address);  // NOLINT(performance-no-int-to-ptr)
}
std::uintptr_t as_number(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

std::unique_ptr<DeviceBucketizer> make(const std::shared_ptr<Communicator>& comm,
                                       const std::vector<std::int64_t>& numels, const std::vector<DType>& dtypes,
                                       std::int64_t bucket_bytes, bool threaded, bool norm, int device,
                                       const std::string& exchange, double timeout, bool half_wire) {
  const ExchangeOptions options{.exchange = exchange, .norm = norm, .timeout = std::chrono::duration<double>(timeout)};
  return std::make_unique<DeviceBucketizer>(comm, numels, dtypes, bucket_bytes, threaded, device, options, half_wire);
}

py::list places_of(const DeviceBucketizer& self) {
  py::list places;
  for (const DeviceBucketizer::Places& p : self.places()) {
    places.append(py::make_tuple(p.members, p.offsets, Memory{p.memory, p.bytes}));
  }
  return places;
}

}  // namespace

PYBIND11_MODULE(_cuda_comm, m) {
  m.doc() = "fastseq's bucketizer of gradients on a GPU.";
  py::module_::import("fastseq._comm");  // registers the base classes
  register_errors();
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Memory>(m, "Memory", "Memory of the device, which lives as long as this object.")
      .def_property_readonly("__cuda_array_interface__",
                             [](const Memory& self) {
                               py::dict about;
                               about["shape"] = py::make_tuple(self.bytes);
                               about["typestr"] = "|u1";
                               about["data"] = py::make_tuple(as_number(self.memory.get()), false);
                               about["version"] = 3;
                               return about;
                             })
      .def("__len__", [](const Memory& self) { return self.bytes; });
  py::class_<DeviceBucketizer, Bucketizer>(m, "DeviceBucketizer")
      .def(py::init(&make), py::arg("comm"), py::arg("numels"), py::arg("dtypes"), py::arg("bucket_bytes"),
           py::arg("threaded"), py::arg("norm"), py::arg("device"), py::arg("exchange"), py::arg("timeout"),
           py::arg("half_wire"), Released())
      .def_property_readonly("exchange", &DeviceBucketizer::exchange)
      .def_property_readonly("packs", [](const DeviceBucketizer& self) { return as_number(self.packs()); })
      .def("places", &places_of, "[(members, offsets, memory), ...], one per dtype.")
      .def(
          "outcome",
          [](const DeviceBucketizer& self) -> py::object {
            if (self.outcome() == nullptr) return py::none();
            const auto* const bytes = reinterpret_cast<const std::byte*>(self.outcome());
            return py::cast(Memory{{const_cast<std::byte*>(bytes), [](std::byte*) {}}, sizeof(Outcome)});
          },
          py::keep_alive<0, 1>(), "Three float64: mean value, rank with a non-finite gradient or -1, norm; or None.")
      .def("raise_if_broken", &DeviceBucketizer::raise_if_broken, py::call_guard<py::gil_scoped_release>())
      .def(
          "start",
          [](DeviceBucketizer& self, double weight, std::uintptr_t value, bool attention, double scale,
             std::uintptr_t reader) {
            self.start(weight, to_pointer<const double*>(value), attention, scale, to_pointer<cudaStream_t>(reader));
          },
          py::arg("weight"), py::arg("value"), py::arg("attention"), py::arg("scale"), py::arg("reader"))
      .def(
          "ready",
          [](DeviceBucketizer& self, std::int64_t index, std::uintptr_t address, std::uintptr_t producer) {
            return self.ready(index, to_pointer<const void*>(address), to_pointer<cudaStream_t>(producer));
          },
          py::arg("index"), py::arg("address"), py::arg("producer"), Released())
      .def(
          "finish",
          [](DeviceBucketizer& self, std::uintptr_t reader) {
            Bucketizer::Result result;
            {
              const py::gil_scoped_release released;
              result = self.finish(to_pointer<cudaStream_t>(reader));
            }
            return py::make_tuple(result.weight, result.value, result.nonfinite_rank, result.unused, result.attention,
                                  result.norm);
          },
          py::arg("reader"), "As Bucketizer's; where there is an outcome, it has the value, the rank and the norm.");
}

}  // namespace fastseq::cuda
