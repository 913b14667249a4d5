// The second computation behind --shadow on single linears: our backends stay within their bounds, a changed number does not
// (SQ-NUM-030, 031, 032).
#include "squareq/training/modules/shadow_check.hpp"

#include <gtest/gtest.h>
#include <unistd.h>
#include <torch/torch.h>

#include <cstdlib>

#include <filesystem>

#include "squareq/error.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/tensor.hpp"
#include "squareq/training/modules/quantized_linear.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {
namespace {

using torch::Tensor;

constexpr std::int64_t rows = 11, in = 70, out = 37, padded = 128, rank = 3;

/// A direct weight "layer" [37, 70], padded to 128, with bias.
class Weight final : public WeightSource {
 public:
  Weight() {
    codes_.narrow(1, in, padded - in).zero_();
    parts_ = {sq_part{"qweight", view_of(codes_)}, sq_part{"scale", view_of(scale_)}, sq_part{"zero_point", view_of(zero_)},
              sq_part{"bias", view_of(bias_)}};
    weight_.part_count = 4;
    weight_.format = "bp8_v2";
    weight_.name = "layer";
    weight_.out_features = out;
    weight_.in_features = in;
    weight_.parts = parts_.data();
  }
  void bind(BoundWeight& bound) const override {
    bound.ref = sized<sq_weight_ref>();
    bound.ref.weight = &weight_;
  }

 private:
  Tensor codes_ = torch::randint(-127, 128, {out, padded}, torch::kInt8), scale_ = torch::rand({out}) * 1e-2 + 1e-3;
  Tensor zero_ = torch::zeros({out}), bias_ = torch::randn({out});
  std::array<sq_part, 4> parts_{};
  sq_weight weight_ = sized<sq_weight>();
};

Context context_of(const std::string& backend) {
  auto host = sized<sq_host>();
  host.threads = 1;
  host.deterministic = 1;
  return Context(Implementation::load(find_backend(backend)), host);
}

struct Case {
  std::string backend = "cpu";
  torch::Dtype dtype = torch::kFloat32;
  std::int32_t activation = SQ_ACT_NONE;
  bool adapter = true, own_x = false;
  std::filesystem::path dump;
};

/// One forward and backward; y, dx, dA, dB.
std::vector<Tensor> run(const Case& r, const std::shared_ptr<Shadow>& shadow) {
  torch::manual_seed(7);
  const auto source = std::make_shared<Weight>();
  const auto call = std::make_shared<const LinearCall>(LinearCall{context_of(r.backend), source, out, r.activation, 0.75f, "layer", shadow});
  Tensor x = torch::randn({rows, in}).to(r.dtype).requires_grad_(true);
  LowRank branch;
  if (r.adapter) branch = {torch::randn({rank, in}).requires_grad_(true), torch::randn({out, rank}).requires_grad_(true), {}};
  if (r.own_x) branch.x = torch::randn({rows, in}).to(r.dtype).requires_grad_(true);
  const Tensor y = quantized_linear(x, branch, call);
  y.backward(torch::randn({rows, out}).to(r.dtype));
  std::vector<Tensor> all = {y.detach(), x.grad()};
  if (r.adapter) all.insert(all.end(), {branch.a_t.grad(), branch.b_t.grad()});
  if (r.own_x) all.push_back(branch.x.grad());
  return all;
}

std::shared_ptr<Shadow> shadow_of(const std::filesystem::path& dump = {}) {
  ShadowOptions options;
  options.dump = dump;
  options.repro = "the command";
  auto shadow = std::make_shared<Shadow>(options, 1u);
  shadow->enter("step 3");
  return shadow;
}

TEST(Shadow, OurBackendsStayWithinTheirBoundsAndNoBitChanges) {  // SQ-NUM-032
  for (const char* backend : {"reference", "cpu"})
    for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16, torch::kFloat16})
      for (std::int32_t activation = SQ_ACT_NONE; activation <= SQ_ACT_SILU; ++activation)
        for (const auto& [adapter, own_x] : {std::pair(false, false), std::pair(true, false), std::pair(true, true)}) {
          const Case r{backend, dtype, activation, adapter, own_x, {}};
          const auto shadow = shadow_of();
          const auto with = run(r, shadow), without = run(r, nullptr);
          for (std::size_t i = 0; i < with.size(); ++i) EXPECT_TRUE(torch::equal(with[i], without[i])) << backend << " " << i;
          const ShadowSummary s = shadow->summary();
          EXPECT_EQ(s.calls, 2u);
          EXPECT_LE(s.margin, 1) << backend << " " << s.tensor << " activation " << activation;
          if (std::string(backend) == "reference") {
            EXPECT_EQ(s.margin, 0);
          }
          const std::uint64_t outputs = static_cast<std::uint64_t>(
              rows * out * (activation == SQ_ACT_NONE ? 1 : 2) + rows * in + (adapter ? rows * rank + rank * in + out * rank : 0) +
              (own_x ? rows * in : 0));
          EXPECT_EQ(s.elements, outputs) << "every output is compared";
        }
}

