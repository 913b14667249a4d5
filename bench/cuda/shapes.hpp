// The linear layers of the models that squareq knows, as products: what stands inside their blocks and sees tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace squareq::bench {

/// A weight [n, k]: k features in, n out.
struct Shape {
  std::int64_t k = 0, n = 0;
};

struct ModelShapes {
  std::string_view name;  // as --models takes it
  std::span<const Shape> shapes;
};

/// flux1, sdxl, flux2, sd3. Modulation layers, which see one vector per sample, and the few layers outside the blocks are left out.
std::span<const ModelShapes> model_shapes();

struct NamedShape {
  std::string model;
  Shape shape;
};

/// All shapes of the named models. Throws CFG_VALUE naming an unknown one and the known ones.
std::vector<NamedShape> shapes_of(const std::vector<std::string>& models);

/// "3072x9216" (K x N), under the model's name that has this layer, else "other". Throws CFG_VALUE: both must be positive multiples of 16, which
/// cuBLASLt and the kernels' fast paths ask for.
NamedShape parse_shape(std::string_view text);

}  // namespace squareq::bench
