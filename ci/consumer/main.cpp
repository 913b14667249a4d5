// Writes a safetensors file with the installed library, reads it back, and quantizes one row through an installed backend.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "squareq/contract.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/slab/writer.hpp"

int main(int argc, char** argv) {
  using namespace squareq;
  const std::filesystem::path path = std::filesystem::path(argc > 1 ? argv[1] : ".") / "consumer.safetensors";
  const std::array<float, 4> weights{1.0f, -0.5f, 0.25f, 127.0f};
  SafetensorsWriter writer(path, {{"w", FileDtype::F32, {1, 4}}}, {});
  writer.write("w", 0, weights.data(), sizeof weights);
  writer.commit();

  std::array<float, 4> read{};
  const SafetensorsFile file = SafetensorsFile::open(path);
  file.read(*file.header().find("w"), 0, read.data(), sizeof read);

  const Context context(Implementation::load(find_backend("cpu")), sized<sq_host>());
  std::array<std::int8_t, 4> qweight{};
  float scale = 0, zero_point = 1;
  const sq_part out[] = {{"qweight", make_tensor(qweight.data(), SQ_I8, {1, 4})},
                         {"scale", make_tensor(&scale, SQ_F32, {1})},
                         {"zero_point", make_tensor(&zero_point, SQ_F32, {1})}};
  const sq_tensor w = make_tensor(read.data(), SQ_F32, {1, 4});
  auto args = sized<sq_quantize_args>();
  args.pack_k = 1;
  args.format = "bp8_v2";
  args.name = "w";
  args.w = &w;
  args.out = out;
  args.out_count = 3;
  call(context.linear().quantize, context, args);

  // The golden row "integers_scale1": amax 127 gives scale 1; ties go to even.
  const std::array<std::int8_t, 4> expected{1, 0, 0, 127};
  const bool good = qweight == expected && scale == 1.0f && zero_point == 0.0f;
  std::printf("consumer: q = %d %d %d %d, scale = %g: %s\n", qweight[0], qweight[1], qweight[2], qweight[3], static_cast<double>(scale), good ? "good" : "WRONG");
  return good ? 0 : 1;
}
