// fastseq._step: training steps, and steps of series, without autograd. Uses neither torch nor MPI; tensors are passed
// as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "core/base/isa.h"
#include "core/step/predict.h"
#include "core/step/step.h"
#include "python/bindings.h"
#include "python/unchanged.h"

namespace py = pybind11;

namespace fastseq::step {

namespace {

using Address = std::uintptr_t;  // 0: none

template <class T>
T* to_pointer(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): addresses come as ints
}

// A parameter and its gradient.
using WeightAddresses = std::pair<Address, Address>;

struct LinearLayer {
  std::int64_t inputs;
  std::int64_t outputs;
  WeightAddresses weight;
  WeightAddresses bias;
};
struct ActivationLayer {
  Activation kind;
  std::int64_t features;
};
struct DropoutLayer {
  double rate;
  std::int64_t features;
  std::int64_t number;
};
struct RecurrentLayer {
  RecurrentOptions options;
  std::vector<WeightAddresses> weights;
};
struct SegmentRnnLayer {
  SegmentRnnOptions options;
  LinearLayer linear;
  LinearLayer embed;
  RecurrentLayer recurrent;
  LinearLayer mix;
  DropoutLayer dropout;
  LinearLayer out;
};
using HeadLayer = std::variant<LinearLayer, ActivationLayer, DropoutLayer>;  // behind a pool
struct PooledLayer {
  std::vector<Pooling> parts;
  std::int64_t features;
  std::vector<HeadLayer> head;
};
using SingleLayer =
    std::variant<LinearLayer, ActivationLayer, DropoutLayer, RecurrentLayer, SegmentRnnLayer, PooledLayer>;
struct MembersLayer {
  std::vector<std::vector<SingleLayer>> members;
};
using AnyLayer = std::variant<LinearLayer, ActivationLayer, DropoutLayer, RecurrentLayer, SegmentRnnLayer, PooledLayer,
                              MembersLayer>;

// value, gradient, numel, average, square, other, step, its dtype is fp64, group, part
using ParameterTuple =
    std::tuple<Address, Address, std::int64_t, Address, Address, Address, Address, bool, std::int64_t, std::int64_t>;

// Where a layer writes a gradient, the parameter's own, numel.
using GradientTuple = std::tuple<Address, Address, std::int64_t>;

// Chunks, weight, loss: see Held.
using HeldTuple = std::tuple<std::int64_t, double, double>;

// Data, strides of time steps and of sequences.
using RowsTuple = std::tuple<Address, std::int64_t, std::int64_t>;

template <class T>
Weights<T> weights_of(const WeightAddresses& w) {
  return {.value = to_pointer<const T>(w.first), .gradient = to_pointer<T>(w.second)};
}

template <class T>
std::unique_ptr<Layer<T>> make(const LinearLayer& l) {
  return make_linear<T>(l.inputs, l.outputs, weights_of<T>(l.weight), weights_of<T>(l.bias));
}
template <class T>
std::unique_ptr<Layer<T>> make(const ActivationLayer& l) {
  return make_activation<T>(l.kind, l.features);
}
template <class T>
std::unique_ptr<Layer<T>> make(const DropoutLayer& l) {
  return make_dropout<T>(l.rate, l.features, l.number);
}
template <class T>
std::unique_ptr<Layer<T>> make(const RecurrentLayer& l) {
  std::vector<Weights<T>> weights;
  weights.reserve(l.weights.size());
  for (const WeightAddresses& w : l.weights) weights.push_back(weights_of<T>(w));
  return make_recurrent<T>(l.options, std::move(weights));
}

template <class T>
std::unique_ptr<Layer<T>> make(const SegmentRnnLayer& l) {
  return make_segment_rnn<T>(l.options, {.linear = make<T>(l.linear),
                                         .embed = make<T>(l.embed),
                                         .recurrent = make<T>(l.recurrent),
                                         .mix = make<T>(l.mix),
                                         .dropout = make<T>(l.dropout),
                                         .out = make<T>(l.out)});
}

template <class T, class Any>
std::vector<std::unique_ptr<Layer<T>>> make_all(const std::vector<Any>& layers) {
  std::vector<std::unique_ptr<Layer<T>>> made;
  made.reserve(layers.size());
  for (const Any& layer : layers) {
    made.push_back(std::visit([](const auto& kind) { return make<T>(kind); }, layer));
  }
  return made;
}
template <class T>
std::unique_ptr<Layer<T>> make(const PooledLayer& l) {
  return make_pooled<T>(l.parts, l.features, make_all<T>(l.head));
}
template <class T>
std::unique_ptr<Layer<T>> make(const MembersLayer& l) {
  std::vector<std::vector<std::unique_ptr<Layer<T>>>> members;
  members.reserve(l.members.size());
  for (const auto& layers : l.members) {
    if (layers.empty()) throw py::value_error("a member needs layers");
    members.push_back(make_all<T>(layers));
  }
  return make_members<T>(std::move(members));
}

ParallelFor to_parallel_for(Address address) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  return address == 0 ? serial_for : reinterpret_cast<ParallelFor>(address);
}

