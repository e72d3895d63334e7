// Batched products of any shapes and strides, against plain loops over small whole numbers, which are exact.
#include "core/products/bmm.h"

#include "core/base/dispatch.h"
#include "fuzz.h"

namespace fastseq {

namespace {

std::int64_t draw_size(fuzz::Draw& draw) { return draw.yes() ? draw.between(0, 9) : draw.between(0, 70); }

// Matrices in the least memory that their strides need.
template <class T>
struct Operand {
  MatrixBatch view{};
  std::vector<T> memory;

  Operand(fuzz::Draw& draw, std::int64_t batch, std::int64_t rows, std::int64_t columns) {
    std::array<std::int64_t, 3> strides{rows * columns, columns, 1};
    if (draw.yes()) strides = {rows * columns, 1, rows};
    for (std::int64_t& stride : strides) {
      const std::int64_t change = draw.between(0, 5);
      if (change == 1) stride = 0;
      if (change == 2) stride *= 2;
      if (change == 3) stride += draw.between(0, 4);
    }
    view = {nullptr, strides[0], strides[1], strides[2]};
    const bool empty = batch == 0 || rows == 0 || columns == 0;
    const std::int64_t last = (batch - 1) * strides[0] + (rows - 1) * strides[1] + (columns - 1) * strides[2];
    memory.resize(static_cast<std::size_t>(empty ? 0 : last + 1));
    fuzz::Noise noise(draw.seed());
    for (T& value : memory) value = T(static_cast<float>(noise.below(9) - 4));
    view.data = memory.data();
  }

  double at(std::int64_t i, std::int64_t r, std::int64_t q) const {
    const std::int64_t place = i * view.batch_stride + r * view.row_stride + q * view.column_stride;
    return fuzz::to_double(memory[static_cast<std::size_t>(place)]);
  }
};

template <class T>
void check(fuzz::Draw& draw, DType dtype) {
  BmmShape s{.batch = draw.between(0, 4), .m = draw_size(draw), .k = draw_size(draw), .n = draw_size(draw)};
  if (s.m * s.k * s.n > 4096) s.k = draw.between(0, 4);  // large ones would be slow
  if (s.m * s.k * s.n > 4096) s.m = draw.between(0, 4);
  const Operand<T> a(draw, s.batch, s.m, s.k);
  const Operand<T> b(draw, s.batch, s.k, s.n);
  std::vector<T> c(static_cast<std::size_t>(s.batch * s.m * s.n), T(99.0F));
  bmm(s, dtype, a.view, b.view, c.data(), draw.of(fuzz::kParallelFors));
  std::size_t place = 0;
  for (std::int64_t i = 0; i < s.batch; ++i) {
    for (std::int64_t r = 0; r < s.m; ++r) {
      for (std::int64_t q = 0; q < s.n; ++q) {
        double sum = 0;
        for (std::int64_t z = 0; z < s.k; ++z) sum += a.at(i, r, z) * b.at(i, z, q);
        fuzz::demand(fuzz::to_double(c[place++]) == fuzz::to_double(T(static_cast<float>(sum))), "a product");
      }
    }
  }
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  draw.width();
  const DType dtype = draw.of(fuzz::kDTypes);
  dispatch(dtype, [&]<class T>(Type<T>) { check<T>(draw, dtype); });
  return 0;
}
