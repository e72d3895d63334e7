// Reading pieces of a file, which the page cache holds, and of memory; with and without conversion.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/reader/slab_reader.h"
#include "harness.h"

namespace fastseq::bench {

namespace {

constexpr std::int64_t kRow = 256;  // numbers of a time step
constexpr std::int64_t kSteps = 8192;

// A file that is removed at the end.
class File {
 public:
  explicit File(const std::vector<char>& bytes) {
    std::string path = (std::filesystem::temp_directory_path() / "fastseq-bench-XXXXXX").string();
    const int descriptor = ::mkstemp(path.data());
    if (descriptor < 0) throw std::runtime_error("cannot make a temporary file " + path);
    ::close(descriptor);
    path_ = path;
    std::ofstream stream(path_, std::ios::binary);
    if (!stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush()) {
      throw std::runtime_error("cannot write " + path_);
    }
  }
  ~File() { (void)::unlink(path_.c_str()); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What is read: `numel` numbers of each of `steps` rows.
struct Chunk {
  std::string name;
  std::int64_t steps;
  std::int64_t numel;
};

// A source of numbers of type From, and the chunk that a reader brings from it.
template <class From>
struct Reading {
  Chunk chunk;
  std::vector<char> bytes;
  std::unique_ptr<File> file;
  SlabReader reader;
  std::int64_t source;
  std::vector<float> slab;
  SlabRead request;

  Reading(const Chunk& wanted, const Conversion& conversion, bool in_memory)
      : chunk(wanted),
        bytes(kSteps * kRow * sizeof(From)),
        slab(static_cast<std::size_t>(wanted.steps * wanted.numel)),
        request{.convert = ElementConverter(conversion), .pieces = {}, .to = nullptr, .numel = 0} {
    for (std::int64_t i = 0; i < kSteps * kRow; ++i) {
      const From value = number(i);
      char* at = bytes.data() + static_cast<std::size_t>(i) * sizeof(From);
      std::copy_n(reinterpret_cast<const char*>(&value), sizeof(From), at);
      if (conversion.swapped) std::reverse(at, at + sizeof(From));
    }
    if (!in_memory) file = std::make_unique<File>(bytes);
    source = in_memory ? reader.add_memory(reinterpret_cast<std::uintptr_t>(bytes.data()))
                       : reader.add_file(file->path(), true);
    request.pieces = {{.source = source,
                       .offset = 0,
                       .steps = chunk.steps,
                       .step_bytes = kRow * static_cast<std::int64_t>(sizeof(From)),
                       .numel = chunk.numel,
                       .to = 0,
                       .to_step = chunk.numel}};
    request.to = reinterpret_cast<std::byte*>(slab.data());
    request.numel = chunk.steps * chunk.numel;
  }

  static From number(std::int64_t i) { return static_cast<From>(i * 31 % 30011); }

  void read() {
    reader.submit({request});
    while (!reader.wait(std::chrono::milliseconds(1000))) {
    }
  }

  void check(double center, double inverse) const {
    for (std::int64_t step = 0; step < chunk.steps; ++step) {
      for (std::int64_t i = 0; i < chunk.numel; ++i) {
        const double wanted = (static_cast<double>(number(step * kRow + i)) - center) * inverse;
        require(slab[static_cast<std::size_t>(step * chunk.numel + i)] == static_cast<float>(wanted), "reader");
      }
    }
  }
};

struct Kind {
  std::string name;
  ElementType from;
  bool swapped;
  bool in_memory;
  bool scaled;
};

template <class From>
void add_reading(const Chunk& chunk, const Kind& kind) {
  const auto numel = static_cast<double>(chunk.steps * chunk.numel);
  add("reader/" + kind.name + "/" + chunk.name, {.bytes = numel * (sizeof(From) + sizeof(float))},
      [chunk, kind]() -> Call {
        const std::vector<double> center(static_cast<std::size_t>(chunk.numel), kind.scaled ? 15000.0 : 0.0);
        const std::vector<double> inverse(center.size(), kind.scaled ? 0.25 : 1.0);
        const auto reading =
            std::make_shared<Reading<From>>(chunk,
                                            Conversion{.from = kind.from,
                                                       .swapped = kind.swapped,
                                                       .to = ElementType::kFloat32,
                                                       .features = chunk.numel,
                                                       .center = kind.scaled ? center.data() : nullptr,
                                                       .inverse = kind.scaled ? inverse.data() : nullptr},
                                            kind.in_memory);
        reading->read();
        reading->check(center[0], inverse[0]);
        return [reading] { reading->read(); };
      })
      ->UseRealTime();  // its threads work too
}

void add_all() {
  for (const Chunk& chunk : std::vector<Chunk>{
           {"1000 whole rows", 1000, kRow}, {"8192 whole rows", kSteps, kRow}, {"1000 rows, a quarter", 1000, 64}}) {
    add_reading<float>(chunk, {"fp32 file", ElementType::kFloat32, false, false, false});
    add_reading<float>(chunk, {"fp32 file, scaled", ElementType::kFloat32, false, false, true});
    add_reading<float>(chunk, {"fp32 file, swapped", ElementType::kFloat32, true, false, false});
    add_reading<double>(chunk, {"fp64 file", ElementType::kFloat64, false, false, false});
    add_reading<std::int16_t>(chunk, {"int16 file", ElementType::kInt16, false, false, false});
    add_reading<float>(chunk, {"fp32 memory", ElementType::kFloat32, false, true, false});
  }
}

}  // namespace

}  // namespace fastseq::bench

int main(int argc, char** argv) { return fastseq::bench::run(fastseq::bench::add_all, argc, argv); }
