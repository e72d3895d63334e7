// Weights of recurrent layers, copied into the order in which products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/recurrence_tiles.h"

namespace fastseq::recurrence {

// For forward, of panel p: packed[((p * inputs + q) * count + j) * L + l] = w[gates[j] * hidden + p * L + l][q], zero
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

// The biases in the order of the cell's sums, added where both belong to one sum: [panel][sum][L].
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

// Columns of a tile of backward's products, in panels: as many as possible, but no more than 4.
constexpr std::int64_t kBlockPanels = 4;

// For backward, of the block of column panels that begins at `first`: rows of w (… * hidden, columns) in the order
// panel, gate, unit (those that exist), each cut to the block's columns, zero in padding.
template <class T>
void pack_rows(const T* w, const int* gates, std::int64_t count, std::int64_t hidden, std::int64_t columns,
               std::int64_t first, T* packed) {
  constexpr std::int64_t kL = kPanel<T>;
  const std::int64_t width = std::min(kBlockPanels, panel_count<T>(columns) - first) * kL;
  const std::int64_t present = std::min(width, columns - first * kL);
  T* to = packed + first * kL * count * hidden;
  for (std::int64_t p = 0; p < panel_count<T>(hidden); ++p) {
    for (std::int64_t j = 0; j < count; ++j) {
      for (std::int64_t l = 0; l < units_in<T>(p, hidden); ++l) {
        const T* row = w + (gates[j] * hidden + p * kL + l) * columns + first * kL;
        std::copy_n(row, present, to);
        std::fill(to + present, to + width, T{});
        to += width;
      }
    }
  }
}

}  // namespace fastseq::recurrence
