// Linear layers of the CUDA backend against bf16 products by cuBLASLt and against dequantizing the whole weight first. Operands rotate through more
// memory than the L2 cache holds; routes are interleaved; times are medians over rounds, ratios medians of a round's ratio.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda/arguments.hpp"
#include "bench/cuda/layer.hpp"
#include "bench/cuda/timing.hpp"

namespace squareq::bench {
namespace {

constexpr std::string_view kUsage =
    "cuda_linear_bench: linear layers of the CUDA backend against cuBLASLt bf16, on device 0\n"
    "  --regime burst|sustained   burst (default): the device rests between routes and stays below its power limit\n"
    "                             sustained: every route runs without a pause for about 0.3 s per round, on a heated device\n"
    "  --models LIST    of flux1, sdxl, flux2, sd3 (default: all; sustained: flux1)\n"
    "  --shapes LIST    instead of --models: K x N, as 3072x9216,1280x1280\n"
    "  --rows LIST      M (default 16,64,512,1536,4608,8192; sustained: 4608)\n"
    "  --rounds N       (default 12; sustained: 3)\n"
    "  --json FILE      every number\n"
    "Exit status: 0 done, 2 wrong arguments, 3 no GPU or failed.\n";

constexpr double kNominalRate = 6e14;  // operations per second: how often something is done follows from it, and the estimates of time
constexpr double kNominalBytes = 3.5e12;
constexpr double kSustainedSeconds = 0.2, kHeatSeconds = 0.7;
constexpr int kBurstRoutes = 21, kSustainedRoutes = 12;  // for the estimates

struct RouteSpec {
  Route route;
  std::string base;   // whose time over this one's is the ratio
  std::string plain;  // the same without the branch: the overhead is measured against it
  bool sustained = false;
};

struct Case {
  std::string model;
  Shape shape;
  std::int64_t rows = 0;

  double operations() const { return 2.0 * static_cast<double>(rows) * static_cast<double>(shape.k) * static_cast<double>(shape.n); }
  /// Of one call, roughly.
  double seconds() const {
    const double bytes = 2.0 * static_cast<double>(shape.k * shape.n + rows * (shape.k + shape.n));
    return std::max({operations() / kNominalRate, bytes / kNominalBytes, 8e-6});
  }
};

class LinearBench {
 public:
  LinearBench(const Device& device, bool sustained, int rounds)
      : sustained_(sustained), rounds_(rounds), arena_(std::size_t{2} << 30), allocator_(arena_.table()), context_(open_backend(&allocator_)) {
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    timer_ = std::make_unique<Timer>(device, stream_);
  }
  ~LinearBench() { cudaStreamDestroy(stream_); }
  LinearBench(const LinearBench&) = delete;
  LinearBench& operator=(const LinearBench&) = delete;

  nlohmann::ordered_json run(const Case& c) {
    const Layer layer(context_, random_, c.rows, c.shape, stream_);
    const Products products(layer, c, stream_);
    std::vector<RouteSpec> specs = routes(layer, products);
    if (sustained_) std::erase_if(specs, [](const RouteSpec& spec) { return !spec.sustained; });
    std::vector<Route> wanted;
    for (const RouteSpec& spec : specs) wanted.push_back(spec.route);
    const Graphs graphs(wanted, layer.sets(), stream_);
    const Samples samples = sustained_ ? timer_->sustained(graphs, rounds_, launches(c, kSustainedSeconds), launches(c, kHeatSeconds))
                                       : timer_->burst(graphs, rounds_);
    nlohmann::ordered_json result = {{"model", c.model}, {"m", c.rows}, {"k", c.shape.k}, {"n", c.shape.n}, {"sets", layer.sets()}};
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const auto ratio = [&](const std::string& over) { return median_ratio(samples[index_of(specs, over)], samples[i]); };
      std::vector<double> us, mhz;
      for (const Sample& sample : samples[i]) us.push_back(sample.us), mhz.push_back(sample.mhz);
      nlohmann::ordered_json& entry = result[specs[i].route.name];
      entry = {{"us", median(us)}, {"sm_mhz", median(mhz)}};
      if (!specs[i].base.empty()) entry["base"] = specs[i].base, entry["ratio"] = ratio(specs[i].base);
      if (!specs[i].plain.empty()) entry["plain"] = specs[i].plain, entry["overhead"] = 1 / ratio(specs[i].plain) - 1;
    }
    return result;
  }

