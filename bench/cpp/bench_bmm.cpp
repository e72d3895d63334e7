// Batched products of small matrices, on one thread.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/base/dispatch.h"
#include "core/products/bmm.h"
#include "harness.h"

namespace fastseq::bench {

namespace {

template <class T>
struct Product {
  BmmShape shape;
  std::vector<T> a, b, c;
  MatrixBatch left, right;

  Product(const BmmShape& s, bool transposed)
      : shape(s),
        a(noise<T>(s.batch * s.m * s.k, 1)),
        b(noise<T>(s.batch * s.k * s.n, 2)),
        c(static_cast<std::size_t>(s.batch * s.m * s.n)),
        left{a.data(), s.m * s.k, transposed ? 1 : s.k, transposed ? s.m : 1},
        right{b.data(), s.k * s.n, transposed ? 1 : s.n, transposed ? s.k : 1} {}

  void check() const {
    const double rounding = std::is_same_v<T, double> ? 1e-15 : sizeof(T) == 4 ? 1e-6 : 1e-2;
    const auto at = [](const MatrixBatch& m, std::int64_t i, std::int64_t row, std::int64_t column) {
      const T value = static_cast<const T*>(m.data)[i * m.batch_stride + row * m.row_stride + column * m.column_stride];
      return static_cast<double>(static_cast<Accumulate<T>>(value));
    };
    for (std::int64_t i = 0; i < shape.batch; ++i) {
      for (std::int64_t row = 0; row < shape.m; ++row) {
        for (std::int64_t column = 0; column < shape.n; ++column) {
          double wanted = 0;
          for (std::int64_t q = 0; q < shape.k; ++q) wanted += at(left, i, row, q) * at(right, i, q, column);
          const T found = c[static_cast<std::size_t>((i * shape.m + row) * shape.n + column)];
          const double apart = static_cast<double>(static_cast<Accumulate<T>>(found)) - wanted;
          require(std::abs(apart) <= rounding * static_cast<double>(shape.k), "bmm");
        }
      }
    }
  }
};

void add_product(const BmmShape& s, DType dtype, bool transposed) {
  const std::string name = "bmm/" + std::to_string(s.m) + "x" + std::to_string(s.k) + "x" + std::to_string(s.n) +
                           ", batch " + std::to_string(s.batch) + "/" + name_of(dtype) +
                           (transposed ? ", transposed" : "");
  const auto batch = static_cast<double>(s.batch);
  const Work work{
      .bytes = batch * static_cast<double>((s.m * s.k + s.k * s.n + s.m * s.n)) * static_cast<double>(item_size(dtype)),
      .operations = 2 * batch * static_cast<double>(s.m * s.k * s.n)};
  add(name, work, [s, dtype, transposed]() -> Call {
    return dispatch(dtype, [&]<class T>(Type<T>) -> Call {
      const auto product = std::make_shared<Product<T>>(s, transposed);
      auto call = [product, dtype] {
        bmm(product->shape, dtype, product->left, product->right, product->c.data(), serial_for);
      };
      call();
      product->check();
      return call;
    });
  });
}

void add_all() {
  const auto batch = [](std::int64_t side) { return std::max<std::int64_t>(1, (1 << 16) / (side * side)); };
  for (const std::int64_t side : {2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64}) {
    add_product({batch(side), side, side, side}, DType::kFloat32, false);
  }
  for (const std::int64_t side : {4, 16, 64}) {
    add_product({batch(side), side, side, side}, DType::kFloat32, true);
    add_product({batch(side), side, side, side}, DType::kFloat64, false);
    add_product({batch(side), side, side, side}, DType::kBFloat16, false);
    add_product({batch(side), 1, side, side}, DType::kFloat32, false);
    add_product({batch(side), side, side, 1}, DType::kFloat32, false);
  }
}

}  // namespace

}  // namespace fastseq::bench

int main(int argc, char** argv) { return fastseq::bench::run(fastseq::bench::add_all, argc, argv); }
