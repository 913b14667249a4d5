// Any bytes as a slab and its manifest: 4 bytes length of the manifest, the manifest, the slab's file. What is accepted is also accepted
// by the official package's rules, opens, and every layer's tensors are where and what the manifest says.
#include <string_view>

#include "gates/fuzz/common.hpp"
#include "gates/fuzz/official_rules.hpp"
#include "squareq/slab/dtype.hpp"
#include "squareq/slab/slab.hpp"

using namespace squareq;
using fuzz::require;

namespace {

bool is(const TensorRecord* t, FileDtype dtype, const std::vector<std::uint64_t>& shape) {
  return t && t->dtype == dtype && t->shape == shape;
}

void check_accepted(const SlabPaths& paths, std::string_view slab_bytes) {
  require(fuzz::official_accepts(slab_bytes));
  const Slab slab = Slab::open(paths.slab);
  require(slab.layer_count() > 0 && slab.layer_count() == slab.manifest().layers.size());
  std::size_t used = 0;
  for (std::size_t i = 0; i < slab.layer_count(); ++i) {
    const ManifestLayer& layer = slab.layer(i);
    const LayerTensors& t = slab.tensors(i);
    const std::uint64_t rows = layer.orig_shape[0];
    require(is(t.qweight, FileDtype::I8, {rows, layer.packed_shape[1]}) && is(t.scale, FileDtype::F32, {rows}) &&
            is(t.zero_point, FileDtype::F32, {rows}));
    require(!t.bias || is(t.bias, FileDtype::F32, {rows}));
    require(slab.find_layer(layer.canonical_name) == i);
    used += 3 + (t.bias != nullptr);
  }
  require(used == slab.file().header().tensors.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::uint64_t length = fuzz::take_number(input, 4);
  const std::string_view manifest = input.substr(0, static_cast<std::size_t>(length < input.size() ? length : input.size()));
  const std::string_view slab = input.substr(manifest.size());
  fuzz::write("pair.manifest.json", manifest);
  const SlabPaths paths = SlabPaths::resolve(fuzz::write("pair.safetensors", slab));
  ValidateOptions options;
  options.threads = 1;
  const Report whole = validate(paths, options);
  fuzz::require_report(whole);
  options.quick = true;
  const Report quick = validate(paths, options);
  // The quick look sees less, never something else.
  require(quick.ok() || !whole.ok());
  if (whole.ok()) check_accepted(paths, slab);
  if (validate_container(paths.slab).ok()) require(fuzz::official_accepts(slab));
  return 0;
}
