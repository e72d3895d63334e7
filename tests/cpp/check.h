// Tests in C++: TEST(name) { CHECK(...); }. A failed check prints where and what, the test continues, main returns 1.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace fastseq::testing {

struct Test {
  std::string name;
  std::function<void()> run;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline std::atomic<int>& failures() {
  static std::atomic<int> count = 0;  // checks may run in several threads
  return count;
}

inline bool add(const char* name, std::function<void()> run) {
  tests().push_back({name, std::move(run)});
  return true;
}

inline void fail(const char* file, int line, const std::string& what) {
  std::cerr << file << ":" << line << ": " << what << "\n";
  ++failures();
}

template <class A, class B>
void check_equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (!(a == b)) {
    std::cerr << file << ":" << line << ": " << text << ": " << a << " != " << b << "\n";
    ++failures();
  }
}

// Runs the tests of these names; of none: all.
inline int run_all(std::span<const char* const> names) {
  std::size_t count = 0;
  for (const Test& test : tests()) {
    if (!names.empty() && std::ranges::find(names, test.name) == names.end()) continue;
    ++count;
    const int before = failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name.c_str(), 0, std::string("uncaught exception: ") + error.what());
    }
    std::printf("%-6s %s\n", failures() == before ? "ok" : "FAILED", test.name.c_str());
  }
  std::printf("%zu tests, %d failed checks\n", count, failures().load());
  return failures() == 0 && count >= names.size() ? 0 : 1;
}

}  // namespace fastseq::testing

// NOLINTBEGIN(cppcoreguidelines-macro-usage): a check must know its text and its place
#define TEST(name)                                                                             \
  static void test_##name();                                                                   \
  [[maybe_unused]] static const bool added_##name = fastseq::testing::add(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) fastseq::testing::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_EQ(a, b) fastseq::testing::check_equal(a, b, #a " == " #b, __FILE__, __LINE__)

#define CHECK_THROWS(expression, type)                                                             \
  do {                                                                                             \
    bool thrown = false;                                                                           \
    try {                                                                                          \
      (void)(expression);                                                                          \
    } catch (const type&) {                                                                        \
      thrown = true;                                                                               \
    }                                                                                              \
    if (!thrown) fastseq::testing::fail(__FILE__, __LINE__, #expression " does not throw " #type); \
  } while (false)
// NOLINTEND(cppcoreguidelines-macro-usage)
