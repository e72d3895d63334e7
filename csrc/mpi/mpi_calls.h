// Shared by the files of this folder: checked calls, and pieces within MPI's counts.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "core/ranks/communicator.h"

namespace fastseq {

// Most bytes of one MPI call: counts are ints, and some libraries fail before they overflow.
inline constexpr std::int64_t kMaxPieceBytes = std::int64_t{1} << 30;

// Raises CommunicationError with MPI's message.
inline void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw CommunicationError(std::string(call) +
                           " failed: " + std::string(text.data(), static_cast<std::size_t>(length)));
}

inline int rank_in(MPI_Comm comm) {
  int rank = 0;
  check_mpi(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  return rank;
}

inline int size_of(MPI_Comm comm) {
  int size = 1;
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  return size;
}

// Memory that MPI may write or read until `end`: leaked if that is not called, because MPI may still use it.
template <class T>
class Landing {
 public:
  template <class... Args>
  explicit Landing(Args&&... args) : memory_(new T(std::forward<Args>(args)...)) {}
  ~Landing() {
    if (ended_) delete memory_;
  }
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;
  T& operator*() const { return *memory_; }
  T* operator->() const { return memory_; }
  void end() { ended_ = true; }

 private:
  T* memory_;
  bool ended_ = false;
};

// Calls piece(first, count) until `total` elements are covered.
template <class Piece>
void for_each_piece(std::int64_t total, std::int64_t limit, Piece&& piece) {
  for (std::int64_t first = 0; first < total; first += limit) {
    piece(first, static_cast<int>(std::min(limit, total - first)));
  }
}

}  // namespace fastseq
