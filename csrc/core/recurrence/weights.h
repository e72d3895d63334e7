// Weights of recurrent layers, packed in the order in which products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/recurrence/tiles.h"

namespace fastseq::recurrence {

// For forward, panel p: packed[((p * inputs + q) * count + j) * L + l] = w[gates[j] * hidden + p * L + l][q], zero
// in padding; w is (… * hidden, inputs).
template <class T>
void pack_panels(const T* w, const int* gates, std::int64_t count, std::int64_t hidden, std::int64_t inputs,
                 std::int64_t panel, T* packed) {
  constexpr std::int64_t kL = kPanel<T>;
  T* to = packed + panel * inputs * count * kL;
  const std::int64_t units = units_in<T>(panel, hidden);
  for (std::int64_t j = 0; j < count; ++j) {
    const T* rows = w + (gates[j] * hidden + panel * kL) * inputs;
    for (std::int64_t q = 0; q < inputs; ++q) {
      T* lanes = to + (q * count + j) * kL;
      for (std::int64_t l = 0; l < units; ++l) lanes[l] = rows[l * inputs + q];
      std::fill(lanes + units, lanes + kL, T{});
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
// to the panel's columns, zero in padding; the panels of a block are interleaved row by row.
template <class T>
void pack_rows(const T* w, const int* gates, std::int64_t count, std::int64_t hidden, std::int64_t columns,
               std::int64_t p, T* packed) {
  constexpr std::int64_t kL = kPanel<T>;
  const Block block = block_of(p, panel_count<T>(columns));
  const std::int64_t present = units_in<T>(p, columns);
  T* to = packed + (block.first * count * hidden + (p - block.first)) * kL;
  for (std::int64_t of = 0; of < panel_count<T>(hidden); ++of) {
    for (std::int64_t j = 0; j < count; ++j) {
      for (std::int64_t l = 0; l < units_in<T>(of, hidden); ++l) {
        const T* row = w + (gates[j] * hidden + of * kL + l) * columns + p * kL;
        std::copy_n(row, present, to);
        std::fill(to + present, to + kL, T{});
        to += block.width * kL;
      }
    }
  }
}

}  // namespace fastseq::recurrence
