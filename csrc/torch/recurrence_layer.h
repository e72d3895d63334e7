// fastseq::lstm, gru and rnn, and their gradients, on any device: checks and tensors. A `Device` runs the kernels:
//
//   explicit Device(const Tensor& x);
//   static void check(const RecurrenceShape& shape);  // what it demands besides
//   static void check_lengths(const RecurrenceShape& shape, const std::int64_t* lengths);
//   static std::int64_t saved_numel(const RecurrenceShape& shape);
//   void forward(const Layer& layer, const RecurrenceOutputs& outputs) const;
//   void backward(const Tensor& x, const Layer& layer, const RecurrenceGradients& gradients) const;
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/recurrence/recurrence.h"
#include "torch/tensors.h"

namespace fastseq::torch_ops {

using Optional = std::optional<Tensor>;

// A layer's checked inputs; keeps tensors alive that were copied to be contiguous.
struct Layer {
  RecurrenceShape shape{};
  RecurrenceInputs inputs{};
  bool bias = false;
  std::vector<Tensor> kept;
};

inline std::string to_string(const std::int64_t* sizes, std::size_t count) {
  std::string text = "(";
  for (std::size_t d = 0; d < count; ++d) text += (d == 0 ? "" : ", ") + std::to_string(sizes[d]);
  return text + ")";
}

// What sums have, and what forward keeps for backward.
inline ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The memory of a tensor that must have this dtype and these sizes, contiguous.
inline const void* checked(Layer& layer, const Tensor& x, const char* name, const Tensor& tensor,
                           std::initializer_list<std::int64_t> sizes, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.device() == x.device(), name,
                  " must have the dtype and the device of x");
  const auto found = tensor.sizes();
  STD_TORCH_CHECK(std::ranges::equal(found, sizes), name, " must be ", to_string(sizes.begin(), sizes.size()),
                  " for x ", to_string(x.sizes().data(), x.sizes().size()), " and hidden size ", layer.shape.hidden,
                  ", got ", to_string(found.data(), found.size()));
  if (tensor.is_contiguous()) return tensor.const_data_ptr();
  layer.kept.push_back(torch::stable::contiguous(tensor));
  return layer.kept.back().const_data_ptr();
}
inline const void* checked(Layer& layer, const Tensor& x, const char* name, const Tensor& tensor,
                           std::initializer_list<std::int64_t> sizes) {
  return checked(layer, x, name, tensor, sizes, x.scalar_type());
}

template <class Device>
Layer checked_layer(Cell cell, const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                    const Optional& b_hh, const Tensor& h0, const Optional& c0, const Optional& lengths, bool reverse) {
  STD_TORCH_CHECK(x.dim() == 3, "x must be (time, sequences, features), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(w_hh.dim() == 2, "w_hh must be a matrix, got ", w_hh.dim(), " dimensions");
  Layer layer;
  layer.kept.reserve(12);
  layer.shape = {.cell = cell,
                 .dtype = to_dtype(x.scalar_type()),
                 .steps = x.size(0),
                 .sequences = x.size(1),
                 .inputs = x.size(2),
                 .hidden = w_hh.size(1),
                 .reverse = reverse};
  const RecurrenceShape& s = layer.shape;
  Device::check(s);
  const std::int64_t rows = gate_count(cell) * s.hidden;
  RecurrenceInputs& in = layer.inputs;
  const bool by_features = s.inputs <= 1 || x.stride(2) == 1;
  if (!by_features) layer.kept.push_back(torch::stable::contiguous(x));
  const Tensor& read = by_features ? x : layer.kept.back();
  in.x = read.const_data_ptr();
  in.x_step = read.stride(0);
  in.x_sequence = read.stride(1);
  in.w_hh = checked(layer, x, "w_hh", w_hh, {rows, s.hidden});
  in.w_ih = checked(layer, x, "w_ih", w_ih, {rows, s.inputs});
  STD_TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "b_ih and b_hh must both be given, or neither");
  layer.bias = b_ih.has_value();
  if (b_ih.has_value() && b_hh.has_value()) {
    in.b_ih = checked(layer, x, "b_ih", *b_ih, {rows});
    in.b_hh = checked(layer, x, "b_hh", *b_hh, {rows});
  }
  in.h0 = checked(layer, x, "h0", h0, {1, s.sequences, s.hidden});
  if (c0.has_value()) in.c0 = checked(layer, x, "c0", *c0, {1, s.sequences, s.hidden});
  if (lengths.has_value()) {
    const Tensor& l = *lengths;
    STD_TORCH_CHECK(
        l.scalar_type() == ScalarType::Long && l.device() == x.device() && l.dim() == 1 && l.size(0) == s.sequences,
        "lengths must be ", s.sequences, " int64 numbers on the device of x");
    layer.kept.push_back(torch::stable::contiguous(l));
    in.lengths = static_cast<const std::int64_t*>(layer.kept.back().const_data_ptr());
    Device::check_lengths(s, in.lengths);
  }
  return layer;
}

