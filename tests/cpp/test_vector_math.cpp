#include "core/base/vector_math.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "core/base/isa.h"
#include "ranges.h"

namespace fastseq {

namespace {

enum class Function : std::uint8_t { kSigmoid, kTanh };

template <class T, Function kFunction>
struct Apply {
  template <int kBytes>
  static void run(T* const& values, const std::size_t& count) {
    using V = simd::Vector<T, kBytes>;
    for (std::size_t i = 0; i < count; i += simd::kLanes<V>) {
      V v;
      simd::load(v, values + i);
      if constexpr (kFunction == Function::kSigmoid) {
        simd::sigmoid(v);
      } else {
        simd::tanh(v);
      }
      simd::store(values + i, v);
    }
  }
};

template <class T, Function kFunction>
std::vector<T> apply(std::vector<T> values) {
  const std::size_t count = values.size();
  values.resize((count + 15) / 16 * 16);
  run_best<Apply<T, kFunction>>(values.data(), values.size());
  values.resize(count);
  return values;
}

long double exact(Function function, long double x) {
  return function == Function::kSigmoid ? 1 / (1 + std::exp(-x)) : std::tanh(x);
}

// The largest error on [-limit, limit], in units in the last place.
template <class T, Function kFunction>
double worst_error(T limit) {
  std::vector<T> x;
  constexpr int kCount = 100'000;
  x.reserve(2 * kCount);
  for (int i = 0; i < kCount; ++i) {
    x.push_back(limit * (T(2) * T(i) / kCount - 1));
    // as many small values, down to a millionth of the limit
    x.push_back((i % 2 == 0 ? limit : -limit) * std::pow(T(10), T(-6) * T(i) / kCount));
  }
  const std::vector<T> found = apply<T, kFunction>(x);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double wanted = exact(kFunction, x[i]);
    const T size = std::abs(static_cast<T>(wanted));
    const long double unit = std::nextafter(size, std::numeric_limits<T>::infinity()) - size;
    worst = std::fmax(worst, static_cast<double>(std::abs(found[i] - wanted) / unit));
  }
  return worst;
}

template <class T, Function kFunction>
void check_special(T at_minus_infinity) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const std::vector<T> found = apply<T, kFunction>({std::numeric_limits<T>::quiet_NaN(), kInfinity, -kInfinity, T(0)});
  CHECK(std::isnan(found[0]));
  CHECK_EQ(found[1], T(1));
  CHECK(std::abs(found[2] - at_minus_infinity) < std::numeric_limits<T>::min() * 2);
  CHECK_EQ(found[3], kFunction == Function::kSigmoid ? T(0.5) : T(0));
}

}  // namespace

TEST(sigmoid_and_tanh_are_within_4_units_in_the_last_place) {
  testing::for_every_width([] {
    CHECK((worst_error<float, Function::kSigmoid>(80) <= 4));
    CHECK((worst_error<float, Function::kTanh>(15) <= 4));
    CHECK((worst_error<double, Function::kSigmoid>(700) <= 4));
    CHECK((worst_error<double, Function::kTanh>(30) <= 4));
  });
}

TEST(sigmoid_and_tanh_of_nan_infinity_and_zero) {
  testing::for_every_width([] {
    check_special<float, Function::kSigmoid>(0);
    check_special<float, Function::kTanh>(-1);
    check_special<double, Function::kSigmoid>(0);
    check_special<double, Function::kTanh>(-1);
  });
}

}  // namespace fastseq