template <class T>
std::unique_ptr<Model<T>> make_model(const std::vector<AnyLayer>& layers, Address parallel_for) {
  if (layers.empty()) throw py::value_error("a model needs layers");
  return std::make_unique<Model<T>>(make_all<T>(layers), to_parallel_for(parallel_for));
}

template <class T>
void set_state(Model<T>& model, const std::vector<Address>& state) {
  std::vector<T*> pointers;
  pointers.reserve(state.size());
  for (const Address address : state) pointers.push_back(to_pointer<T>(address));
  model.set_state(pointers);
}

template <class T>
Rows<T> to_rows(const RowsTuple& rows) {
  return {.data = to_pointer<const T>(std::get<0>(rows)), .step = std::get<1>(rows), .sequence = std::get<2>(rows)};
}

template <class T>
void forward(Model<T>& model, const RowsTuple& x, std::int64_t steps, std::int64_t sequences, Address y) {
  const Chunk chunk{.steps = steps,
                    .sequences = sequences,
                    .lengths = nullptr,
                    .training = false,
                    .seed = 0,
                    .parallel_for = model.parallel_for()};
  const T* const out = model.forward(chunk, to_rows<T>(x));
  std::copy_n(out, chunk.rows() * model.outputs(), to_pointer<T>(y));
}

template <class T>
std::unique_ptr<Update<T>> make_update(OptimizerKind optimizer, const std::vector<ParameterTuple>& parameters) {
  std::vector<Parameter<T>> made;
  made.reserve(parameters.size());
  for (const auto& [value, gradient, numel, average, square, other, step, wide, group, part] : parameters) {
    made.push_back({.value = to_pointer<T>(value),
                    .gradient = to_pointer<T>(gradient),
                    .numel = numel,
                    .average = to_pointer<T>(average),
                    .square = to_pointer<T>(square),
                    .other = to_pointer<T>(other),
                    .step = to_pointer<void>(step),
                    .step_dtype = wide ? DType::kFloat64 : DType::kFloat32,
                    .group = group,
                    .part = part});
  }
  return std::make_unique<Update<T>>(optimizer, std::move(made));
}

template <class T>
std::unique_ptr<Step<T>> make_step(Model<T>& model, const Loss& loss, const Update<T>& update, std::int64_t chunks,
                                   const std::vector<GradientTuple>& gradients, Bucketizer* buckets, bool bf16) {
  std::vector<Gradient<T>> made;
  made.reserve(gradients.size());
  for (const auto& [fresh, held, numel] : gradients) {
    made.push_back({.fresh = to_pointer<T>(fresh), .held = to_pointer<T>(held), .numel = numel});
  }
  return std::make_unique<Step<T>>(model, loss, update, chunks, std::move(made), buckets, bf16);
}

