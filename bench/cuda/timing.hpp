// Times of routes that do the same work, in the same run, in one of two regimes of power.
//
// burst: rounds interleave the routes; each replays its graph once and the device then rests at least as long as it worked, so that it stays below
// its power limit. sustained: the device is heated first; each route replays its graph without a gap, untimed until the clocks have followed it, then
// timed; rounds interleave the routes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench/cuda/clock.hpp"
#include "bench/cuda/device.hpp"

namespace squareq::bench {

/// A route is queued once per set of operands; a graph holds one call for each set, so that every call finds its operands outside the caches.
struct Route {
  std::string name;
  std::function<void(int set)> queue;
};

struct Sample {
  double us = 0;   // of one call
  double mhz = 0;  // SM clock meanwhile, the median over the multiprocessors
};

/// Routes, each a replayable graph.
class Graphs {
 public:
  Graphs(const std::vector<Route>& routes, int sets, cudaStream_t stream);
  ~Graphs();
  Graphs(const Graphs&) = delete;
  Graphs& operator=(const Graphs&) = delete;

  std::size_t size() const { return graphs_.size(); }
  int sets() const { return sets_; }
  void launch(std::size_t route) const;

 private:
  int sets_;
  cudaStream_t stream_;
  std::vector<std::string> names_;
  std::vector<cudaGraphExec_t> graphs_;
};

/// [route][round].
using Samples = std::vector<std::vector<Sample>>;

class Timer {
 public:
  Timer(const Device& device, cudaStream_t stream);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  Samples burst(const Graphs& graphs, int rounds);
  /// `launches` replays of each graph are timed, behind half as many untimed ones; route 0 heats the device with `heat` of them first.
  Samples sustained(const Graphs& graphs, int rounds, int launches, int heat);

 private:
  Sample measure(const Graphs& graphs, std::size_t route, int launches, std::uint32_t delay_ns);
  double clock_mhz() const;

  int multiprocessors_;
  cudaStream_t stream_;
  Buffer stamps_;  // before, behind
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

double median(std::vector<double> values);

}  // namespace squareq::bench
