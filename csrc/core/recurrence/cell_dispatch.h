// Dispatch of a recurrent layer's shape to the types of its kernels, and the amount of work per thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "core/base/bf16_pair.h"
#include "core/base/dispatch.h"
#include "core/recurrence/cells.h"
#include "core/recurrence/recurrence.h"
#include "core/recurrence/tiles.h"

namespace fastseq::recurrence {

// Calls fn(Type<T>{}, Type<O>{}, Type<Cell>{}), O being the operands of products.
template <class Fn>
void dispatch_cell(const RecurrenceShape& shape, const Fn& fn) {
  const auto with_types = [&]<class T, class O>(Type<T> type, Type<O> operand) {
    switch (shape.cell) {
      case Cell::kLstm:
        return fn(type, operand, Type<Lstm>{});
      case Cell::kGru:
        return fn(type, operand, Type<Gru>{});
      case Cell::kTanhRnn:
        return fn(type, operand, Type<Rnn<false>>{});
      case Cell::kReluRnn:
        return fn(type, operand, Type<Rnn<true>>{});
    }
    throw std::invalid_argument("recurrence: unknown cell");
  };
  if (shape.dtype == DType::kFloat32 && shape.bf16) return with_types(Type<float>{}, Type<Bf16Pair>{});
  if (shape.dtype == DType::kFloat32) return with_types(Type<float>{}, Type<float>{});
  if (shape.dtype == DType::kFloat64 && !shape.bf16) return with_types(Type<double>{}, Type<double>{});
  throw std::invalid_argument("recurrence: the dtype must be fp32, or fp64 without bf16");
}

// Least sequences per thread; elementwise work counts as 16 multiplications.
inline std::int64_t sequence_grain(const RecurrenceShape& s) {
  return grain(kProductsPerThread, s.steps * gate_count(s.cell) * s.hidden * (s.inputs + s.hidden + 16));
}

// (sequences, hidden) to [panel][sequence][L] and back; padding becomes zero.
template <class T>
void to_panels(const T* rows, const RecurrenceShape& s, std::int64_t begin, std::int64_t end, T* panels) {
  for (std::int64_t p = 0; p < panel_count<T>(s.hidden); ++p) {
    const std::int64_t units = units_in<T>(p, s.hidden);
    for (std::int64_t n = begin; n < end; ++n) {
      T* to = panels + (p * s.sequences + n) * kPanel<T>;
      if (rows != nullptr) std::copy_n(rows + n * s.hidden + p * kPanel<T>, units, to);
      std::fill(to + (rows == nullptr ? 0 : units), to + kPanel<T>, T{});
    }
  }
}

template <class T>
void from_panels(const T* panels, const RecurrenceShape& s, std::int64_t begin, std::int64_t end, T* rows) {
  for (std::int64_t p = 0; p < panel_count<T>(s.hidden); ++p) {
    for (std::int64_t n = begin; n < end; ++n) {
      std::copy_n(panels + (p * s.sequences + n) * kPanel<T>, units_in<T>(p, s.hidden),
                  rows + n * s.hidden + p * kPanel<T>);
    }
  }
}

}  // namespace fastseq::recurrence
