// Features of random kernels for any lengths, dilations and strides, against whole numbers.
#include "core/convolution/random_kernels.h"

#include "core/base/dispatch.h"
#include "fuzz.h"

namespace fastseq {

namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

template <class T>
struct Series {
  RandomKernelsShape shape;
  std::vector<T> x;
  std::int64_t x_step;
  std::int64_t x_sequence;
  std::vector<std::int64_t> lengths;
  std::vector<std::int64_t> dilations;
  std::vector<std::int64_t> members;
  std::vector<T> thresholds;

  std::int64_t length(std::int64_t n) const { return lengths.empty() ? shape.steps : lengths[at(n)]; }

  // The sum of a group's features at a step; 0 outside of the sequence. NaN if one is.
  double sum(std::int64_t n, std::int64_t g, std::int64_t t) const {
    if (t < 0 || t >= length(n)) return 0;
    double found = 0;
    for (std::int64_t m = 0; m < shape.members; ++m) {
      const std::int64_t f = members[at(g * shape.members + m)];
      if (f < shape.features) found += static_cast<double>(x[at(t * x_step + n * x_sequence + f)]);
    }
    return found;
  }

  void check_group(std::int64_t n, std::int64_t g, const T* out) const {
    bool finite = true;
    for (std::int64_t t = 0; t < length(n); ++t) finite = finite && std::isfinite(sum(n, g, t));
    const std::int64_t all = std::max(length(n), shape.least_steps);
    std::array<std::int64_t, kKernelChoices> above{};
    // Further behind the end all sums are zero.
    const std::int64_t some = std::min(all, length(n) + kKernelTaps / 2 * dilations[at(g)]);
    for (std::int64_t t = 0; finite && t < some; ++t) {
      std::array<double, kKernelTaps> taps{};
      double total = 0;
      for (int j = 0; j < kKernelTaps; ++j) {
        taps[static_cast<std::size_t>(j)] = sum(n, g, t + (j - kKernelTaps / 2) * dilations[at(g)]);
        total += taps[static_cast<std::size_t>(j)];
      }
      std::size_t k = 0;
      for (std::size_t a = 0; a < kKernelTaps; ++a) {
        for (std::size_t b = a + 1; b < kKernelTaps; ++b) {
          for (std::size_t c = b + 1; c < kKernelTaps; ++c, ++k) {
            const double convolved = 3 * (taps[a] + taps[b] + taps[c]) - total;
            above[k] += convolved > 3 * static_cast<double>(thresholds[at(g) * kKernelChoices + k]) ? 1 : 0;
          }
        }
      }
    }
    for (std::size_t k = 0; k < kKernelChoices; ++k) {
      if (thresholds[at(g) * kKernelChoices + k] < 0) above[k] += all - some;
      const T wanted = finite ? static_cast<T>(above[k]) / static_cast<T>(all) : std::numeric_limits<T>::quiet_NaN();
      fuzz::demand(fuzz::same(static_cast<double>(out[k]), static_cast<double>(wanted)), "a feature");
    }
  }
};

template <class T>
void check(fuzz::Draw& draw, DType dtype) {
  Series<T> s{};
  s.shape = {.dtype = dtype,
             .steps = draw.between(0, 40),
             .sequences = draw.between(0, 3),
             .features = draw.between(0, 4),
             .groups = draw.between(0, 2),
             .members = draw.between(0, 3),
             .least_steps = std::max<std::int64_t>(draw.yes() ? draw.between(1, 50) : draw.any(), 1)};
  const RandomKernelsShape& shape = s.shape;
  s.x_sequence = shape.features + draw.between(0, 2);
  s.x_step = s.x_sequence * shape.sequences + draw.between(0, 2);
  const bool by_sequence = draw.yes();
  if (by_sequence) {
    s.x_step = shape.features;
    s.x_sequence = shape.steps * shape.features;
  }
  const bool empty = shape.steps == 0 || shape.sequences == 0 || shape.features == 0;
  const std::int64_t last = (shape.steps - 1) * s.x_step + (shape.sequences - 1) * s.x_sequence + shape.features;
  fuzz::Noise noise(draw.seed());
  s.x.resize(at(empty ? 0 : last));
  for (T& value : s.x) value = static_cast<T>(noise.below(41) - 20);
  if (!s.x.empty() && draw.between(0, 7) == 0) {
    s.x[at(noise.below(last))] = draw.of(std::array<T, 2>{static_cast<T>(NAN), static_cast<T>(INFINITY)});
  }
  if (draw.yes()) {
    for (std::int64_t n = 0; n < shape.sequences; ++n) s.lengths.push_back(draw.between(0, shape.steps));
  }
  for (std::int64_t g = 0; g < shape.groups; ++g) s.dilations.push_back(draw.between(1, draw.yes() ? 6 : 60));
  for (std::int64_t m = 0; m < shape.groups * shape.members; ++m) s.members.push_back(draw.between(0, shape.features));
  s.thresholds.resize(at(shape.groups * kKernelChoices));
  for (T& threshold : s.thresholds) threshold = (static_cast<T>(noise.below(81) - 40) + T(0.5)) / 3;
  std::vector<T> out(at(shape.sequences * shape.groups * kKernelChoices), T{99});
  random_kernels(shape,
                 {.x = s.x.data(),
                  .x_step = s.x_step,
                  .x_sequence = s.x_sequence,
                  .lengths = s.lengths.empty() ? nullptr : s.lengths.data(),
                  .dilations = s.dilations.data(),
                  .members = s.members.data(),
                  .thresholds = s.thresholds.data()},
                 out.data(), draw.of(fuzz::kParallelFors));
  for (std::int64_t n = 0; n < shape.sequences; ++n) {
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      s.check_group(n, g, out.data() + (n * shape.groups + g) * kKernelChoices);
    }
  }
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  draw.width();
  if (draw.yes()) {
    check<float>(draw, DType::kFloat32);
  } else {
    check<double>(draw, DType::kFloat64);
  }
  return 0;
}
