// What the ranks tell each other when an exchange is made.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/ranks/communicator.h"

namespace fastseq::cuda {

// Every rank's answer, in their order. Collective.
template <class Answer>
std::vector<Answer> ask_all(Communicator& comm, const Answer& own) {
  static_assert(std::is_trivially_copyable_v<Answer>);
  std::vector<Answer> answers(static_cast<std::size_t>(comm.size()), own);
  for (std::size_t r = 0; r < answers.size(); ++r) {
    comm.broadcast(std::as_writable_bytes(std::span(&answers[r], 1)), static_cast<int>(r));
  }
  return answers;
}

// Runs `work`; raises std::runtime_error on all ranks if it raised something on one. Collective.
template <class Work>
void on_all(Communicator& comm, Work&& work) {
  std::array<char, 256> why{};
  try {
    work();
  } catch (const std::exception& error) {
    cudaGetLastError();  // else the next call would report it again
    std::string(error.what()).copy(why.data(), why.size() - 1);
  }
  const auto all = ask_all(comm, why);
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r][0] != '\0') throw std::runtime_error("rank " + std::to_string(r) + ": " + all[r].data());
  }
}

// An object on each rank, or std::runtime_error on all. Collective.
template <class Made, class... Arguments>
std::unique_ptr<Made> make_on_all(Communicator& comm, const Arguments&... arguments) {
  std::unique_ptr<Made> made;
  on_all(comm, [&] { made = std::make_unique<Made>(arguments...); });
  return made;
}

}  // namespace fastseq::cuda
