// Vectors by the compiler's vector extension (GCC and Clang), so that one source serves every instruction set.
// Functions on them are inlined into a function compiled for an instruction set: see run_best in isa.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fastseq::simd {

template <class T, int kBytes>
struct VectorOf {
  T lanes __attribute__((vector_size(kBytes)));
};

template <class T, int kBytes>
using Vector = decltype(VectorOf<T, kBytes>::lanes);

template <class V>
using Lane = std::remove_cvref_t<decltype(V{}[0])>;

template <class V>
inline constexpr std::int64_t kLanes = sizeof(V) / sizeof(Lane<V>);

template <class V>
inline void load(V& v, const Lane<V>* from) {
  std::memcpy(&v, from, sizeof(V));
}

template <class V>
inline void store(Lane<V>* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

// Copies `count` < kLanes<V> lanes, in pieces of sizes known to the compiler.
template <class V>
inline void copy_lanes(Lane<V>* to, const Lane<V>* from, std::int64_t count) {
  std::int64_t done = 0;
#pragma GCC unroll 4
  for (std::int64_t width = kLanes<V> / 2; width > 0; width /= 2) {
    if ((count & width) != 0) {
      std::memcpy(to + done, from + done, static_cast<std::size_t>(width) * sizeof(Lane<V>));
      done += width;
    }
  }
}

// Ones, then zeros: kLanes<V> of each.
template <class V>
inline constexpr auto kOnesZeros = [] {
  std::array<Lane<V>, 2 * kLanes<V>> lanes{};
  std::fill_n(lanes.begin(), kLanes<V>, Lane<V>{1});
  return lanes;
}();

// Loads the first `count` lanes; the others are zero. `end` is the end of the array that `from` points into.
template <class V>
inline void load_first(V& v, const Lane<V>* from, std::int64_t count, const Lane<V>* end) {
  if (count >= kLanes<V>) {
    load(v, from);
  } else if (end - from >= kLanes<V>) {  // reading more and dropping it is faster than copying lanes
    V keep;
    load(keep, kOnesZeros<V>.data() + kLanes<V> - count);
    load(v, from);
    v = keep != V{} ? v : V{};
  } else {
    alignas(sizeof(V)) Lane<V> lanes[kLanes<V>] = {};
    copy_lanes<V>(lanes, from, count);
    load(v, lanes);
  }
}

// Stores the first `count` lanes. Memory up to `free_until` may be overwritten, because it is written later.
template <class V>
inline void store_first(Lane<V>* to, const V& v, std::int64_t count, const Lane<V>* free_until = nullptr) {
  if (count >= kLanes<V> || (free_until != nullptr && free_until - to >= kLanes<V>)) {
    store(to, v);
    return;
  }
  alignas(sizeof(V)) Lane<V> lanes[kLanes<V>];
  store(lanes, v);
  copy_lanes<V>(to, lanes, count);
}

}  // namespace fastseq::simd
