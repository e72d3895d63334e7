#include "cuda/exchanges/make_exchange.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "cuda/exchanges/ask_all.h"
#include "cuda/exchanges/cuda_mpi_exchange.h"
#include "cuda/exchanges/exchange_kernels.h"
#include "cuda/exchanges/ipc_exchange.h"
#include "cuda/exchanges/nccl_communicator.h"
#include "cuda/exchanges/nccl_exchange.h"
#include "cuda/exchanges/staged_exchange.h"
#include "cuda/exchanges/streamed_exchange.h"

namespace fastseq::cuda {

namespace {

using Text = std::array<char, 160>;

Text text_of(const std::string& text) {
  Text copied{};
  text.copy(copied.data(), copied.size() - 1);
  return copied;
}

// What a rank has.
struct Rank {
  Text wanted;
  Text nccl_problem;    // empty: it can be used
  Text device_problem;  // with MPI on memory of the device
  std::array<char, 16> gpu;
  int process;
  bool norm;
  int node_size;
  bool shares;  // memory of the host with all ranks of its node
};

Rank this_rank(const Communicator& comm, int device, const ExchangeOptions& options) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  Rank own{};
  own.wanted = text_of(options.exchange);
  own.nccl_problem = text_of(nccl_problem());
  own.device_problem = text_of(comm.device_problem());
  std::memcpy(own.gpu.data(), properties.uuid.bytes, own.gpu.size());
  own.process = getpid();
  own.norm = options.norm;
  own.node_size = comm.local_size();
  own.shares = comm.node_ranks().size() == static_cast<std::size_t>(comm.local_size());
  return own;
}

std::string first_problem(const std::vector<Rank>& ranks, Text Rank::* problem) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const char* const text = (ranks[r].*problem).data();
    if (*text != '\0') return "rank " + std::to_string(r) + ": " + text;
  }
  return "";
}

template <class Part>
bool all_different(const std::vector<Rank>& ranks, Part Rank::* part) {
  std::vector<Part> parts;
  parts.reserve(ranks.size());
  for (const Rank& rank : ranks) parts.push_back(rank.*part);
  std::ranges::sort(parts);
  return std::ranges::adjacent_find(parts) == parts.end();
}

std::string nccl_problem_of(const std::vector<Rank>& ranks) {
  if (!all_different(ranks, &Rank::gpu)) return "ranks share a GPU";
  return first_problem(ranks, &Rank::nccl_problem);
}

std::string ipc_problem_of(const std::vector<Rank>& ranks) {
  if (!std::ranges::all_of(ranks, &Rank::shares)) return "ranks of a machine share no memory of the host";
  if (!all_different(ranks, &Rank::process)) return "ranks share a process";
  if (!std::ranges::all_of(ranks, [](const Rank& rank) { return rank.node_size <= kMaxRanks; })) {
    return "a machine has more than " + std::to_string(kMaxRanks) + " ranks";
  }
  return "";
}

struct Way {
  const char* name;
  bool automatic;
  std::string problem;
  std::function<std::unique_ptr<Exchange>()> make;
};

void check_wishes(const std::vector<Rank>& ranks) {
  for (std::size_t r = 1; r < ranks.size(); ++r) {
    if (ranks[r].wanted != ranks[0].wanted) {
      throw std::invalid_argument(std::string("the ranks want different exchanges: rank 0 \"") +
                                  ranks[0].wanted.data() + "\", rank " + std::to_string(r) + " \"" +
                                  ranks[r].wanted.data() + "\"; give all ranks the same");
    }
    if (ranks[r].norm != ranks[0].norm) throw std::invalid_argument("only some ranks want the norm");
  }
}

}  // namespace

std::unique_ptr<Exchange> make_exchange(const std::shared_ptr<Communicator>& comm, int device,
                                        const ExchangeOptions& options) {
  Rank own{};
  on_all(*comm, [&] { own = this_rank(*comm, device, options); });
  const std::vector<Rank> ranks = ask_all(*comm, own);
  check_wishes(ranks);
  const Way ways[] = {
      {"nccl", true, nccl_problem_of(ranks),
       [&] { return std::make_unique<NcclExchange>(comm, device, options.norm, options.timeout); }},
      {"cuda-ipc", true, ipc_problem_of(ranks),
       [&] { return std::make_unique<IpcExchange>(comm, device, options.norm, options.timeout); }},
      {"cuda-mpi", false, first_problem(ranks, &Rank::device_problem),
       [&] { return std::make_unique<CudaMpiExchange>(comm, device); }},
      {"staged", true, "", [&] { return std::make_unique<StagedExchange>(comm, device); }},
  };
  const bool automatic = options.exchange == "auto";
  const bool known = std::ranges::any_of(ways, [&](const Way& way) { return options.exchange == way.name; });
  if (!automatic && !known) {
    throw std::invalid_argument("exchange must be auto, nccl, cuda-ipc, cuda-mpi or staged, got " + options.exchange);
  }
  if (automatic && comm->size() == 1) return std::make_unique<StreamedExchange>(comm, device, options.norm);
  for (const Way& way : ways) {
    if (automatic ? !way.automatic || !way.problem.empty() : options.exchange != way.name) continue;
    std::string problem = way.problem;
    try {
      if (problem.empty()) return way.make();
    } catch (const CommunicationError&) {
      throw;
    } catch (const std::exception& error) {  // on all ranks
      problem = error.what();
    }
    if (!automatic) throw std::invalid_argument("exchange \"" + options.exchange + "\" cannot be used: " + problem);
  }
  throw std::logic_error("no exchange");  // "staged" always can be made
}

}  // namespace fastseq::cuda