std::string refusal(const Case& r, const std::shared_ptr<Shadow>& shadow, Problem* problem = nullptr) {
  try {
    run(r, shadow);
  } catch (const Error& e) {
    if (problem) *problem = e.problem();
    return std::string(code_name(e.code()));
  }
  return "";
}

TEST(Shadow, AChangedNumberOfAMutantIsNamedAndDumped) {
  // A process that has used a GPU cannot be forked: each child runs this test from its start, and finds the folder in the environment.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  setenv("SQUAREQ_SHADOW_TEST_FOLDER", (std::filesystem::temp_directory_path() / ("squareq-shadow-" + std::to_string(getpid()))).c_str(), 0);
  const std::filesystem::path folder = std::getenv("SQUAREQ_SHADOW_TEST_FOLDER");
  std::filesystem::create_directories(folder);
  for (const auto& [pass, tensor] : {std::pair("forward", "y"), std::pair("backward", "dx")}) {
    setenv("SQUAREQ_ONE_CHANGE", (std::string(pass) + ":layer:1").c_str(), 1);
    // The backend reads its wish once, when it is loaded: each needs a process of its own.
    EXPECT_EXIT(
        {
          Problem p;
          Case r;
          r.backend = "one_change";
          const bool named = refusal(r, shadow_of(folder), &p) == "NUM_BOUND" && p.layer == "layer" && p.tensor == tensor &&
                             p.message.starts_with(std::string("step 3: ") + pass + " of layer 'layer': " + tensor + "[0, 0] is ") &&
                             p.message.find("repro: the command") != std::string::npos;
          if (!named) std::fprintf(stderr, "%s\n", p.message.c_str());
          std::exit(named ? 0 : 1);
        },
        testing::ExitedWithCode(0), "");
    const std::string stem = std::string("step-3.layer.") + pass;
    EXPECT_NE(SafetensorsFile::open(folder / (stem + ".inputs.safetensors")).header().find("qweight"), nullptr);
    const auto got = SafetensorsFile::open(folder / (stem + ".backend.safetensors")).read_all(tensor);
    EXPECT_NE(got, SafetensorsFile::open(folder / (stem + ".shadow.safetensors")).read_all(tensor));
  }
  unsetenv("SQUAREQ_ONE_CHANGE"), unsetenv("SQUAREQ_SHADOW_TEST_FOLDER");
  std::filesystem::remove_all(folder);
}

TEST(Shadow, RefusesWhatCannotShadow) {
  ShadowOptions options;
  options.backend = "nobody";
  EXPECT_THROW(Shadow(options, 1u), Error);
  options.backend = "reference";
  options.dump = "/nowhere/at/all";
  EXPECT_THROW(Shadow(options, 1u), Error);
}

}  // namespace
}  // namespace squareq::training
