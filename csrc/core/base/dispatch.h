// Dispatch of a run-time dtype to a compile-time type.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/half.h"

namespace fastseq {

template <class T>
struct Type {
  using type = T;
};

// The type to compute sums and products of T in.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls fn(Type<T>{}) with the T that `dtype` names.
template <class Fn>
decltype(auto) dispatch(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kFloat16:
      return fn(Type<Float16>{});
    case DType::kBFloat16:
      return fn(Type<BFloat16>{});
    case DType::kFloat32:
      return fn(Type<float>{});
    case DType::kFloat64:
      return fn(Type<double>{});
  }
  throw std::invalid_argument("dispatch: unknown dtype");
}

}  // namespace fastseq
