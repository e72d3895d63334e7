// Streams, events and graphs, as the calls of runtime.cpp see them.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "device.h"
#include "sanitizers.h"

namespace cuda_on_host {

// A point in a stream's order, for which an event stands.
struct Mark {
  bool passed = false;
};

struct Operation {
  std::function<void()> run;
  std::shared_ptr<Mark> awaits;     // goes on when this has passed,
  std::function<bool()> elsewhere;  // and this, which others bring about, is true
  std::shared_ptr<Mark> passes;
  char token = 0;
};

// Functions, each behind others that come before it in the list.
struct Graph {
  struct Node {
    std::function<void()> run;
    std::vector<std::size_t> after;
    char token = 0;
  };
  std::vector<Node> nodes;

  // Runs all, in one of the orders that are allowed.
  void run();
};

// What has been captured so far.
struct Capture {
  Graph graph;
  Stream* origin = nullptr;
  bool ended = false;
  std::map<Stream*, std::vector<std::size_t>> ends;  // the nodes that each stream's next one comes after
};

struct Stream {
  int device = 0;
  std::deque<std::unique_ptr<Operation>> queue;
  bool busy = false;
  bool destroyed = false;
  std::shared_ptr<Capture> capture;
  Strand strand;
};

// An event as other processes see it: how often it was recorded, and the last time of these that has come.
struct SharedEvent {
  std::atomic<std::int64_t> recorded;
  std::atomic<std::int64_t> passed;
};

struct Event {
  int device = 0;
  std::shared_ptr<Mark> mark;
  SharedEvent* shared = nullptr;
  bool imported = false;
  std::shared_ptr<Capture> capture;  // recorded while a graph is captured
  std::vector<std::size_t> ends;
};

// Puts a function behind what the stream has; null: the default stream.
void push(Stream* stream, std::function<void()> run);
std::shared_ptr<Mark> push_mark(Stream* stream);
void push_wait(Stream* stream, const std::shared_ptr<Mark>& mark);
// Waits in the stream's order until others make it true.
void push_wait(Stream* stream, std::function<bool()> elsewhere);

// Waits until a mark has passed.
void wait_for(const std::shared_ptr<Mark>& mark);
// Whether it has passed; a little time goes by.
bool has_passed(const std::shared_ptr<Mark>& mark);
bool is_idle(Stream* stream);

void add(Stream* stream);
// Once it has done what it has.
void remove(Stream* stream);
// Waits for all that streams have, those that were destroyed included.
void wait_for_all();
Stream* or_default(Stream* stream);

}  // namespace cuda_on_host