template <class T>
py::tuple train(Step<T>& step, const RowsTuple& x, const RowsTuple& y, Address y_weights, bool labels, bool last_only,
                const RowsTuple& weights, const std::vector<std::int64_t>& sizes, std::int64_t sequences,
                Address lengths, const std::vector<std::uint64_t>& seeds, const std::vector<Settings>& settings,
                std::optional<double> clip_value, std::optional<double> clip_norm, bool attention,
                const HeldTuple& before) {
  Held held{.chunks = std::get<0>(before), .weight = std::get<1>(before), .loss = std::get<2>(before)};
  const Chunks<T> chunks{.x = to_rows<T>(x),
                         .targets = {.values = labels ? nullptr : to_pointer<const T>(std::get<0>(y)),
                                     .value_weights = to_pointer<const T>(y_weights),
                                     .labels = labels ? to_pointer<const std::int64_t>(std::get<0>(y)) : nullptr,
                                     .step = std::get<1>(y),
                                     .sequence = std::get<2>(y),
                                     .weights = to_pointer<const T>(std::get<0>(weights)),
                                     .weight_step = std::get<1>(weights),
                                     .weight_sequence = std::get<2>(weights),
                                     .last_only = last_only},
                         .sizes = sizes,
                         .sequences = sequences,
                         .lengths = to_pointer<const std::int64_t>(lengths),
                         .seeds = seeds};
  std::vector<Done> done;
  Outcome outcome{};
  {
    const py::gil_scoped_release released;
    outcome = step.train(chunks, settings, {.value = clip_value, .norm = clip_norm}, attention, held, done);
  }
  const py::list losses(done.size());
  for (std::size_t i = 0; i < done.size(); ++i) losses[i] = py::make_tuple(done[i].loss, done[i].weight);
  return py::make_tuple(losses, outcome, HeldTuple(held.chunks, held.weight, held.loss));
}

template <class T>
std::unique_ptr<StepPredictor<T>> make_predictor(Model<T>& model, std::int64_t inputs, std::pair<Address, Address> x,
                                                 std::pair<Address, Address> y) {
  const auto scaling = [](const std::pair<Address, Address>& s) -> Scaling {
    return {.center = to_pointer<const double>(s.first), .scale = to_pointer<const double>(s.second)};
  };
  return std::make_unique<StepPredictor<T>>(model, inputs, scaling(x), scaling(y));
}

