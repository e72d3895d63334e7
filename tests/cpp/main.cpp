#include "check.h"

int main(int count, char** arguments) {
  return fastseq::testing::run_all({arguments + 1, static_cast<std::size_t>(count) - 1});
}
