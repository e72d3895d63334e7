// Tensors of any lengths packed into a flat buffer and back, with every scale and type, against plain loops.
#include "core/base/pack.h"

#include "core/base/dispatch.h"
#include "fuzz.h"

namespace fastseq {

namespace {

template <class T>
T some_value(fuzz::Noise& noise, bool special) {
  static constexpr std::array<double, 11> kSpecial = {0.0,    -0.0,  1.0,  65504.0,  65520.0, 3.5e38,
                                                      -1e300, 1e-40, 6e-8, INFINITY, NAN};
  const bool chosen = special && noise.below(4) == 0;
  const double value = chosen ? kSpecial[static_cast<std::size_t>(noise.below(kSpecial.size()))] : 8 * noise.number();
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return T(static_cast<float>(value));
  }
}

template <class From, class To>
To scaled(From value, double scale) {
  if constexpr (std::is_same_v<From, To>) {
    if (scale == 1.0) return value;
  }
  if constexpr (std::is_same_v<From, double> && std::is_same_v<To, double>) {
    return value * scale;
  } else {
    return To(static_cast<float>(value) * static_cast<float>(scale));
  }
}

template <class T>
struct Tensors {
  std::vector<std::vector<T>> memory;
  std::vector<const void*> pointers;
  std::vector<void*> writable;

  explicit Tensors(const std::vector<std::int64_t>& numels) {
    for (const std::int64_t numel : numels) {
      memory.emplace_back(static_cast<std::size_t>(numel), T(7.0F));
      pointers.push_back(memory.back().data());
      writable.push_back(memory.back().data());
    }
  }
};

template <class T>
void check_facts(const PackedFacts& facts, const std::vector<std::vector<T>>& values) {
  bool finite = true;
  double squares = 0;
  for (const auto& each : values) {
    for (const T value : each) {
      finite = finite && std::isfinite(fuzz::to_double(value));
      squares += fuzz::to_double(value) * fuzz::to_double(value);
    }
  }
  fuzz::demand(facts.finite == finite, "finite");
  const double error = std::abs(facts.sum_of_squares - squares);
  fuzz::demand(!std::isfinite(squares) || error <= 1e-12 * squares, "the sum of squares");
}

template <class From, class To>
void check(fuzz::Draw& draw, DType from_dtype, DType to_dtype) {
  std::vector<std::int64_t> numels(static_cast<std::size_t>(draw.between(0, 5)));
  for (std::int64_t& numel : numels) numel = draw.between(0, draw.between(0, 30) == 0 ? 5000 : 40);
  const std::int64_t alignment = draw.of(std::array<std::int64_t, 4>{1, 8, 64, 128});
  const double scale = draw.of(std::array{1.0, 0.0, -0.5, 1.0 / 3, 1e30, 1e-30});
  const ParallelFor parallel_for = draw.of(fuzz::kParallelFors);
  const bool special = draw.yes();
  fuzz::Noise noise(draw.seed());
  Tensors<From> tensors(numels);
  Tensors<To> wanted(numels);
  for (std::size_t i = 0; i < numels.size(); ++i) {
    for (std::size_t j = 0; j < tensors.memory[i].size(); ++j) {
      tensors.memory[i][j] = some_value<From>(noise, special);
      wanted.memory[i][j] = scaled<From, To>(tensors.memory[i][j], scale);
    }
  }
  const FlatLayout layout = flat_layout(numels, to_dtype, alignment);
  std::vector<To> flat(static_cast<std::size_t>(layout.numel), To(7.0F));
  check_facts(pack(tensors.pointers, numels, from_dtype, layout, to_dtype, scale, flat.data(), parallel_for),
              wanted.memory);
  Tensors<To> back(numels);
  unpack(flat.data(), numels, layout, to_dtype, scale, back.writable, parallel_for);
  double sum = 0;  // of all that is in the buffer, as gaps hold zeros
  double known = 0;
  for (std::size_t i = 0; i < numels.size(); ++i) {
    for (std::size_t j = 0; j < wanted.memory[i].size(); ++j) {
      const To value = wanted.memory[i][j];
      const To packed = flat[static_cast<std::size_t>(layout.offsets[i]) + j];
      fuzz::demand(fuzz::same(fuzz::to_double(packed), fuzz::to_double(value)), "packed");
      fuzz::demand(fuzz::same(fuzz::to_double(back.memory[i][j]), fuzz::to_double(scaled<To, To>(value, scale))),
                   "unpacked");
      known += fuzz::to_double(packed) == 0 ? 0 : 1;
    }
  }
  for (const To value : flat) sum += fuzz::to_double(value) == 0 ? 0 : 1;
  fuzz::demand(sum == known, "gaps hold zeros");
  check_facts(facts_of(tensors.pointers, numels, from_dtype, parallel_for), tensors.memory);
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  const DType from = draw.of(fuzz::kDTypes);
  const DType to = draw.of(fuzz::kDTypes);
  dispatch(from,
           [&]<class From>(Type<From>) { dispatch(to, [&]<class To>(Type<To>) { check<From, To>(draw, from, to); }); });
  return 0;
}
