#include "core/products/bmm_columns.h"

namespace fastseq::products {

template void all_columns(const BmmShape&, const Operand<double>&, const Operand<double>&, std::int64_t, double*,
                          std::int64_t, std::int64_t);

}  // namespace fastseq::products