// The memory of an array, if it has any.
class View {
 public:
  explicit View(PyObject* array) : open_(PyObject_GetBuffer(array, &view_, PyBUF_FORMAT | PyBUF_STRIDES) == 0) {
    if (!open_) PyErr_Clear();
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() {
    if (open_) PyBuffer_Release(&view_);
  }

  // Its elements if it is contiguous, of this shape and of this type; else null.
  template <class X>
  const X* elements(std::int64_t rows, std::int64_t columns) const {
    if (!open_ || std::string_view(view_.format) != (std::is_same_v<X, float> ? "f" : "d")) return nullptr;
    const bool fits = view_.ndim == 2 && view_.shape[0] == rows && view_.shape[1] == columns &&
                      PyBuffer_IsContiguous(&view_, 'C') != 0 &&
                      reinterpret_cast<std::uintptr_t>(view_.buf) % alignof(X) == 0;
    return fits ? static_cast<const X*>(view_.buf) : nullptr;
  }

 private:
  Py_buffer view_{};
  bool open_;
};

template <class T, class X>
bool run_step(StepPredictor<T>& predictor, const X* x, std::int64_t sequences, Address y, bool wide) {
  return wide ? predictor.run(x, sequences, to_pointer<double>(y)) : predictor.run(x, sequences, to_pointer<float>(y));
}

// Holds the interpreter's lock from the first check to the result, so nothing changes between.
template <class T>
bool predict_step(StepPredictor<T>& predictor, const py::object& x, std::int64_t sequences, Address y, bool wide,
                  const py::tuple& objects, const py::tuple& containers, const py::tuple& entries,
                  const py::tuple& tensors) {
  if (!is_unchanged({objects.ptr(), containers.ptr(), entries.ptr(), tensors.ptr()})) return false;
  const View view(x.ptr());
  if (const auto* data = view.elements<float>(sequences, predictor.inputs())) {
    return run_step(predictor, data, sequences, y, wide);
  }
  if (const auto* data = view.elements<double>(sequences, predictor.inputs())) {
    return run_step(predictor, data, sequences, y, wide);
  }
  return false;
}

// A class for each type of parameters.
template <class T>
void register_step(const py::module_& m, const std::string& type) {
  py::class_<Model<T>>(m, ("Model" + type).c_str())
      .def(py::init(&make_model<T>), py::arg("layers"), py::arg("parallel_for"))
      .def("set_state", &set_state<T>, py::arg("state"),
           "Memory of the state: for each layer that has one, h and perhaps c.")
      .def("forward", &forward<T>, py::arg("x"), py::arg("steps"), py::arg("sequences"), py::arg("y"),
           py::call_guard<py::gil_scoped_release>(),
           "Writes the outputs of a chunk to y, (steps, sequences, outputs), without dropout, and advances the state.");
  py::class_<Update<T>>(m, ("Update" + type).c_str())
      .def(py::init(&make_update<T>), py::arg("optimizer"), py::arg("parameters"))
      .def(
          "run",
          [](const Update<T>& update, const std::vector<Settings>& settings, std::optional<double> clip_value,
             std::optional<double> clip_norm,
             std::optional<double> norm) { update.run(settings, {.value = clip_value, .norm = clip_norm}, norm); },
          py::arg("settings"), py::arg("clip_value"), py::arg("clip_norm"), py::arg("norm"),
          py::call_guard<py::gil_scoped_release>(),
          "Clips and makes a step; `norm` is the gradients', if it is known.");
  py::class_<Step<T>>(m, ("Step" + type).c_str())
      .def(py::init(&make_step<T>), py::arg("model"), py::arg("loss"), py::arg("update"), py::arg("chunks"),
           py::arg("gradients"), py::arg("buckets"), py::arg("bf16"), py::keep_alive<1, 2>(), py::keep_alive<1, 4>(),
           py::keep_alive<1, 7>())
      .def("train", &train<T>, py::arg("x"), py::arg("y"), py::arg("y_weights"), py::arg("labels"),
           py::arg("last_only"), py::arg("weights"), py::arg("sizes"), py::arg("sequences"), py::arg("lengths"),
           py::arg("seeds"), py::arg("settings"), py::arg("clip_value"), py::arg("clip_norm"), py::arg("attention"),
           py::arg("held"),
           "Trains on chunks; returns ([(loss, weight) of updates], its outcome, what is held: (chunks, weight, "
           "loss)).");
  py::class_<StepPredictor<T>>(m, ("StepPredictor" + type).c_str())
      .def(py::init(&make_predictor<T>), py::arg("model"), py::arg("inputs"), py::arg("x_scaling"),
           py::arg("y_scaling"), py::keep_alive<1, 2>())
      .def("run", &predict_step<T>, py::arg("x"), py::arg("sequences"), py::arg("y"), py::arg("wide"),
           py::arg("objects"), py::arg("containers"), py::arg("entries"), py::arg("tensors"),
           "Runs a time step, x being an array; returns whether it could: that nothing has changed (see unchanged.h) "
           "and x is of its shape and finite.");
}

void register_layers(const py::module_& m) {
  py::enum_<Activation>(m, "Activation")
      .value("relu", Activation::kRelu)
      .value("sigmoid", Activation::kSigmoid)
      .value("tanh", Activation::kTanh);
  py::enum_<Pooling>(m, "Pooling")
      .value("last", Pooling::kLast)
      .value("mean", Pooling::kMean)
      .value("max", Pooling::kMax);
  py::enum_<Cell>(m, "Cell")
      .value("lstm", Cell::kLstm)
      .value("gru", Cell::kGru)
      .value("rnn_tanh", Cell::kTanhRnn)
      .value("rnn_relu", Cell::kReluRnn);
  py::class_<LinearLayer>(m, "LinearLayer")
      .def(py::init<std::int64_t, std::int64_t, WeightAddresses, WeightAddresses>(), py::arg("inputs"),
           py::arg("outputs"), py::arg("weight"), py::arg("bias"));
  py::class_<ActivationLayer>(m, "ActivationLayer")
      .def(py::init<Activation, std::int64_t>(), py::arg("kind"), py::arg("features"));
  py::class_<DropoutLayer>(m, "DropoutLayer")
      .def(py::init<double, std::int64_t, std::int64_t>(), py::arg("rate"), py::arg("features"), py::arg("number"));
  py::class_<RecurrentLayer>(m, "RecurrentLayer")
      .def(py::init([](Cell cell, std::int64_t inputs, std::int64_t hidden, std::int64_t layers, bool biases,
                       bool bidirectional, double dropout, bool takes_lengths, bool carries, std::int64_t number,
                       std::vector<WeightAddresses> weights) {
             return RecurrentLayer{.options = {.cell = cell,
                                               .inputs = inputs,
                                               .hidden = hidden,
                                               .layers = layers,
                                               .biases = biases,
                                               .bidirectional = bidirectional,
                                               .dropout = dropout,
                                               .takes_lengths = takes_lengths,
                                               .carries = carries,
                                               .number = number},
                                   .weights = std::move(weights)};
           }),
           py::kw_only(), py::arg("cell"), py::arg("inputs"), py::arg("hidden"), py::arg("layers"), py::arg("biases"),
           py::arg("bidirectional"), py::arg("dropout"), py::arg("takes_lengths"), py::arg("carries"),
           py::arg("number"), py::arg("weights"));
  py::class_<SegmentRnnLayer>(m, "SegmentRnnLayer")
      .def(py::init([](std::int64_t horizon, std::int64_t variables, std::int64_t outputs, std::int64_t lags,
                       std::int64_t features, std::int64_t segment, const LinearLayer& linear, const LinearLayer& embed,
                       const RecurrentLayer& recurrent, const LinearLayer& mix, const DropoutLayer& dropout,
                       const LinearLayer& out) {
             return SegmentRnnLayer{.options = {.horizon = horizon,
                                                .variables = variables,
                                                .outputs = outputs,
                                                .lags = lags,
                                                .features = features,
                                                .segment = segment,
                                                .hidden = recurrent.options.hidden},
                                    .linear = linear,
                                    .embed = embed,
                                    .recurrent = recurrent,
                                    .mix = mix,
                                    .dropout = dropout,
                                    .out = out};
           }),
           py::kw_only(), py::arg("horizon"), py::arg("variables"), py::arg("outputs"), py::arg("lags"),
           py::arg("features"), py::arg("segment"), py::arg("linear"), py::arg("embed"), py::arg("recurrent"),
           py::arg("mix"), py::arg("dropout"), py::arg("out"));
  py::class_<PooledLayer>(m, "PooledLayer")
      .def(py::init<std::vector<Pooling>, std::int64_t, std::vector<HeadLayer>>(), py::arg("parts"),
           py::arg("features"), py::arg("head"));
  py::class_<MembersLayer>(m, "MembersLayer")
      .def(py::init([](std::vector<std::vector<SingleLayer>> members) { return MembersLayer{std::move(members)}; }),
           py::arg("members"));
}

void register_settings(const py::module_& m) {
  py::class_<Settings>(m, "Settings")
      .def(py::init([](double lr, double weight_decay, double momentum, double dampening, double beta1, double beta2,
                       double eps, bool nesterov, bool maximize, bool decoupled, bool amsgrad, bool centered) {
             return Settings{.lr = lr,
                             .weight_decay = weight_decay,
                             .momentum = momentum,
                             .dampening = dampening,
                             .beta1 = beta1,
                             .beta2 = beta2,
                             .eps = eps,
                             .nesterov = nesterov,
                             .maximize = maximize,
                             .decoupled = decoupled,
                             .amsgrad = amsgrad,
                             .centered = centered};
           }),
           py::kw_only(), py::arg("lr"), py::arg("weight_decay") = 0.0, py::arg("momentum") = 0.0,
           py::arg("dampening") = 0.0, py::arg("beta1") = 0.0, py::arg("beta2") = 0.0, py::arg("eps") = 0.0,
           py::arg("nesterov") = false, py::arg("maximize") = false, py::arg("decoupled") = false,
           py::arg("amsgrad") = false, py::arg("centered") = false);
}

}  // namespace

