// Weights of recurrent layers, packed in the order in which products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/recurrence/tiles.h"

namespace fastseq::recurrence {

// For forward, panel p: packed[((p * inputs + q) * count + j) * L + l] = w[gates[j] * hidden + p * L + l][q], zero
// in padding; w is (… * hidden, inputs). With pairs, q counts pairs of inputs.
template <class T, class O>
void pack_panels(const T* w, const int* gates, std::int64_t count, std::int64_t hidden, std::int64_t inputs,
                 std::int64_t panel, O* packed) {
  constexpr std::int64_t kL = kPanel<T>;
  const std::int64_t operands = operand_count<O>(inputs);
  O* to = packed + panel * operands * count * kL;
  const std::int64_t units = units_in<T>(panel, hidden);
  for (std::int64_t j = 0; j < count; ++j) {
    const T* rows = w + (gates[j] * hidden + panel * kL) * inputs;
    for (std::int64_t q = 0; q < operands; ++q) {
      O* lanes = to + (q * count + j) * kL;
      for (std::int64_t l = 0; l < units; ++l) lanes[l] = operand_at<O>(rows + l * inputs, 1, inputs, q);
      std::fill(lanes + units, lanes + kL, O{});
    }
  }
}

// The biases in the order of the cell's sums, added up if both belong to one sum: [panel][sum][L].
template <class Cell, class T>
void pack_biases(const T* b_ih, const T* b_hh, std::int64_t hidden, std::int64_t panel, T* packed) {
  constexpr std::int64_t kL = kPanel<T>;
  T* to = packed + panel * Cell::kGates * kL;
  std::fill_n(to, Cell::kGates * kL, T{});
  if (b_ih == nullptr) return;
  for (std::int64_t l = 0; l < units_in<T>(panel, hidden); ++l) {
    const std::int64_t unit = panel * kL + l;
    for (int j = 0; j < Cell::kWeightGates; ++j) {
      to[(Cell::kInputFirst + j) * kL + l] += b_ih[Cell::kInputGates[j] * hidden + unit];
      to[(Cell::kHiddenFirst + j) * kL + l] += b_hh[Cell::kHiddenGates[j] * hidden + unit];
    }
  }
}

// The block that column panel p of `panels` belongs to: its first panel and its width. Backward's products take 4
// panels at a time, then 2, then 1.
struct Block {
  std::int64_t first;
  std::int64_t width;
};

constexpr Block block_of(std::int64_t p, std::int64_t panels) {
  const std::int64_t fours = panels / 4 * 4;
  if (p < fours) return {.first = p / 4 * 4, .width = 4};
  const std::int64_t twos = (panels - fours) / 2 * 2;
  return p < fours + twos ? Block{.first = fours, .width = 2} : Block{.first = fours + twos, .width = 1};
}

// For backward, column panel p: rows of w (… * hidden, columns) in the order panel, gate, unit (without padding), cut
// to the panel's columns, zero in padding; the panels of a block are interleaved row by row. With pairs, two units'
// rows are one.
template <class T, class O>
void pack_rows(const T* w, const int* gates, std::int64_t count, std::int64_t hidden, std::int64_t columns,
               std::int64_t p, O* packed) {
  constexpr std::int64_t kL = kPanel<T>;
  const Block block = block_of(p, panel_count<T>(columns));
  const std::int64_t present = units_in<T>(p, columns);
  O* to = packed + (block.first * count * operand_count<O>(hidden) + (p - block.first)) * kL;
  for (std::int64_t of = 0; of < panel_count<T>(hidden); ++of) {
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t units = units_in<T>(of, hidden);
      const T* rows = w + (gates[j] * hidden + of * kL) * columns + p * kL;
      for (std::int64_t l = 0; l < operand_count<O>(units); ++l) {
        for (std::int64_t c = 0; c < present; ++c) to[c] = operand_at<O>(rows + c, columns, units, l);
        std::fill(to + present, to + kL, O{});
        to += block.width * kL;
      }
    }
  }
}

}  // namespace fastseq::recurrence
