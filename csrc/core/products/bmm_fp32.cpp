#include "core/products/bmm_columns.h"

namespace fastseq::products {

template void all_columns(const BmmShape&, const Operand<float>&, const Operand<float>&, std::int64_t, float*,
                          std::int64_t, std::int64_t);

}  // namespace fastseq::products
