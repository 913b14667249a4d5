// W8A16 forward, dX, W8A8 forward with the quantization of X, and the forward with a branch, against a bf16 product by cuBLASLt and against
// dequantizing the whole weight first. Operands rotate through more memory than the L2 cache holds; routes are interleaved; times are medians.
//   cuda_linear_bench [--rows 512,1536,4608] [--shapes 3072x9216,1280x1280] [--json FILE] [--rounds N]
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bench/cuda/cublas.hpp"

namespace squareq::bench {
namespace {

constexpr std::int64_t kRank = 16;
constexpr sq_device kDevice{SQ_CUDA, 0};

struct Shape {
  std::int64_t k, n;
};
// FLUX.1's and SDXL's linear layers.
constexpr Shape kShapes[] = {{3072, 3072}, {3072, 9216}, {3072, 12288}, {12288, 3072}, {3072, 21504}, {15360, 3072}, {1280, 1280}, {1280, 10240}, {5120, 1280}};

/// One layer's operands.
struct Operands {
  Buffer x, dy, y, dx, q, wide, scale, h;
  Operands(std::int64_t m, const Shape& s, unsigned seed)
      : x(bytes(m, s.k)),
        dy(bytes(m, s.n)),
        y(bytes(m, s.n)),
        dx(bytes(m, s.k)),
        q(static_cast<std::size_t>(s.n * s.k)),
        wide(bytes(s.n, s.k)),
        scale(static_cast<std::size_t>(s.n) * 4),
        h(static_cast<std::size_t>(m * kRank) * 4) {
    x.fill(SQ_BF16, seed), dy.fill(SQ_BF16, seed + 1), wide.fill(SQ_BF16, seed + 2), q.fill(SQ_I8, seed + 3), scale.fill(SQ_F32, seed + 4);
  }
  static std::size_t bytes(std::int64_t rows, std::int64_t columns) { return static_cast<std::size_t>(rows * columns) * 2; }
};

class Bench {
 public:
  Bench() : arena_(std::size_t{2} << 30), allocator_(arena_.table()), context_(make_context(&allocator_)) {
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }

