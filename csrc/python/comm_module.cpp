// fastseq._comm: the communicator's interface, the single-process one, and the bucketizer. Uses neither torch nor MPI:
// tensors are passed as addresses, so this module loads everywhere and compiles in seconds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <string>
#include <tuple>
#include <utility>

#include "core/ranks/bucketizer.h"
#include "core/ranks/node_communicator.h"
#include "core/ranks/node_link.h"
#include "core/ranks/relay_communicator.h"
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

// An object of Python that sends messages.
class PythonRelay final : public Relay {
 public:
  explicit PythonRelay(py::object relay) : relay_(std::move(relay)) {}
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    call("gather", [&] {
      return py::make_tuple(py::memoryview::from_memory(mine.data(), static_cast<py::ssize_t>(mine.size())),
                            writable(all.data(), all.size()));
    });
  }
  void broadcast(std::span<std::byte> data, int root) override {
    call("broadcast", [&] { return py::make_tuple(writable(data.data(), data.size()), root); });
  }
  void sum(void* data, std::int64_t numel, DType dtype, bool across) override {
    const auto item = static_cast<py::ssize_t>(item_size(dtype));
    const char* const format = dtype == DType::kFloat64 ? "d" : "f";
    call("sum",
         [&] { return py::make_tuple(py::memoryview::from_buffer(data, item, format, {numel}, {item}), across); });
  }
  void break_up(const char* cause) noexcept override { tell("break_up", cause); }
  void interrupt() noexcept override { tell("interrupt"); }

  // Threads that do not hold the GIL may be the last to hold a relay.
  static std::shared_ptr<Relay> shared(py::object relay) {
    return {new PythonRelay(std::move(relay)), [](Relay* last) {
              const py::gil_scoped_acquire held;
              delete last;
            }};
  }

 private:
  static py::memoryview writable(void* data, std::size_t bytes) {
    return py::memoryview::from_memory(data, static_cast<py::ssize_t>(bytes));
  }
  template <class Arguments>
  void call(const char* method, Arguments&& arguments) {
    const py::gil_scoped_acquire held;
    try {
      relay_.attr(method)(*arguments());
    } catch (const py::error_already_set& error) {
      throw CommunicationError(py::str(error.value()).cast<std::string>());
    }
  }
  template <class... Arguments>
  void tell(const char* method, Arguments... arguments) noexcept {
    try {
      const py::gil_scoped_acquire held;
      relay_.attr(method)(arguments...);
    } catch (const std::exception&) {  // the others learn of it from their own errors  NOLINT(bugprone-empty-catch)
    }
  }

  py::object relay_;
};

void register_link(py::module_& m) {
  using Released = py::call_guard<py::gil_scoped_release>;
  using Address = std::tuple<std::int64_t, std::int64_t, std::uint64_t, std::int64_t>;
  py::class_<Node>(m, "Node", "The ranks of this machine.")
      .def_property_readonly("shares_memory", [](const Node& node) { return node.memory != nullptr; });
  py::class_<NodeLink>(m, "NodeLink")
      .def(py::init<int>(), py::arg("name"))
      .def_property_readonly("address",
                             [](const NodeLink& self) {
                               const SlotAddress& a = self.address();
                               return Address(a.pid, a.descriptor, a.token, a.name);
                             })
      .def(
          "open",
          [](NodeLink& self, const std::vector<Address>& addresses, int rank) {
            std::vector<SlotAddress> found;
            found.reserve(addresses.size());
            for (const auto& [pid, descriptor, token, name] : addresses) {
              found.push_back({.pid = pid, .descriptor = descriptor, .token = token, .name = name});
            }
            return self.open(found, rank);
          },
          py::arg("addresses"), py::arg("rank"))
      .def(
          "join", [](NodeLink& self, double timeout) { return self.join(std::chrono::duration<double>(timeout)); },
          py::arg("timeout"), Released());
  m.def(
      "node_communicator", [](Node& node) { return std::make_shared<NodeCommunicator>(std::move(node), nullptr); },
      py::arg("node"), "A communicator of the ranks of one machine, which share memory.");
  m.def(
      "relay_communicator",
      [](py::object relay, std::string name, int rank, int size, Node* node, int local_rank, int local_size,
         int slices) {
        Node own = node == nullptr ? Node{} : std::move(*node);
        own.rank = local_rank;
        own.size = local_size;
        own.slices = slices;
        return std::make_shared<RelayCommunicator>(PythonRelay::shared(std::move(relay)), std::move(name), rank, size,
                                                   std::move(own));
      },
      py::arg("relay"), py::arg("name"), py::arg("rank"), py::arg("size"), py::arg("node").none(true),
      py::arg("local_rank"), py::arg("local_size"), py::arg("slices"),
      "A communicator of ranks on several machines, whose messages `relay` sends.");
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
  // Their constructors register them. NOLINTBEGIN(bugprone-unused-raii)
  py::class_<NodeCommunicator, Communicator, std::shared_ptr<NodeCommunicator>>(m, "NodeCommunicator");
  py::class_<RelayCommunicator, Communicator, std::shared_ptr<RelayCommunicator>>(m, "RelayCommunicator");
  // NOLINTEND(bugprone-unused-raii)
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
  register_link(m);
  register_bucketizer(m);
}

}  // namespace fastseq
