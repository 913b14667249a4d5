#include "bench/cuda/timing.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

namespace squareq::bench {
namespace {

constexpr std::uint32_t kQueueNs = 40000;  // a stamp waits so long for the host to queue what it stands before

}  // namespace

Graphs::Graphs(const std::vector<Route>& routes, int sets, cudaStream_t stream) : sets_(sets), stream_(stream) {
  for (const Route& route : routes) {
    route.queue(0);  // modules are loaded and attributes set outside the capture
    require(cudaStreamSynchronize(stream), route.name);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    for (int set = 0; set < sets; ++set) route.queue(set);
    require(cudaStreamEndCapture(stream, &graph), route.name);
    require(cudaGraphInstantiate(&ready, graph, 0), route.name);
    require(cudaGraphDestroy(graph), "capturing");
    graphs_.push_back(ready);
    names_.push_back(route.name);
  }
}

Graphs::~Graphs() {
  for (const cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
}

void Graphs::launch(std::size_t route) const { require(cudaGraphLaunch(graphs_[route], stream_), names_[route]); }

Timer::Timer(const Device& device, cudaStream_t stream)
    : multiprocessors_(device.multiprocessors), stream_(stream), stamps_(2 * sizeof(ClockStamp) * static_cast<std::size_t>(device.multiprocessors)) {
  require(cudaEventCreate(&begin_), "events");
  require(cudaEventCreate(&end_), "events");
}

Timer::~Timer() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
}

double Timer::clock_mhz() const {
  const auto count = static_cast<std::size_t>(multiprocessors_);
  std::vector<ClockStamp> stamps(2 * count);
  require(cudaMemcpy(stamps.data(), stamps_.data(), stamps_.bytes(), cudaMemcpyDeviceToHost), "reading the clocks");
  std::vector<double> mhz;
  for (std::size_t i = 0; i < count; ++i) {
    const ClockStamp &before = stamps[i], &behind = stamps[count + i];
    if (before.nanoseconds == 0 || behind.nanoseconds <= before.nanoseconds) continue;  // not every multiprocessor need get a block of a stamp
    mhz.push_back(1e3 * static_cast<double>(behind.cycles - before.cycles) / static_cast<double>(behind.nanoseconds - before.nanoseconds));
  }
  if (mhz.empty()) throw Error(Code::INTERNAL, "no multiprocessor left a clock stamp before and behind a route");
  return median(mhz);
}

Sample Timer::measure(const Graphs& graphs, std::size_t route, int launches, std::uint32_t delay_ns) {
  auto* stamps = static_cast<ClockStamp*>(stamps_.data());
  require(cudaMemsetAsync(stamps, 0, stamps_.bytes(), stream_), "clock stamps");
  require(queue_clock_stamp(stamps, multiprocessors_, delay_ns, stream_), "clock stamp");
  require(cudaEventRecord(begin_, stream_), "events");
  for (int i = 0; i < launches; ++i) graphs.launch(route);
  require(cudaEventRecord(end_, stream_), "events");
  require(queue_clock_stamp(stamps + multiprocessors_, multiprocessors_, 0, stream_), "clock stamp");
  require(cudaStreamSynchronize(stream_), "timing");
  float milliseconds = 0;
  require(cudaEventElapsedTime(&milliseconds, begin_, end_), "events");
  return {1e3 * static_cast<double>(milliseconds) / launches / graphs.sets(), clock_mhz()};
}

Samples Timer::burst(const Graphs& graphs, int rounds) {
  Samples samples(graphs.size());
  for (int round = -1; round < rounds; ++round)  // the first one warms up
    for (std::size_t i = 0; i < graphs.size(); ++i) {
      const Sample sample = measure(graphs, i, 1, kQueueNs);
      if (round >= 0) samples[i].push_back(sample);
      std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(std::max(500.0, sample.us * graphs.sets())));
    }
  return samples;
}

Samples Timer::sustained(const Graphs& graphs, int rounds, int launches, int heat) {
  Samples samples(graphs.size());
  for (int i = 0; i < heat; ++i) graphs.launch(0);
  for (int round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < graphs.size(); ++i) {
      for (int warm = 0; warm < (launches + 1) / 2; ++warm) graphs.launch(i);
      samples[i].push_back(measure(graphs, i, launches, 0));
    }
  return samples;
}

double median(std::vector<double> values) {
  const std::size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(middle), values.end());
  return values[middle];
}

}  // namespace squareq::bench