  /// A guess, for the person who waits.
  double estimate_seconds(const Case& c) const {
    const double sets = Layer::count_sets(c.rows, c.shape), graph = sets * c.seconds();
    const double choosing = 0.1 + 4 * 8 * 4 * graph;
    if (sustained_) return choosing + kHeatSeconds + kSustainedRoutes * rounds_ * 1.5 * kSustainedSeconds;
    return choosing + kBurstRoutes * (rounds_ + 1) * (1.1 * graph + std::max(5e-4, graph) + 2e-4);
  }

 private:
  /// cuBLASLt's products of one case.
  struct Products {
    CublasProduct forward, gelu, kept, backward;
    Products(const Layer& layer, const Case& c, cudaStream_t stream)
        : forward(c.rows, c.shape.n, c.shape.k, true, Epilogue::none, stream),
          gelu(c.rows, c.shape.n, c.shape.k, true, Epilogue::bias_gelu, stream),
          kept(c.rows, c.shape.n, c.shape.k, true, Epilogue::bias_gelu_kept, stream),
          backward(c.rows, c.shape.k, c.shape.n, false, Epilogue::none, stream) {
      std::vector<ProductOperands> forwards, backwards;
      for (int i = 0; i < layer.sets(); ++i) forwards.push_back(layer.forward_operands(i)), backwards.push_back(layer.backward_operands(i));
      forward.choose(forwards), gelu.choose(forwards), kept.choose(forwards), backward.choose(backwards);
    }
  };

  static std::vector<RouteSpec> routes(const Layer& layer, const Products& products) {
    const auto forward = [&layer](const ForwardCall& call) { return [&layer, call](int i) { layer.forward(i, call); }; };
    const auto backward = [&layer](const BackwardCall& call) { return [&layer, call](int i) { layer.backward(i, call); }; };
    const auto cublas = [&layer](const CublasProduct& product) { return [&layer, &product](int i) { product.queue(layer.forward_operands(i)); }; };
    constexpr std::int32_t kW8A16 = SQ_COMPUTE_DEFAULT, kW8A8 = SQ_COMPUTE_W8A8;
    return {
        {{"cublas_forward", cublas(products.forward)}, "", "", true},
        {{"w8a16_forward", forward({.compute = kW8A16})}, "cublas_forward", "", true},
        {{"w8a8_forward", forward({.compute = kW8A8})}, "cublas_forward", "", true},
        {{"w8a16_lora_forward", forward({.compute = kW8A16, .lora = true})}, "cublas_forward", "w8a16_forward", true},
        {{"w8a8_lora_forward", forward({.compute = kW8A8, .lora = true})}, "cublas_forward", "w8a8_forward", true},
        {{"w8a8_codes_forward", forward({.compute = kW8A8, .codes = true})}, "cublas_forward", "", false},
        {{"w8a8_separate_producer_forward", [&layer](int i) { layer.copy_x(i), layer.forward(i, {.compute = kW8A8, .copied = true}); }}, "", "", false},
        {{"w8a8_fused_producer_forward", [&layer](int i) { layer.produce_codes(i), layer.forward(i, {.compute = kW8A8, .codes = true}); }},
         "w8a8_separate_producer_forward", "", false},
        {{"dequantize_cublas_forward", [&](int i) { layer.dequantize(i), products.forward.queue(layer.forward_operands(i, true)); }},
         "cublas_forward", "", false},
        {{"cublas_gelu_forward", cublas(products.gelu)}, "", "", true},
        {{"w8a16_gelu_forward", forward({.compute = kW8A16, .gelu = true})}, "cublas_gelu_forward", "", true},
        {{"w8a8_gelu_forward", forward({.compute = kW8A8, .gelu = true})}, "cublas_gelu_forward", "", true},
        {{"cublas_gelu_kept_forward", cublas(products.kept)}, "", "", false},
        {{"w8a16_gelu_kept_forward", forward({.compute = kW8A16, .gelu = true, .kept = true})}, "cublas_gelu_kept_forward", "", false},
        {{"w8a8_gelu_kept_forward", forward({.compute = kW8A8, .gelu = true, .kept = true})}, "cublas_gelu_kept_forward", "", false},
        {{"cublas_dx", [&](int i) { products.backward.queue(layer.backward_operands(i)); }}, "", "", true},
        {{"w8a16_dx", backward({.compute = kW8A16})}, "cublas_dx", "", true},
        {{"w8a8_dx", backward({.compute = kW8A8})}, "cublas_dx", "", true},
        {{"w8a16_lora_backward", backward({.compute = kW8A16, .lora = true})}, "cublas_dx", "w8a16_dx", true},
        {{"w8a8_lora_backward", backward({.compute = kW8A8, .lora = true})}, "cublas_dx", "w8a8_dx", true},
        {{"dequantize_cublas_dx", [&](int i) { layer.dequantize(i), products.backward.queue(layer.backward_operands(i, true)); }},
         "cublas_dx", "", false}};
  }

