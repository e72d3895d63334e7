#include "core/base/convert.h"

#include <type_traits>

#include "core/base/dispatch.h"
#include "core/base/isa.h"

namespace fastseq {

namespace {

template <class From, class To>
void convert_range(const From* from, std::int64_t numel, To* to) {
  // Through double only if both are wide: fp32 holds every 16-bit value.
  using Wide = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
  for (std::int64_t i = 0; i < numel; ++i) to[i] = To(static_cast<Wide>(from[i]));
}

}  // namespace

void convert(const void* from, DType from_dtype, std::int64_t numel, void* to, DType to_dtype) {
  dispatch(from_dtype, [&]<class From>(Type<From>) {
    dispatch(to_dtype, [&]<class To>(Type<To>) {
      best<convert_range<From, To>>(static_cast<const From*>(from), numel, static_cast<To*>(to));
    });
  });
}

}  // namespace fastseq
