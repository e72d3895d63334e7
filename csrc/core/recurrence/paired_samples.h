// What the products of weight gradients take in bf16: samples of two sequences at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/bf16_pair.h"
#include "core/recurrence/recurrence.h"
#include "core/recurrence/tiles.h"

namespace fastseq::recurrence {

// Samples of pairs of sequences; those that do not count are zero.
struct PairedSamples {
  PairedSamples(const RecurrenceShape& s, const Activity& activity, std::int64_t gates)
      : pairs((s.sequences + 1) / 2),
        d(s.steps * panel_count<float>(s.hidden) * pairs * gates * kPanel<float>),
        x(s.steps * pairs * s.inputs),
        h(s.steps * pairs * s.hidden) {
    lengths.reserve(static_cast<std::size_t>(pairs));
    for (std::int64_t n = 0; n < s.sequences; n += 2) {
      lengths.push_back(std::max(activity.length(n), n + 1 < s.sequences ? activity.length(n + 1) : 0));
    }
  }

  std::int64_t pairs;
  std::vector<std::int64_t> lengths;
  Scratch<Bf16Pair> d;
  Scratch<Bf16Pair> x;
  Scratch<Bf16Pair> h;  // before each step
};

// Room for them, if operands are pairs.
template <class O>
std::optional<PairedSamples> paired_samples(const RecurrenceShape& s, const Activity& activity, std::int64_t gates) {
  if constexpr (kNumbers<O> == 1) return std::nullopt;
  return std::optional<PairedSamples>(std::in_place, s, activity, gates);
}

// Fills in steps [begin, end) of samples.
struct Rounding {
  RecurrenceShape shape;
  RecurrenceInputs in;
  Activity activity;
  std::int64_t gates;
  const float* d;
  const float* y;
  const float* zeros;  // as many as the longest row has numbers
  const PairedSamples& to;
};

inline void round_samples(const Rounding& r, std::int64_t begin, std::int64_t end) {
  const auto& s = r.shape;
  const std::int64_t panels = panel_count<float>(s.hidden);
  const std::int64_t row = r.gates * kPanel<float>;
  const auto* x = static_cast<const float*>(r.in.x);
  const auto* h0 = static_cast<const float*>(r.in.h0);
  for (std::int64_t t = begin; t < end; ++t) {
    // The row of sequence n that `at` returns, if it counts.
    const auto counted = [&](std::int64_t n, const auto& at) {
      return n < s.sequences && t < r.activity.length(n) ? at(n) : r.zeros;
    };
    const auto pair = [&](std::int64_t i, std::int64_t count, Bf16Pair* to, const auto& at) {
      to_pairs(counted(2 * i, at), counted(2 * i + 1, at), count, to);
    };
    for (std::int64_t i = 0; i < r.to.pairs; ++i) {
      pair(i, s.inputs, r.to.x.data() + (t * r.to.pairs + i) * s.inputs,
           [&](std::int64_t n) { return x + t * r.in.x_step + n * r.in.x_sequence; });
      pair(i, s.hidden, r.to.h.data() + (t * r.to.pairs + i) * s.hidden, [&](std::int64_t n) {
        if (r.activity.starts(t, n)) return h0 + n * s.hidden;
        return r.y + (r.activity.before(t) * s.sequences + n) * s.hidden;
      });
    }
    for (std::int64_t p = t * panels; p < (t + 1) * panels; ++p) {
      for (std::int64_t i = 0; i < r.to.pairs; ++i) {
        pair(i, row, r.to.d.data() + (p * r.to.pairs + i) * row,
             [&](std::int64_t n) { return r.d + (p * s.sequences + n) * row; });
      }
    }
  }
}

}  // namespace fastseq::recurrence
