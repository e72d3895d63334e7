#include "harness.h"

#include <algorithm>
#include <exception>
#include <fstream>
#include <iostream>
#include <utility>

#include "core/base/isa.h"

namespace fastseq::bench {

namespace {

// The case that is measured.
struct Prepared {
  std::string name;
  Call call;
};

Prepared& prepared() {
  static Prepared now;
  return now;
}

// Other ranks' times are not shown.
class Silent final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& /*context*/) override { return true; }
  void ReportRuns(const std::vector<Run>& /*report*/) override {}
};

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

}  // namespace

void time_calls(benchmark::State& state, const Call& call) {
  for ([[maybe_unused]] const auto _ : state) call();
}

benchmark::internal::Benchmark* add(const std::string& name, Work work, std::function<Call()> make, Timer timer) {
  const auto measure = [name, work, make = std::move(make), timer = std::move(timer)](benchmark::State& state) {
    Prepared& now = prepared();
    if (now.name != name) {
      now = {name, nullptr};  // frees the memory of the last case
      now.call = make();
    }
    timer(state, now.call);
    using benchmark::Counter;
    const auto rate = [](double each) { return Counter(each, Counter::kIsIterationInvariantRate); };
    if (work.bytes != 0) state.counters["bytes_per_second"] = rate(work.bytes);
    if (work.operations != 0) state.counters["operations_per_second"] = rate(work.operations);
  };
  return benchmark::RegisterBenchmark(name.c_str(), measure)->Unit(benchmark::kMicrosecond);
}

int run(const std::function<void()>& add_cases, int argc, char** argv, bool reports) {
  std::vector<char*> arguments(argv, argv + argc);
  if (!reports) {
    std::erase_if(arguments, [](const char* text) { return std::string_view(text).starts_with("--benchmark_out"); });
  }
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;
  benchmark::AddCustomContext("cpu", processor());
  benchmark::AddCustomContext("isa", active_isa());
  benchmark::AddCustomContext("compiler", FASTSEQ_COMPILER);
  benchmark::AddCustomContext("fastseq", FASTSEQ_VERSION);
  benchmark::AddCustomContext("google_benchmark", FASTSEQ_BENCHMARK_VERSION);
  int status = 0;
  try {
    add_cases();
    Silent silent;
    if (reports) {
      benchmark::RunSpecifiedBenchmarks();
    } else {
      benchmark::RunSpecifiedBenchmarks(&silent);
    }
  } catch (const std::exception& error) {
    std::cerr << argv[0] << ": " << prepared().name << ": " << error.what() << "\n";
    status = 1;
  }
  prepared() = {};
  return status;
}

std::vector<std::int64_t> many_small_tensors() { return std::vector<std::int64_t>(2000, 64); }

std::vector<std::int64_t> transformer(int layers) {
  constexpr std::int64_t kWidth = 512;
  constexpr std::int64_t kInner = 2048;
  std::vector<std::int64_t> numels;
  for (int layer = 0; layer < layers; ++layer) {
    for (const std::int64_t numel : {3 * kWidth * kWidth, 3 * kWidth, kWidth * kWidth, kWidth, kInner * kWidth, kInner,
                                     kWidth * kInner, kWidth, kWidth, kWidth, kWidth, kWidth}) {
      numels.push_back(numel);
    }
  }
  return numels;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "fp16";
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat32:
      return "fp32";
    case DType::kFloat64:
      return "fp64";
  }
  throw std::invalid_argument("name_of: unknown dtype");
}

}  // namespace fastseq::bench
