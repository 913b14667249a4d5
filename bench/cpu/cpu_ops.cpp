// The CPU backend's operations against what they replace, in the same run: linear layers against sgemm on weights dequantized
// beforehand (counter `ratio` = our time / sgemm's time, both sides interleaved, medians), quantization against memcpy.
// Another backend: SQUAREQ_BENCH_BACKEND=PATH.so. Threads: OPENBLAS_NUM_THREADS.
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "squareq/contract.hpp"

namespace {

using squareq::sized;

squareq::Context& context() {
  static squareq::Context instance = [] {
    const char* path = std::getenv("SQUAREQ_BENCH_BACKEND");
    return squareq::Context(squareq::Implementation::load(path ? path : SQUAREQ_BACKEND_FOLDER "/libsquareq_cpu.so"), sized<sq_host>());
  }();
  return instance;
}

double seconds(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// A bp8_v2 layer [n, k] with bias and a rank-16 adapter, its dequantized F32 copy, and activations of m rows.
struct Layer {
  std::int64_t m, n, k, r = 16;
  std::vector<std::int8_t> q;
  std::vector<float> scale, bias, dense, x, y, dx, a, b, h, da, db;
  std::vector<sq_part> parts;
  std::vector<sq_tensor> t;
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();
  sq_lora lora = sized<sq_lora>();

  Layer(std::int64_t m_, std::int64_t n_, std::int64_t k_) : m(m_), n(n_), k(k_) {
    std::mt19937 random(7);
    const auto fill = [&](std::vector<float>& v, std::int64_t count) {
      v.resize(static_cast<std::size_t>(count));
      for (float& f : v) f = static_cast<float>(static_cast<std::int32_t>(random())) * 4.6e-10f;
    };
    q.resize(static_cast<std::size_t>(n * k));
    for (auto& c : q) c = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
    fill(scale, n); fill(bias, n); fill(x, m * k); fill(a, r * k); fill(b, n * r);
    for (float& s : scale) s = 0.001f + (s < 0 ? -s : s) * 0.001f;
    dense.resize(q.size());
    for (std::size_t i = 0; i < q.size(); ++i) dense[i] = static_cast<float>(q[i]) * scale[i / static_cast<std::size_t>(k)];
    fill(y, m * n); fill(dx, m * k); fill(h, m * r); fill(da, r * k); fill(db, n * r);
    parts = {{"qweight", squareq::make_tensor(q.data(), SQ_I8, {n, k})},
             {"scale", squareq::make_tensor(scale.data(), SQ_F32, {n})},
             {"bias", squareq::make_tensor(bias.data(), SQ_F32, {n})}};
    weight.format = "bp8_v2";
    weight.name = "bench";
    weight.out_features = n;
    weight.in_features = k;
    weight.parts = parts.data();
    weight.part_count = 3;
    ref.weight = &weight;
    t = {squareq::make_tensor(x.data(), SQ_F32, {m, k}), squareq::make_tensor(y.data(), SQ_F32, {m, n}),
         squareq::make_tensor(dx.data(), SQ_F32, {m, k}), squareq::make_tensor(a.data(), SQ_F32, {r, k}),
         squareq::make_tensor(b.data(), SQ_F32, {n, r}), squareq::make_tensor(h.data(), SQ_F32, {m, r}),
         squareq::make_tensor(da.data(), SQ_F32, {r, k}), squareq::make_tensor(db.data(), SQ_F32, {n, r})};
    lora.scaling = 1.0f;
    lora.a_t = &t[3];
    lora.b_t = &t[4];
  }

  void forward(bool with_lora) {
    auto args = sized<sq_linear_forward_args>();
    args.weight = &ref;
    args.x = &t[0];
    args.y = &t[1];
    if (with_lora) { args.lora = &lora; args.h = &t[5]; }
    squareq::call(context().linear().linear_forward, context(), args);
  }
  void backward(bool with_lora) {
    auto args = sized<sq_linear_backward_args>();
    args.weight = &ref;
    args.dy = &t[1];
    args.x = &t[0];
    args.dx = &t[2];
    if (with_lora) { args.lora = &lora; args.h = &t[5]; args.da_t = &t[6]; args.db_t = &t[7]; }
    squareq::call(context().linear().linear_backward, context(), args);
  }
  void sgemm_forward() {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1, x.data(), static_cast<int>(k),
                dense.data(), static_cast<int>(k), 0, y.data(), static_cast<int>(n));
  }
  void sgemm_backward() {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(m), static_cast<int>(k), static_cast<int>(n), 1, y.data(), static_cast<int>(n),
                dense.data(), static_cast<int>(k), 0, dx.data(), static_cast<int>(k));
  }
};