PYBIND11_MODULE(_step, m) {
  m.doc() = "fastseq's training steps, free of torch and MPI.";
  py::module_::import("fastseq._comm");  // has the bucketizer
  register_errors();
  register_layers(m);
  register_settings(m);
  py::enum_<LossKind>(m, "LossKind")
      .value("mse", LossKind::kMse)
      .value("mae", LossKind::kMae)
      .value("huber", LossKind::kHuber)
      .value("smooth_l1", LossKind::kSmoothL1)
      .value("binary_with_logits", LossKind::kBinaryWithLogits)
      .value("cross_entropy", LossKind::kCrossEntropy)
      .value("pinball", LossKind::kPinball);
  py::class_<Loss>(m, "Loss")
      .def(py::init([](LossKind kind, std::vector<double> parameters, bool of_known, std::vector<double> part_weights) {
             return Loss{.kind = kind,
                         .parameters = std::move(parameters),
                         .of_known = of_known,
                         .part_weights = std::move(part_weights)};
           }),
           py::arg("kind"), py::arg("parameters") = std::vector<double>{}, py::kw_only(), py::arg("of_known") = false,
           py::arg("part_weights") = std::vector<double>{})
      .def_readonly("kind", &Loss::kind)
      .def_readonly("parameters", &Loss::parameters)
      .def_readonly("of_known", &Loss::of_known)
      .def_readonly("part_weights", &Loss::part_weights)
      .def_readwrite("members", &Loss::members);
  py::enum_<OptimizerKind>(m, "OptimizerKind")
      .value("sgd", OptimizerKind::kSgd)
      .value("adam", OptimizerKind::kAdam)
      .value("rmsprop", OptimizerKind::kRmsProp);
  py::enum_<End>(m, "End")
      .value("all", End::kAll)
      .value("paused", End::kPaused)
      .value("not_finite", End::kNotFinite)
      .value("nonfinite_gradient", End::kNonfiniteGradient)
      .value("bad_label", End::kBadLabel);
  py::class_<Outcome>(m, "Outcome")
      .def_readonly("end", &Outcome::end)
      .def_readonly("chunks", &Outcome::chunks)
      .def_readonly("loss", &Outcome::loss)
      .def_readonly("rank", &Outcome::rank)
      .def_readonly("attention", &Outcome::attention);
  m.def("has_bf16", &has_bf16, "Whether the machine has instructions for products of bf16 numbers.");
  m.def(
      "is_unchanged",
      [](const py::tuple& objects, const py::tuple& containers, const py::tuple& entries, const py::tuple& tensors) {
        return is_unchanged({objects.ptr(), containers.ptr(), entries.ptr(), tensors.ptr()});
      },
      py::arg("objects"), py::arg("containers"), py::arg("entries"), py::arg("tensors"),
      "Whether things are still what they were, see unchanged.h.");
  register_step<float>(m, "32");
  register_step<double>(m, "64");
}

}  // namespace fastseq::step
