// See cuda_fp16.h.
#pragma once
#include "core/base/half.h"

struct __nv_bfloat16 : fastseq::BFloat16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : BFloat16(value) {}
  explicit __nv_bfloat16(double value) : BFloat16(static_cast<float>(value)) {}
  explicit operator double() const { return static_cast<float>(*this); }
  using BFloat16::operator float;
};
