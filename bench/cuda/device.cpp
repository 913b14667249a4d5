#include "bench/cuda/device.hpp"

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>

namespace squareq::bench {

void require(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) { require(cudaMalloc(&data_, bytes), "allocating"); }

void Buffer::fill(std::int32_t dtype, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<unsigned char> block(std::min<std::size_t>(bytes_, std::size_t{4} << 20));
  if (dtype == SQ_I8) {
    for (unsigned char& b : block) b = static_cast<unsigned char>(static_cast<int>(random() % 255) - 127);
  } else {
    const std::size_t width = dtype == SQ_F32 ? 4 : 2;
    for (std::size_t i = 0; i + width <= block.size(); i += width) {
      const float unit = static_cast<float>(random()) / 4294967296.0f;
      const float value = dtype == SQ_F32 ? 0.001f + 0.009f * unit : 2 * unit - 1;
      unsigned char raw[4];
      std::memcpy(raw, &value, 4);
      std::memcpy(block.data() + i, raw + 4 - width, width);  // bf16 is the upper half
    }
  }
  for (std::size_t at = 0; at < bytes_; at += block.size())
    require(cudaMemcpy(static_cast<unsigned char*>(data_) + at, block.data(), std::min(block.size(), bytes_ - at), cudaMemcpyHostToDevice), "filling");
}

sq_allocator Arena::table() {
  sq_allocator a{};
  a.size = sizeof a;
  a.user = this;
  a.allocate = [](void* user, std::int32_t, std::uint64_t bytes, std::uint64_t, sq_stream_handle, const char*) -> void* {
    auto& self = *static_cast<Arena*>(user);
    if (self.live_++ == 0) self.used_ = 0;
    void* piece = static_cast<unsigned char*>(self.memory_.data()) + self.used_;
    self.used_ += (bytes + 255) / 256 * 256;
    return self.used_ <= self.memory_.bytes() ? piece : nullptr;
  };
  a.release = [](void* user, void*, std::int32_t, std::uint64_t, sq_stream_handle) { --static_cast<Arena*>(user)->live_; };
  return a;
}

std::vector<std::vector<double>> time_routes(const std::vector<Route>& routes, int sets, int rounds, cudaStream_t stream) {
  std::vector<cudaGraphExec_t> graphs;
  for (const Route& route : routes) {
    route.queue(0);  // modules are loaded and attributes set outside the capture
    require(cudaStreamSynchronize(stream), route.name.c_str());
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    for (int set = 0; set < sets; ++set) route.queue(set);
    require(cudaStreamEndCapture(stream, &graph), route.name.c_str());
    require(cudaGraphInstantiate(&ready, graph, 0), route.name.c_str());
    require(cudaGraphDestroy(graph), "capturing");
    graphs.push_back(ready);
  }
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "events");
  require(cudaEventCreate(&end), "events");
  std::vector<std::vector<double>> times(routes.size());
  for (int round = -1; round < rounds; ++round)  // the first one warms up
    for (std::size_t i = 0; i < routes.size(); ++i) {
      require(cudaEventRecord(begin, stream), "events");
      require(cudaGraphLaunch(graphs[i], stream), routes[i].name.c_str());
      require(cudaEventRecord(end, stream), "events");
      require(cudaEventSynchronize(end), routes[i].name.c_str());
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, begin, end), "events");
      if (round >= 0) times[i].push_back(1000.0 * static_cast<double>(milliseconds) / sets);
    }
  for (const cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return times;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace squareq::bench
