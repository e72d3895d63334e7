// The device's 16-bit types, as the kernels use them: storage that converts to and from wider types.
#pragma once
#include "core/base/half.h"

struct __half : fastseq::Float16 {
  __half() = default;
  explicit __half(float value) : Float16(value) {}
  explicit __half(double value) : Float16(static_cast<float>(value)) {}
  explicit operator double() const { return static_cast<float>(*this); }
  using Float16::operator float;
};
