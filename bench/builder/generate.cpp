#include "bench/builder/generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "squareq/architecture/architecture.hpp"
#include "squareq/slab/writer.hpp"

namespace squareq::bench {
namespace {

constexpr std::uint64_t chunk_elements = 4u << 20;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Random {
  std::uint64_t state;
  std::uint64_t operator()() {
    std::uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
};

/// 65,536 draws of a normal (Box-Muller), as bf16: indexing it with 16 random bits is cheap enough for 12e9 elements.
std::vector<std::uint16_t> normal_table(Random& random) {
  std::vector<std::uint16_t> table(65536);
  const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };
  for (std::uint16_t& value : table) {
    const double z = std::sqrt(-2 * std::log(uniform())) * std::cos(2 * 3.14159265358979323846 * uniform());
    value = static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(static_cast<float>(0.02 * z)) + 0x8000u) >> 16);
  }
  return table;
}

std::uint64_t elements(const TensorShape& t) {
  std::uint64_t n = 1;
  for (const std::uint64_t dim : t.shape) n *= dim;
  return n;
}

}  // namespace

std::uint64_t generate(const std::string& id, const std::filesystem::path& folder, unsigned shards, std::uint64_t seed) {
  const Architecture model = published_architecture(id);
  std::uint64_t total = 0;
  for (const TensorShape& t : model.tensors()) total += elements(t) * 2;
  std::vector<std::vector<TensorSpec>> parts(shards);
  std::uint64_t at = 0;
  for (const TensorShape& t : model.tensors()) {
    parts[std::min<std::uint64_t>(at * shards / total, shards - 1)].push_back({t.name, FileDtype::BF16, t.shape});
    at += elements(t) * 2;
  }

  Random random{seed};
  const std::vector<std::uint16_t> table = normal_table(random);
  std::vector<std::uint16_t> chunk(chunk_elements);
  nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", nlohmann::ordered_json::object()}};
  for (unsigned part = 0; part < shards; ++part) {
    const std::string name = shards == 1 ? "diffusion_pytorch_model.safetensors"
                                         : fmt::format("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", part + 1, shards);
    SafetensorsWriter writer(folder / name, parts[part], {{"format", "pt"}});
    for (const TensorSpec& t : parts[part]) {
      index["weight_map"][t.name] = name;
      const std::uint64_t count = elements({t.name, t.shape});
      for (std::uint64_t done = 0; done < count; done += chunk_elements) {
        const std::uint64_t n = std::min(chunk_elements, count - done);
        for (std::uint64_t i = 0; i < n; i += 4) {
          const std::uint64_t bits = random();
          for (std::uint64_t k = 0; k < 4 && i + k < n; ++k) chunk[i + k] = table[(bits >> (16 * k)) & 0xFFFF];
        }
        writer.write(t.name, done * 2, chunk.data(), n * 2);
      }
    }
    writer.commit();
  }
  if (shards > 1) write_text_file(folder / "diffusion_pytorch_model.safetensors.index.json", index.dump(2));
  return total;
}

}  // namespace squareq::bench
