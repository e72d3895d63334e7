// Layers that work element by element.
#include <cmath>
#include <cstdint>

#include "core/base/isa.h"
#include "core/base/simd.h"
#include "core/base/vector_math.h"
#include "core/step/buffer.h"
#include "core/step/layer.h"

namespace fastseq::step {

namespace {

struct Relu {
  template <class V>
  static void forward(V& v) {
    v = v < 0 ? V{} : v;  // NaN stays
  }
  template <class V>
  static V slope(const V& y) {
    return y <= 0 ? V{} : V{} + 1;
  }
};

struct Sigmoid {
  template <class V>
  static void forward(V& v) {
    simd::sigmoid(v);
  }
  template <class V>
  static V slope(const V& y) {
    return y * (1 - y);
  }
};

struct Tanh {
  template <class V>
  static void forward(V& v) {
    simd::tanh(v);
  }
  template <class V>
  static V slope(const V& y) {
    return 1 - y * y;
  }
};

template <class Kind>
struct ForwardRange {
  template <int kBytes, class T>
  static void run(const T* x, T* y, std::int64_t count) {
    using V = simd::Vector<T, kBytes>;
    for (std::int64_t i = 0; i < count; i += simd::kLanes<V>) {
      V v;
      simd::load_first(v, x + i, count - i, x + count);
      Kind::forward(v);
      simd::store_first(y + i, v, count - i);
    }
  }
};

template <class Kind>
struct BackwardRange {
  template <int kBytes, class T>
  static void run(const T* y, T* dy, std::int64_t count) {
    using V = simd::Vector<T, kBytes>;
    for (std::int64_t i = 0; i < count; i += simd::kLanes<V>) {
      V v;
      V d;
      simd::load_first(v, y + i, count - i, y + count);
      simd::load_first(d, dy + i, count - i, dy + count);
      simd::store_first(dy + i, V(d * Kind::slope(v)), count - i);
    }
  }
};

// Calls fn(step, from, count) for runs of contiguous elements of x, `step` being the place of the first among all.
template <class T, class Fn>
void for_contiguous(const Chunk& chunk, const Rows<T>& x, std::int64_t features, const Fn& fn) {
  const bool steps_whole = x.sequence == features || chunk.sequences == 1;
  if (steps_whole && (x.step == chunk.sequences * features || chunk.steps == 1)) {
    fn(std::int64_t{0}, x.data, chunk.rows() * features);
    return;
  }
  for (std::int64_t t = 0; t < chunk.steps; ++t) {
    const T* const step = x.data + t * x.step;
    if (steps_whole) {
      fn(t * chunk.sequences * features, step, chunk.sequences * features);
      continue;
    }
    for (std::int64_t n = 0; n < chunk.sequences; ++n) {
      fn((t * chunk.sequences + n) * features, step + n * x.sequence, features);
    }
  }
}

template <class T, class Kind>
class Elementwise : public Layer<T> {
 public:
  explicit Elementwise(std::int64_t features) : features_(features) {}

  std::int64_t outputs() const override { return features_; }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    T* const y = y_.reserve(chunk.rows() * features_);
    for_contiguous(chunk, x, features_, [&](std::int64_t at, const T* from, std::int64_t count) {
      run_best<ForwardRange<Kind>>(from, y + at, count);
    });
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& /*x*/, T* dy, bool /*wants_dx*/) override {
    run_best<BackwardRange<Kind>>(static_cast<const T*>(y_.data()), dy, chunk.rows() * features_);
    return dy;
  }

 private:
  std::int64_t features_;
  Buffer<T> y_;
};

template <class T>
class Dropout : public Layer<T> {
 public:
  Dropout(double rate, std::int64_t features, std::int64_t number)
      : rate_(rate), features_(features), number_(number) {}

  std::int64_t outputs() const override { return features_; }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    T* const y = y_.reserve(chunk.rows() * features_);
    for_contiguous(chunk, x, features_,
                   [&](std::int64_t at, const T* from, std::int64_t count) { std::copy_n(from, count, y + at); });
    if (chunk.training) drop(y, chunk.rows() * features_, rate_, dropout_key(chunk.seed, number_));
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& /*x*/, T* dy, bool /*wants_dx*/) override {
    if (chunk.training) drop(dy, chunk.rows() * features_, rate_, dropout_key(chunk.seed, number_));
    return dy;
  }

 private:
  double rate_;
  std::int64_t features_;
  std::int64_t number_;
  Buffer<T> y_;
};

// The finaliser of SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, Fast splittable pseudorandom number generators,
// 2014).
std::uint64_t mixed(std::uint64_t z) {
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31U);
}

constexpr std::uint64_t kGoldenGamma = 0x9e3779b97f4a7c15U;

template <class T>
void drop_elements(T* data, std::int64_t count, std::uint64_t least, T scale, std::uint64_t key) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t drawn = mixed(key + static_cast<std::uint64_t>(i) * kGoldenGamma) >> 11U;  // 53 bits
    data[i] = drawn < least ? T{} : data[i] * scale;
  }
}

}  // namespace

std::uint64_t dropout_key(std::uint64_t seed, std::int64_t number) {
  return mixed(seed + (static_cast<std::uint64_t>(number) + 1) * kGoldenGamma);
}

template <class T>
void drop(T* data, std::int64_t count, double rate, std::uint64_t key) {
  const T scale = rate < 1 ? static_cast<T>(1 / (1 - rate)) : T{};
  best<drop_elements<T>>(data, count, static_cast<std::uint64_t>(std::ldexp(rate, 53)), scale, key);
}
template void drop(float*, std::int64_t, double, std::uint64_t);
template void drop(double*, std::int64_t, double, std::uint64_t);

template <class T>
std::unique_ptr<Layer<T>> make_activation(Activation kind, std::int64_t features) {
  switch (kind) {
    case Activation::kRelu:
      return std::make_unique<Elementwise<T, Relu>>(features);
    case Activation::kSigmoid:
      return std::make_unique<Elementwise<T, Sigmoid>>(features);
    case Activation::kTanh:
      return std::make_unique<Elementwise<T, Tanh>>(features);
  }
  return nullptr;
}
template std::unique_ptr<Layer<float>> make_activation(Activation, std::int64_t);
template std::unique_ptr<Layer<double>> make_activation(Activation, std::int64_t);

template <class T>
std::unique_ptr<Layer<T>> make_dropout(double rate, std::int64_t features, std::int64_t number) {
  return std::make_unique<Dropout<T>>(rate, features, number);
}
template std::unique_ptr<Layer<float>> make_dropout(double, std::int64_t, std::int64_t);
template std::unique_ptr<Layer<double>> make_dropout(double, std::int64_t, std::int64_t);

}  // namespace fastseq::step
