// The packer, on one thread: gathering tensors into a flat buffer with a scale and a cast, facts, and the way back.
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/base/dispatch.h"
#include "core/base/pack.h"
#include "harness.h"

namespace fastseq::bench {

namespace {

struct Set {
  std::string name;
  std::vector<std::int64_t> numels;
  std::int64_t alignment;
};

// fp32 tensors and a flat buffer of another dtype.
struct Tensors {
  std::vector<std::vector<float>> values;
  std::vector<const void*> from;
  std::vector<void*> to;
  std::vector<std::int64_t> numels;
  FlatLayout layout;
  std::vector<std::byte> flat;

  Tensors(const Set& set, DType dtype) : numels(set.numels), layout(flat_layout(numels, dtype, set.alignment)) {
    values.reserve(numels.size());
    for (std::size_t i = 0; i < numels.size(); ++i) {
      values.push_back(noise<float>(numels[i], static_cast<std::uint32_t>(i)));
      from.push_back(values[i].data());
      to.push_back(values[i].data());
    }
    flat.resize(static_cast<std::size_t>(layout.numel) * item_size(dtype));
  }
};

template <class T>
double tolerance() {
  return std::is_same_v<T, Float16> ? 0x1p-11 : std::is_same_v<T, BFloat16> ? 0x1p-8 : 0;
}

template <class T>
void check_packed(const Tensors& tensors, double scale, const PackedFacts& facts) {
  const T* flat = reinterpret_cast<const T*>(tensors.flat.data());
  double squares = 0;
  for (std::size_t i = 0; i < tensors.numels.size(); ++i) {
    for (std::int64_t j = 0; j < tensors.numels[i]; ++j) {
      const double wanted = static_cast<float>(scale) * tensors.values[i][static_cast<std::size_t>(j)];
      const auto found = static_cast<double>(static_cast<Accumulate<T>>(flat[tensors.layout.offsets[i] + j]));
      require(std::abs(found - wanted) <= tolerance<T>() * std::abs(wanted) + 1e-7 * (tolerance<T>() > 0), "pack");
      squares += found * found;
    }
  }
  require(facts.finite && std::abs(facts.sum_of_squares - squares) <= 1e-9 * squares, "facts of pack");
}

void add_pack(const Set& set, DType dtype, double scale, double bytes) {
  const std::string name = "pack/" + set.name + "/to " + name_of(dtype) + (scale == 1 ? "" : ", scaled");
  add(name, {.bytes = bytes / 4 * static_cast<double>(4 + item_size(dtype))}, [set, dtype, scale]() -> Call {
    const auto tensors = std::make_shared<Tensors>(set, dtype);
    const auto call = [tensors, dtype, scale] {
      return pack(tensors->from, tensors->numels, DType::kFloat32, tensors->layout, dtype, scale, tensors->flat.data(),
                  serial_for);
    };
    const PackedFacts facts = call();
    dispatch(dtype, [&]<class T>(Type<T>) { check_packed<T>(*tensors, scale, facts); });
    return [call] { benchmark::DoNotOptimize(call()); };
  });
}

void add_facts(const Set& set, double bytes) {
  add("facts/" + set.name, {.bytes = bytes}, [set]() -> Call {
    const auto tensors = std::make_shared<Tensors>(set, DType::kFloat32);
    const auto call = [tensors] { return facts_of(tensors->from, tensors->numels, DType::kFloat32, serial_for); };
    double squares = 0;
    for (const std::vector<float>& values : tensors->values) {
      for (const float x : values) squares += static_cast<double>(x) * x;
    }
    const PackedFacts facts = call();
    require(facts.finite && std::abs(facts.sum_of_squares - squares) <= 1e-9 * squares, "facts");
    return [call] { benchmark::DoNotOptimize(call()); };
  });
}

void add_unpack(const Set& set, double bytes) {
  add("unpack/" + set.name, {.bytes = 2 * bytes}, [set]() -> Call {
    const auto tensors = std::make_shared<Tensors>(set, DType::kFloat32);
    auto* flat = reinterpret_cast<float*>(tensors->flat.data());
    for (std::int64_t i = 0; i < tensors->layout.numel; ++i) flat[i] = static_cast<float>(i % 1000);
    auto call = [tensors] {
      unpack(tensors->flat.data(), tensors->numels, tensors->layout, DType::kFloat32, 0.5, tensors->to, serial_for);
    };
    call();
    for (std::size_t i = 0; i < tensors->numels.size(); ++i) {
      for (std::int64_t j = 0; j < tensors->numels[i]; ++j) {
        const auto wanted = 0.5F * static_cast<float>((tensors->layout.offsets[i] + j) % 1000);
        require(tensors->values[i][static_cast<std::size_t>(j)] == wanted, "unpack");
      }
    }
    return call;
  });
}

void add_all() {
  std::vector<std::int64_t> odd(500);
  std::iota(odd.begin(), odd.end(), 1);
  for (const Set& set : std::vector<Set>{{"2000 tensors of 64", many_small_tensors(), kFlatAlignment},
                                         {"500 odd tensors without gaps", odd, 1},
                                         {"transformer of 50 MB", transformer(4), kFlatAlignment}}) {
    const double bytes = 4.0 * static_cast<double>(std::accumulate(set.numels.begin(), set.numels.end(), 0LL));
    add_pack(set, DType::kFloat32, 1, bytes);
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) add_pack(set, dtype, 0.5, bytes);
    add_facts(set, bytes);
    add_unpack(set, bytes);
  }
}

}  // namespace

}  // namespace fastseq::bench

int main(int argc, char** argv) { return fastseq::bench::run(fastseq::bench::add_all, argc, argv); }