void compare(benchmark::State& state, const std::function<void()>& ours, const std::function<void()>& theirs, double flop) {
  ours();
  theirs();
  std::vector<double> mine, other;
  for (auto _ : state) {
    mine.push_back(seconds(ours));
    other.push_back(seconds(theirs));
    state.SetIterationTime(mine.back());
  }
  state.counters["ours_us"] = median(mine) * 1e6;
  state.counters["sgemm_us"] = median(other) * 1e6;
  state.counters["ratio"] = median(mine) / median(other);
  state.counters["ratio_best"] = *std::min_element(mine.begin(), mine.end()) / *std::min_element(other.begin(), other.end());
  state.counters["GFLOPS"] = flop / median(mine) / 1e9;
}

void forward(benchmark::State& state) {
  Layer l(state.range(0), state.range(1), state.range(2));
  const bool lora = state.range(3) != 0;
  compare(state, [&] { l.forward(lora); }, [&] { l.sgemm_forward(); }, 2.0 * static_cast<double>(l.m * l.n * l.k));
}

void backward(benchmark::State& state) {
  Layer l(state.range(0), state.range(1), state.range(2));
  const bool lora = state.range(3) != 0;
  if (lora) l.forward(true);
  compare(state, [&] { l.backward(lora); }, [&] { l.sgemm_backward(); }, 2.0 * static_cast<double>(l.m * l.n * l.k));
}

void shapes(benchmark::internal::Benchmark* b) {
  // M, N, K: the emoji model's linears at 16 images of 64 tokens, its modulation, and FLUX.1's at 512 tokens.
  const std::vector<std::vector<std::int64_t>> sizes = {{1024, 192, 192}, {1024, 576, 192}, {1024, 768, 192}, {1024, 192, 768}, {16, 1152, 192},
                                                        {64, 3072, 3072}, {512, 3072, 3072}, {512, 12288, 3072}, {512, 3072, 12288}};
  for (const auto& s : sizes)
    for (const std::int64_t lora : {0, 1}) b->Args({s[0], s[1], s[2], lora});
  b->ArgNames({"M", "N", "K", "lora"})->UseManualTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK(forward)->Apply(shapes);
BENCHMARK(backward)->Apply(shapes);

void quantize_bf16(benchmark::State& state) {
  const std::int64_t n = state.range(0), k = state.range(1);
  std::vector<std::uint16_t> w(static_cast<std::size_t>(n * k));
  std::mt19937 random(3);
  for (auto& v : w) v = static_cast<std::uint16_t>(0x3C00 + random() % 512 + ((random() & 1) << 15));
  std::vector<std::int8_t> q(w.size());
  std::vector<float> scale(static_cast<std::size_t>(n)), zero(scale);
  std::vector<std::uint16_t> copy(w.size());
  const std::vector<sq_part> out = {{"qweight", squareq::make_tensor(q.data(), SQ_I8, {n, k})},
                                    {"scale", squareq::make_tensor(scale.data(), SQ_F32, {n})},
                                    {"zero_point", squareq::make_tensor(zero.data(), SQ_F32, {n})}};
  const sq_tensor source = squareq::make_tensor(w.data(), SQ_BF16, {n, k});
  auto args = sized<sq_quantize_args>();
  args.format = "bp8_v2";
  args.name = "bench";
  args.pack_k = 64;
  args.w = &source;
  args.out = out.data();
  args.out_count = 3;
  const double bytes = static_cast<double>(w.size()) * 2;
  std::vector<double> mine, memory;
  for (auto _ : state) {
    mine.push_back(seconds([&] { squareq::call(context().linear().quantize, context(), args); }));
    memory.push_back(seconds([&] { std::memcpy(copy.data(), w.data(), w.size() * 2); benchmark::DoNotOptimize(copy.data()); }));
    state.SetIterationTime(mine.back());
  }
  state.counters["source_GBps"] = bytes / median(mine) / 1e9;
  state.counters["best_GBps"] = bytes / *std::min_element(mine.begin(), mine.end()) / 1e9;
  state.counters["memcpy_GBps"] = bytes / median(memory) / 1e9;
}
BENCHMARK(quantize_bf16)->ArgNames({"N", "K"})->Args({3072, 3072})->Args({3072, 15360})->Args({192, 192})->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
