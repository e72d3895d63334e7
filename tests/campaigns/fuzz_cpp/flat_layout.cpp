// Layouts of any lengths and alignments, against arithmetic that cannot overflow.
#include "core/base/flat_layout.h"

#include "fuzz.h"

namespace fastseq {

namespace {

__extension__ using Wide = __int128;

struct Expected {
  bool valid = true;
  std::vector<std::int64_t> offsets;
  Wide numel = 0;
};

Expected expected(const std::vector<std::int64_t>& numels, DType dtype, std::int64_t alignment) {
  const Wide item = static_cast<Wide>(item_size(dtype));
  Expected found;
  if (alignment != 1 && (alignment < item || alignment % item != 0)) found.valid = false;
  const Wide unit = alignment == 1 || !found.valid ? 1 : alignment / item;
  for (const std::int64_t numel : numels) {
    if (numel < 0) found.valid = false;
    if (!found.valid) break;
    found.offsets.push_back(static_cast<std::int64_t>(found.numel));
    found.numel = (found.numel + numel + unit - 1) / unit * unit;
    if (found.numel * item > std::numeric_limits<std::int64_t>::max()) found.valid = false;
  }
  return found;
}

void check_gaps(const std::vector<std::int64_t>& numels, const FlatLayout& layout, DType dtype) {
  const std::size_t item = item_size(dtype);
  std::vector<std::uint8_t> flat(static_cast<std::size_t>(layout.numel) * item, 7);
  zero_gaps(numels, layout, dtype, flat.data());
  std::size_t place = 0;
  for (std::size_t i = 0; i < numels.size(); ++i) {
    for (; place < static_cast<std::size_t>(layout.offsets[i]) * item; ++place) fuzz::demand(flat[place] == 0, "gaps");
    const std::size_t end = place + static_cast<std::size_t>(numels[i]) * item;
    for (; place < end; ++place) fuzz::demand(flat[place] == 7, "tensors stay");
  }
  for (; place < flat.size(); ++place) fuzz::demand(flat[place] == 0, "the last gap");
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  const DType dtype = draw.of(fuzz::kDTypes);
  const std::int64_t alignment = draw.any();
  std::vector<std::int64_t> numels(static_cast<std::size_t>(draw.between(0, 6)));
  for (std::int64_t& numel : numels) numel = draw.any();
  const Expected wanted = expected(numels, dtype, alignment);
  FlatLayout layout;
  if (fuzz::refuses([&] { layout = flat_layout(numels, dtype, alignment); })) {
    // A buffer that nearly fills the address space may be refused, too.
    const bool close = wanted.numel + 2 * static_cast<Wide>(alignment) > (Wide{1} << 60) / 8;
    fuzz::demand(!wanted.valid || close, "a layout that fits is not refused");
    return 0;
  }
  fuzz::demand(wanted.valid, "what does not fit is refused");
  fuzz::demand(layout.offsets == wanted.offsets && layout.numel == wanted.numel, "offsets");
  if (layout.numel <= 4096) check_gaps(numels, layout, dtype);
  return 0;
}