  nlohmann::ordered_json run(std::int64_t m, const Shape& s, int rounds) {
    const std::size_t per_set = Operands::bytes(m, s.k) * 2 + Operands::bytes(m, s.n) * 2 + static_cast<std::size_t>(s.n * s.k);
    const int sets = static_cast<int>(std::clamp<std::size_t>((std::size_t{220} << 20) / per_set + 1, 2, 16));
    std::vector<std::unique_ptr<Operands>> operands;
    for (int i = 0; i < sets; ++i) operands.push_back(std::make_unique<Operands>(m, s, static_cast<unsigned>(10 * i)));
    Buffer a(static_cast<std::size_t>(kRank * s.k) * 4), b(static_cast<std::size_t>(s.n * kRank) * 4), scratch(Operands::bytes(s.n, s.k));
    Buffer da(static_cast<std::size_t>(kRank * s.k) * 4), db(static_cast<std::size_t>(s.n * kRank) * 4);
    a.fill(SQ_F32, 90), b.fill(SQ_F32, 91);
    CublasProduct forward(m, s.n, s.k, true, stream_), backward(m, s.k, s.n, false, stream_);
    const Operands& first = *operands[0];
    forward.choose(first.x.data(), first.wide.data(), first.y.data());
    backward.choose(first.dy.data(), first.wide.data(), first.dx.data());

    const auto ours_forward = [&](int set, std::int32_t compute, bool lora) {
      Call c(*this, *operands[static_cast<std::size_t>(set)], m, s, a, b, da, db);
      c.forward.compute = compute;
      if (lora) c.forward.lora = &c.lora, c.forward.h = &c.h;
      call(context_.linear().linear_forward, context_, c.forward);
    };
    const auto ours_backward = [&](int set, std::int32_t compute, bool lora) {
      Call c(*this, *operands[static_cast<std::size_t>(set)], m, s, a, b, da, db);
      c.backward.compute = compute;
      if (lora) c.backward.lora = &c.lora, c.backward.x = &c.x, c.backward.h = &c.h, c.backward.da_t = &c.da, c.backward.db_t = &c.db;
      call(context_.linear().linear_backward, context_, c.backward);
    };
    const auto dequantized = [&](int set) {
      const Operands& o = *operands[static_cast<std::size_t>(set)];
      Call c(*this, o, m, s, a, b, da, db);
      auto args = sized<sq_dequantize_args>();
      const sq_tensor out = make_tensor(scratch.data(), SQ_BF16, {s.n, s.k}, kDevice);
      args.stream = stream_, args.weight = &c.ref, args.out = &out;
      call(context_.linear().dequantize, context_, args);
    };
    const auto set_of = [&](int set) -> const Operands& { return *operands[static_cast<std::size_t>(set)]; };
    const std::vector<Route> routes = {
        {"cublas_forward", [&](int i) { forward.queue(set_of(i).x.data(), set_of(i).wide.data(), set_of(i).y.data()); }},
        {"w8a16_forward", [&](int i) { ours_forward(i, SQ_COMPUTE_DEFAULT, false); }},
        {"w8a8_forward", [&](int i) { ours_forward(i, SQ_COMPUTE_W8A8, false); }},
        {"w8a16_lora_forward", [&](int i) { ours_forward(i, SQ_COMPUTE_DEFAULT, true); }},
        {"dequantize_cublas_forward", [&](int i) { dequantized(i), forward.queue(set_of(i).x.data(), scratch.data(), set_of(i).y.data()); }},
        {"cublas_dx", [&](int i) { backward.queue(set_of(i).dy.data(), set_of(i).wide.data(), set_of(i).dx.data()); }},
        {"w8a16_dx", [&](int i) { ours_backward(i, SQ_COMPUTE_DEFAULT, false); }},
        {"w8a8_dx", [&](int i) { ours_backward(i, SQ_COMPUTE_W8A8, false); }},
        {"w8a16_lora_backward", [&](int i) { ours_backward(i, SQ_COMPUTE_DEFAULT, true); }},
        {"dequantize_cublas_dx", [&](int i) { dequantized(i), backward.queue(set_of(i).dy.data(), scratch.data(), set_of(i).dx.data()); }}};
    const auto times = time_routes(routes, sets, rounds, stream_);
    nlohmann::ordered_json result = {{"m", m}, {"k", s.k}, {"n", s.n}, {"sets", sets}};
    const auto ratio = [&](std::size_t base, std::size_t route) {
      std::vector<double> r;
      for (std::size_t i = 0; i < times[base].size(); ++i) r.push_back(times[base][i] / times[route][i]);
      return median(r);
    };
    for (std::size_t i = 0; i < routes.size(); ++i) result[routes[i].name] = {{"us", median(times[i])}, {"ratio", ratio(i < 5 ? 0 : 5, i)}};
    return result;
  }

 private:
  static Context make_context(const sq_allocator* allocator) {
    auto host = sized<sq_host>();
    host.device = kDevice;
    host.allocator = allocator;
    return Context(Implementation::load(find_backend("cuda")), host);
  }

  /// The contract's structs over one set of operands.
  struct Call {
    sq_tensor x, dy, y, dx, h, a_t, b_t, da, db;
    sq_part parts[2];
    sq_weight weight = sized<sq_weight>();
    sq_weight_ref ref = sized<sq_weight_ref>();
    sq_lora lora = sized<sq_lora>();
    sq_linear_forward_args forward = sized<sq_linear_forward_args>();
    sq_linear_backward_args backward = sized<sq_linear_backward_args>();