// An uninitialised contiguous tensor on the device of x. Directly from the allocator: the dispatcher takes three times
// as long, which matters for small layers.
template <std::size_t kDims>
Tensor empty_beside(const Tensor& x, const std::array<std::int64_t, kDims>& sizes, std::int32_t dtype) {
  std::array<std::int64_t, kDims> strides{};
  std::int64_t stride = 1;
  for (std::size_t d = kDims; d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<std::int64_t>(sizes[d], 1);
  }
  std::int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(kDims), sizes.data(), strides.data(), dtype,
                                                  device, std::max(x.get_device_index(), 0), &handle));
  return Tensor(handle);
}
template <std::size_t kDims>
Tensor empty_like_x(const Tensor& x, const std::array<std::int64_t, kDims>& sizes) {
  std::int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return empty_beside(x, sizes, dtype);
}
// A vector of the type that sums have.
inline Tensor empty_wide(const Tensor& x, std::int64_t numel) {
  const bool is_double = wide_type(x) == ScalarType::Double;
  return empty_beside<1>(x, {numel}, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

struct Outputs {
  Tensor y;
  Tensor h;
  Tensor c;
  Tensor saved;
};

template <class Device>
Outputs run_forward(const Layer& layer, const Tensor& x, bool save) {
  const RecurrenceShape& s = layer.shape;
  const bool has_cell = s.cell == Cell::kLstm;
  const Device device(x);
  Outputs out{.y = empty_like_x<3>(x, {s.steps, s.sequences, s.hidden}),
              .h = empty_like_x<3>(x, {1, s.sequences, s.hidden}),
              .c = has_cell ? empty_like_x<3>(x, {1, s.sequences, s.hidden}) : Tensor(),
              .saved = empty_wide(x, save ? Device::saved_numel(s) : 0)};
  device.forward(layer, {.y = out.y.mutable_data_ptr(),
                         .h = out.h.mutable_data_ptr(),
                         .c = has_cell ? out.c.mutable_data_ptr() : nullptr,
                         .saved = save ? out.saved.mutable_data_ptr() : nullptr});
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                                                const Optional& b_ih, const Optional& b_hh, const Tensor& h0,
                                                const Tensor& c0, const Optional& lengths, bool reverse, bool save) {
  const Layer layer = checked_layer<Device>(Cell::kLstm, x, w_ih, w_hh, b_ih, b_hh, h0, c0, lengths, reverse);
  Outputs out = run_forward<Device>(layer, x, save);
  return {std::move(out.y), std::move(out.h), std::move(out.c), std::move(out.saved)};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> gru(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                                       const Optional& b_hh, const Tensor& h0, const Optional& lengths, bool reverse,
                                       bool save) {
  const Layer layer = checked_layer<Device>(Cell::kGru, x, w_ih, w_hh, b_ih, b_hh, h0, std::nullopt, lengths, reverse);
  Outputs out = run_forward<Device>(layer, x, save);
  return {std::move(out.y), std::move(out.h), std::move(out.saved)};
}

template <class Device>
std::tuple<Tensor, Tensor> rnn(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                               const Optional& b_hh, const Tensor& h0, const Optional& lengths, bool reverse,
                               bool relu) {
  const Cell cell = relu ? Cell::kReluRnn : Cell::kTanhRnn;
  const Layer layer = checked_layer<Device>(cell, x, w_ih, w_hh, b_ih, b_hh, h0, std::nullopt, lengths, reverse);
  Outputs out = run_forward<Device>(layer, x, false);
  return {std::move(out.y), std::move(out.h)};
}

// An incoming gradient; null if there is none.
inline const void* incoming(Layer& layer, const Tensor& x, const char* name, const Optional& gradient,
                            std::int64_t leading) {
  if (!gradient.has_value()) return nullptr;
  return checked(layer, x, name, *gradient, {leading, layer.shape.sequences, layer.shape.hidden});
}

// (dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0); gradients that are not needed have no elements.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    std::int64_t cell, const Optional& dy, const Optional& dh, const Optional& dc, const Tensor& x, const Tensor& w_ih,
    const Tensor& w_hh, bool bias, const Tensor& h0, const Optional& c0, const Optional& lengths, bool reverse,
    const Tensor& y, const Optional& saved, bool need_x, bool need_weights, bool need_state) {
  STD_TORCH_CHECK(cell >= 0 && cell <= static_cast<std::int64_t>(Cell::kReluRnn), "unknown cell ", cell);
  const auto kind = static_cast<Cell>(cell);
  Layer layer = checked_layer<Device>(kind, x, w_ih, w_hh, std::nullopt, std::nullopt, h0, c0, lengths, reverse);
  const RecurrenceShape& s = layer.shape;
  const bool has_cell = kind == Cell::kLstm;
  STD_TORCH_CHECK(has_cell == c0.has_value(), "an LSTM has c0, other layers have not");
  const std::int64_t numel = Device::saved_numel(s);
  STD_TORCH_CHECK(saved.has_value() || numel == 0, "saved must be what forward kept");
  const void* kept = saved.has_value() ? checked(layer, x, "saved", *saved, {numel}, wide_type(x)) : nullptr;
  const auto wanted = [&]<std::size_t kDims>(bool want, const std::array<std::int64_t, kDims>& sizes) {
    return want ? empty_like_x(x, sizes) : empty_like_x<1>(x, {0});
  };
  const Device device(x);
  const std::int64_t rows = gate_count(kind) * s.hidden;
  const bool need_biases = need_weights && bias;
  const bool need_cell = need_state && has_cell;
  Tensor dx = wanted(need_x, std::array{s.steps, s.sequences, s.inputs});
  Tensor dw_ih = wanted(need_weights, std::array{rows, s.inputs});
  Tensor dw_hh = wanted(need_weights, std::array{rows, s.hidden});
  Tensor db_ih = wanted(need_biases, std::array{rows});
  Tensor db_hh = wanted(need_biases, std::array{rows});
  Tensor dh0 = wanted(need_state, std::array{std::int64_t{1}, s.sequences, s.hidden});
  Tensor dc0 = wanted(need_cell, std::array{std::int64_t{1}, s.sequences, s.hidden});
  const auto target = [](bool want, Tensor& tensor) { return want ? tensor.mutable_data_ptr() : nullptr; };
  device.backward(x, layer,
                  {.y = checked(layer, x, "y", y, {s.steps, s.sequences, s.hidden}),
                   .saved = kept,
                   .dy = incoming(layer, x, "dy", dy, s.steps),
                   .dh = incoming(layer, x, "dh", dh, 1),
                   .dc = incoming(layer, x, "dc", dc, 1),
                   .dx = target(need_x, dx),
                   .dw_ih = target(need_weights, dw_ih),
                   .dw_hh = target(need_weights, dw_hh),
                   .db_ih = target(need_biases, db_ih),
                   .db_hh = target(need_biases, db_hh),
                   .dh0 = target(need_state, dh0),
                   .dc0 = target(need_cell, dc0)});
  return {std::move(dx),    std::move(dw_ih), std::move(dw_hh), std::move(db_ih),
          std::move(db_hh), std::move(dh0),   std::move(dc0)};
}

}  // namespace fastseq::torch_ops
