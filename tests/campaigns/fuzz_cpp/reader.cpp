// Pieces of memory and of a file, with any numbers, against one element after another.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "core/reader/read_parts.h"
#include "core/reader/slab_reader.h"
#include "fuzz.h"

namespace fastseq {

namespace {

__extension__ using Wide = __int128;

constexpr std::int64_t kBytes = 5000;    // of each source
constexpr std::int64_t kFew = 4096;      // elements that are read to compare them
constexpr Wide kExtent = Wide{1} << 58;  // of reads that must be possible

// The same bytes in memory and in a file.
struct Sources {
  std::vector<std::byte> bytes = std::vector<std::byte>(kBytes);
  SlabReader reader;

  Sources() {
    fuzz::Noise noise(1);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(noise.bits() & 0xffU);
    const int file = memfd_create("bytes", 0);
    fuzz::demand(write(file, bytes.data(), kBytes) == kBytes, "a file can be made");
    reader.add_memory(reinterpret_cast<std::uintptr_t>(bytes.data()));
    reader.add_file("/proc/self/fd/" + std::to_string(file), false);
  }
};

Sources& sources() {
  static Sources all;
  return all;
}

struct Read {
  SlabRead read;
  std::vector<std::byte> buffer;
};

// The first and the last of `steps` places.
struct Reach {
  Wide first, last;
  Reach(std::int64_t start, std::int64_t steps, std::int64_t step) : first(start), last(start) {
    const Wide end = start + (steps - 1) * static_cast<Wide>(step);
    first = std::min(first, end);
    last = std::max(last, end);
  }
};

bool empty(const Piece& piece) { return piece.steps == 0 || piece.numel == 0; }

// What is wrong with a piece; `far`: only that its numbers are very large.
struct Verdict {
  bool fits = true;
  bool far = false;
};

Verdict judge(const Piece& piece, const SlabRead& read) {
  if (piece.steps < 0 || piece.numel < 0) return {.fits = false};
  if (empty(piece)) return {};
  const Wide row = std::min(piece.numel * static_cast<Wide>(read.convert.from_size()), kExtent);
  const bool one = piece.steps == 1;
  const Reach from(piece.offset, piece.steps, one ? 0 : piece.step_bytes);
  const Reach to(piece.to, piece.steps, one ? 0 : piece.to_step);
  const bool inside = to.first >= 0 && to.last + piece.numel <= read.numel;
  return {.fits = inside && (piece.source == 0 || from.first >= 0),
          .far = piece.steps * row >= kExtent || from.last + row >= kExtent || from.first <= -kExtent};
}

// Whether memory holds all that is read there; a file may end early.
bool in_memory(const Piece& piece, std::int64_t size) {
  const Reach from(piece.offset, piece.steps, piece.step_bytes);
  return empty(piece) || (from.first >= 0 && from.last + piece.numel * static_cast<Wide>(size) <= kBytes);
}

// Checks all pieces of a read as documented; returns whether they are accepted.
bool accepted(SlabRead& read) {
  const bool too_many = read.numel < 0 || read.numel * static_cast<Wide>(read.convert.to_size()) >= Wide{1} << 60;
  if (fuzz::refuses([&] { check_size(read); })) {
    fuzz::demand(too_many, "a buffer that may exist is not refused");
    return false;
  }
  fuzz::demand(!too_many, "a buffer that cannot exist is refused");
  for (Piece& piece : read.pieces) {
    const Verdict verdict = judge(piece, read);
    const bool refused = fuzz::refuses([&] { check_piece(piece, read, piece.source == 1); });
    fuzz::demand(!refused || !verdict.fits || verdict.far, "a piece that fits is not refused");
    fuzz::demand(refused || verdict.fits, "a piece that does not fit is refused");
    if (refused) return false;
  }
  return true;
}

// The parts cover all pieces, which remain what they were in all.
void check_parts(SlabRead read, bool in_files) {
  Wide elements = 0;
  for (const Piece& piece : read.pieces) elements += piece.steps * static_cast<Wide>(piece.numel);
  std::vector<Part> parts;
  const std::int64_t cost = add_parts(parts, 3, read, in_files);
  fuzz::demand(cost >= 0 && cost <= kMostCost, "a cost");
  std::size_t next = 0;
  for (const Part& part : parts) {
    fuzz::demand(part.job == 3 && part.first == next && part.last >= next, "parts in order");
    next = part.last;
  }
  fuzz::demand(next == read.pieces.size() && parts.size() <= 16 * 6, "parts cover the pieces");
  for (const Piece& piece : read.pieces) elements -= piece.steps * static_cast<Wide>(piece.numel);
  fuzz::demand(elements == 0, "as many elements as before");
}

struct Expected {
  std::vector<std::byte> buffer;
  std::int64_t count = 0;
  bool overlaps = false;
  bool beyond = false;  // the file's end
};

Expected expected(const SlabRead& read) {
  const ElementConverter& convert = read.convert;
  Expected found{.buffer = std::vector<std::byte>(static_cast<std::size_t>(read.numel * convert.to_size()))};
  std::vector<bool> written(static_cast<std::size_t>(read.numel));
  std::array<double, 2> element{};
  for (const Piece& piece : read.pieces) {
    for (std::int64_t i = 0; i < piece.steps; ++i) {
      for (std::int64_t j = 0; j < piece.numel; ++j) {
        const std::int64_t from = piece.offset + i * piece.step_bytes + j * convert.from_size();
        const std::int64_t to = piece.to + i * piece.to_step + j;
        found.overlaps = found.overlaps || written[static_cast<std::size_t>(to)];
        written[static_cast<std::size_t>(to)] = true;
        found.beyond = found.beyond || from + convert.from_size() > kBytes;
        if (found.beyond) continue;
        found.count += convert(sources().bytes.data() + from, 1, element.data(), j);
        std::memcpy(found.buffer.data() + to * convert.to_size(), element.data(),
                    static_cast<std::size_t>(convert.to_size()));
      }
    }
  }
  return found;
}

SlabRead draw_read(fuzz::Draw& draw, const std::array<double, 3>& center) {
  constexpr std::array kTo = {ElementType::kFloat16, ElementType::kBFloat16, ElementType::kFloat32,
                              ElementType::kFloat64, ElementType::kBool};
  Conversion conversion{
      .from = static_cast<ElementType>(draw.between(0, 12)), .swapped = draw.yes(), .to = draw.of(kTo)};
  if (conversion.to != ElementType::kBool && draw.yes()) {
    conversion.features = draw.between(1, 3);
    conversion.center = center.data();
  }
  SlabRead read{.convert = ElementConverter(conversion), .pieces = {}, .to = nullptr, .numel = draw.any()};
  for (std::int64_t left = draw.between(0, 4); left > 0; --left) {
    read.pieces.push_back({.source = draw.between(0, 1),
                           .offset = draw.any(),
                           .steps = draw.any(),
                           .step_bytes = draw.any(),
                           .numel = draw.any(),
                           .to = draw.any(),
                           .to_step = draw.any()});
  }
  return read;
}

// Whether a read can be carried out here, quickly.
bool is_small(const SlabRead& read) {
  Wide elements = 0;
  bool inside = true;
  for (const Piece& piece : read.pieces) {
    elements += piece.steps * static_cast<Wide>(piece.numel);
    inside = inside && (piece.source == 1 || in_memory(piece, read.convert.from_size()));
  }
  return inside && elements <= kFew && read.numel <= kFew;
}

void check_request(const std::vector<SlabRead>& reads) {
  std::vector<SlabRead> request = reads;
  std::vector<Expected> wanted;
  std::vector<std::vector<std::byte>> buffers;
  bool beyond = false;
  for (SlabRead& read : request) {
    wanted.push_back(expected(read));
    beyond = beyond || wanted.back().beyond;
    buffers.emplace_back(wanted.back().buffer.size(), std::byte{0x5a});
    read.to = buffers.back().data();
  }
  sources().reader.submit(std::move(request));
  std::vector<std::int64_t> counts;
  try {
    counts = sources().reader.wait(std::chrono::seconds(10)).value();
  } catch (const ReadError&) {
    fuzz::demand(beyond, "what the file holds is read");
    return;
  }
  fuzz::demand(!beyond, "a file that ends early is an error");
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i].overlaps) continue;
    fuzz::demand(buffers[i] == wanted[i].buffer, "the elements");
    fuzz::demand(counts.at(i) == wanted[i].count, "how many are not finite");
  }
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  static constexpr std::array<double, 3> kCenter = {1, -2, 0.5};
  fuzz::Draw draw(data, size);
  std::vector<SlabRead> reads;
  bool small = true;
  for (std::int64_t left = draw.between(1, 2); left > 0; --left) {
    SlabRead read = draw_read(draw, kCenter);
    SlabRead checked = read;
    if (!accepted(checked)) return 0;
    check_parts(checked, draw.yes());
    small = small && is_small(checked);
    reads.push_back(std::move(checked));
  }
  if (small) check_request(reads);
  return 0;
}