  static std::size_t index_of(const std::vector<RouteSpec>& specs, const std::string& name) {
    for (std::size_t i = 0; i < specs.size(); ++i)
      if (specs[i].route.name == name) return i;
    throw Error(Code::INTERNAL, "no route '" + name + "'");
  }

  static double median_ratio(const std::vector<Sample>& over, const std::vector<Sample>& under) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < over.size(); ++i) ratios.push_back(over[i].us / under[i].us);
    return median(ratios);
  }

  /// Replays of a graph that take about so long: a number that follows from the shape alone.
  static int launches(const Case& c, double seconds) {
    return 1 + static_cast<int>(seconds / (c.seconds() * Layer::count_sets(c.rows, c.shape)));
  }

  bool sustained_;
  int rounds_;
  Arena arena_;
  sq_allocator allocator_;
  Context context_;
  Random random_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Timer> timer_;
};

void print_case(const nlohmann::ordered_json& r) {
  const auto cell = [&](const char* route, const char* field, double factor) {
    return r.contains(route) ? r.at(route).at(field).get<double>() * factor : 0;
  };
  std::printf("%-6s %5ld %6ld %6ld | %8.1f %5.2f %5.2f %4.0f%% %5.2f | %8.1f %5.2f %5.2f %4.0f%% | %4.0f MHz\n",
              r.at("model").get<std::string>().c_str(), r.at("m").get<long>(), r.at("k").get<long>(), r.at("n").get<long>(), cell("cublas_forward", "us", 1), cell("w8a16_forward", "ratio", 1),
              cell("w8a8_forward", "ratio", 1), cell("w8a16_lora_forward", "overhead", 100), cell("w8a16_gelu_forward", "ratio", 1),
              cell("cublas_dx", "us", 1), cell("w8a16_dx", "ratio", 1), cell("w8a8_dx", "ratio", 1), cell("w8a16_lora_backward", "overhead", 100),
              cell("w8a16_forward", "sm_mhz", 1));
  std::fflush(stdout);
}

void body(int argc, char** argv) {
  const Arguments arguments(argc, argv, {"--regime", "--models", "--shapes", "--rows", "--rounds", "--json"});
  const std::string regime = arguments.choice("--regime", {"burst", "sustained"}, "burst");
  const bool sustained = regime == "sustained";
  if (arguments.given("--models") && arguments.given("--shapes")) throw Error(Code::CFG_FLAG, "--models and --shapes exclude each other");
  const auto rows = arguments.numbers("--rows", sustained ? "4608" : "16,64,512,1536,4608,8192", 1, 1 << 16);
  const int rounds = static_cast<int>(arguments.number("--rounds", sustained ? "3" : "12", 1, 1000));
  std::vector<NamedShape> shapes;
  if (arguments.given("--shapes"))
    for (const std::string& item : arguments.items("--shapes", "")) shapes.push_back(parse_shape(item));
  else
    shapes = shapes_of(arguments.items("--models", sustained ? "flux1" : "flux1,sdxl,flux2,sd3"));
  const Device device = use_device();
  ResultFile file(arguments.text("--json", ""));

  std::vector<Case> cases;
  for (const std::int64_t m : rows)
    for (const NamedShape& named : shapes) cases.push_back({named.model, named.shape, m});
  LinearBench bench(device, sustained, rounds);
  double seconds = 0;
  for (const Case& c : cases) seconds += bench.estimate_seconds(c);
  std::printf("%s, %s, %zu shapes, about %.0f s; ratio = time of cuBLASLt bf16 / time of the route, + = LoRA's overhead\n", device.name.c_str(),
              regime.c_str(), cases.size(), seconds);
  std::printf("%-6s %5s %6s %6s | %8s %5s %5s %5s %5s | %8s %5s %5s %5s | %s\n", "model", "M", "K", "N", "bf16 us", "w8a16", "w8a8", "+", "gelu",
              "dX us", "w8a16", "w8a8", "+", "SM clock");
  nlohmann::ordered_json all = {{"bench", "linear"}, {"regime", regime},           {"complete", false},
                                {"rounds", rounds},  {"device", device.json()},    {"results", nlohmann::ordered_json::array()}};
  for (const Case& c : cases) {
    all["results"].push_back(bench.run(c));
    print_case(all["results"].back());
    all["complete"] = all["results"].size() == cases.size();
    file.write(all);  // a run that is stopped leaves what it measured, marked as incomplete
  }
}

}  // namespace
}  // namespace squareq::bench

int main(int argc, char** argv) { return squareq::bench::run_program(argc, argv, "cuda_linear_bench", squareq::bench::kUsage, squareq::bench::body); }
