#include "bench/cuda/shapes.hpp"

#include "bench/cuda/arguments.hpp"
#include "squareq/error.hpp"

namespace squareq::bench {
namespace {

// FLUX.1: query, key, value and output; the three in one (BFL); up, down; what a single block reads and writes in one (BFL).
constexpr Shape kFlux1[] = {{3072, 3072}, {3072, 9216}, {3072, 12288}, {12288, 3072}, {3072, 21504}, {15360, 3072}};
// SDXL's deeper level, which holds 60 of its 70 transformer blocks: attention, up (both halves of the gate), down.
constexpr Shape kSdxl[] = {{1280, 1280}, {1280, 10240}, {5120, 1280}};
// FLUX.2-dev, as FLUX.1.
constexpr Shape kFlux2[] = {{6144, 6144}, {6144, 18432}, {6144, 36864}, {18432, 6144}, {6144, 55296}, {24576, 6144}};
// SD3 and SD3.5-medium (1536 wide), SD3.5-large (2432): attention, its three in one, up, down.
constexpr Shape kSd3[] = {{1536, 1536}, {1536, 4608}, {1536, 6144}, {6144, 1536}, {2432, 2432}, {2432, 7296}, {2432, 9728}, {9728, 2432}};
constexpr ModelShapes kModels[] = {{"flux1", kFlux1}, {"sdxl", kSdxl}, {"flux2", kFlux2}, {"sd3", kSd3}};

constexpr std::int64_t kLongest = 1 << 20;

}  // namespace

std::span<const ModelShapes> model_shapes() { return kModels; }

std::vector<NamedShape> shapes_of(const std::vector<std::string>& models) {
  std::vector<NamedShape> shapes;
  for (const std::string& name : models) {
    const std::size_t before = shapes.size();
    std::string known;
    for (const ModelShapes& model : kModels) {
      known += (known.empty() ? "" : ", ") + std::string(model.name);
      if (model.name == name)
        for (const Shape& shape : model.shapes) shapes.push_back({name, shape});
    }
    if (shapes.size() == before) throw Error(Code::CFG_VALUE, "--models names '" + name + "'; known are " + known);
  }
  return shapes;
}

NamedShape parse_shape(std::string_view text) {
  const std::size_t cross = text.find('x');
  if (cross == std::string_view::npos) throw Error(Code::CFG_VALUE, "a shape is '" + std::string(text) + "', must be K x N as in 3072x9216");
  const Shape shape{parse_number("a shape's K", text.substr(0, cross), 16, kLongest), parse_number("a shape's N", text.substr(cross + 1), 16, kLongest)};
  if (shape.k % 16 != 0 || shape.n % 16 != 0) throw Error(Code::CFG_VALUE, "a shape is '" + std::string(text) + "', K and N must be multiples of 16");
  for (const ModelShapes& model : kModels)
    for (const Shape& known : model.shapes)
      if (known.k == shape.k && known.n == shape.n) return {std::string(model.name), shape};
  return {"other", shape};
}

}  // namespace squareq::bench