    Call(const Bench& bench, const Operands& o, std::int64_t m, const Shape& s, const Buffer& a, const Buffer& b, const Buffer& da_buffer, const Buffer& db_buffer) {
      const auto tensor = [](const Buffer& from, std::int32_t dtype, std::int64_t rows, std::int64_t columns) {
        return make_tensor(from.data(), dtype, {rows, columns}, kDevice);
      };
      x = tensor(o.x, SQ_BF16, m, s.k), dy = tensor(o.dy, SQ_BF16, m, s.n), y = tensor(o.y, SQ_BF16, m, s.n), dx = tensor(o.dx, SQ_BF16, m, s.k);
      h = tensor(o.h, SQ_F32, m, kRank), a_t = tensor(a, SQ_F32, kRank, s.k), b_t = tensor(b, SQ_F32, s.n, kRank);
      da = tensor(da_buffer, SQ_F32, kRank, s.k), db = tensor(db_buffer, SQ_F32, s.n, kRank);
      parts[0] = {"qweight", tensor(o.q, SQ_I8, s.n, s.k)};
      parts[1] = {"scale", make_tensor(o.scale.data(), SQ_F32, {s.n}, kDevice)};
      weight.format = "bp8_v2", weight.name = "layer", weight.out_features = s.n, weight.in_features = s.k, weight.parts = parts, weight.part_count = 2;
      ref.weight = &weight;
      lora.a_t = &a_t, lora.b_t = &b_t, lora.scaling = 1;
      forward.stream = backward.stream = bench.stream_;
      forward.weight = backward.weight = &ref;
      forward.x = &x, forward.y = &y, backward.dy = &dy, backward.dx = &dx;
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
  };

  Arena arena_;
  sq_allocator allocator_;
  Context context_;
  cudaStream_t stream_ = nullptr;
};

int bench_main(int argc, char** argv) {
  std::vector<std::int64_t> rows = {512, 1536, 4608};
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  std::string file;
  int rounds = 24;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--rows") {
      rows.clear();
      std::istringstream list(argv[i + 1]);
      for (std::string item; std::getline(list, item, ',');) rows.push_back(std::stoll(item));
    } else if (flag == "--shapes") {
      shapes.clear();
      std::istringstream list(argv[i + 1]);
      char x = 0;
      for (Shape item{}; list >> item.k >> x >> item.n; list >> x) shapes.push_back(item);
    } else if (flag == "--json") {
      file = argv[i + 1];
    } else if (flag == "--rounds") {
      rounds = std::stoi(argv[i + 1]);
    } else {
      throw std::runtime_error("unknown argument '" + flag + "'");
    }
  }
  cudaDeviceProp device{};
  require(cudaGetDeviceProperties(&device, 0), "device");
  nlohmann::ordered_json all = {{"device", device.name}, {"results", nlohmann::ordered_json::array()}};
  std::printf("%s; ratio = time of cuBLASLt bf16 / time of the route\n", device.name);
  std::printf("%5s %6s %6s | %9s %6s %6s %6s %6s | %9s %6s %6s %6s %6s\n", "M", "K", "N", "cublas us", "w8a16", "w8a8", "lora", "deq",
              "dx us", "w8a16", "w8a8", "lora", "deq");
  Bench bench;
  for (const std::int64_t m : rows)
    for (const Shape& s : shapes) {
      const auto r = bench.run(m, s, rounds);
      const auto at = [&](const char* route) { return r.at(route).at("ratio").get<double>(); };
      std::printf("%5ld %6ld %6ld | %9.1f %6.2f %6.2f %6.2f %6.2f | %9.1f %6.2f %6.2f %6.2f %6.2f\n", static_cast<long>(m),
                  static_cast<long>(s.k), static_cast<long>(s.n), r.at("cublas_forward").at("us").get<double>(), at("w8a16_forward"),
                  at("w8a8_forward"), at("w8a16_lora_forward"), at("dequantize_cublas_forward"), r.at("cublas_dx").at("us").get<double>(),
                  at("w8a16_dx"), at("w8a8_dx"), at("w8a16_lora_backward"), at("dequantize_cublas_dx"));
      std::fflush(stdout);
      all["results"].push_back(r);
    }
  if (!file.empty()) std::ofstream(file) << all.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace squareq::bench

int main(int argc, char** argv) {
  try {
    return squareq::bench::bench_main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "cuda_linear_bench: %s\n", e.what());
    return 1;
  }
}
