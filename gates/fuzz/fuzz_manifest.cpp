// Any bytes as a manifest. What is accepted without a problem is written back in canonical form and reads to the same thing.

#include <cstdint>
#include <string_view>

#include "gates/fuzz/common.hpp"
#include "squareq/slab/manifest.hpp"

using namespace squareq;
using fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Report report;
  auto parsed = parse_manifest({reinterpret_cast<const char*>(data), size}, report, "fuzz");
  require(parsed.has_value() || !report.ok());
  fuzz::require_report(report);
  if (!parsed || !report.ok()) return 0;
  const Manifest manifest = to_manifest(std::move(*parsed));
  require(!manifest.layers.empty());
  for (const ManifestLayer& l : manifest.layers) {
    require(is_slab_name(l.canonical_name) && l.packed_shape[0] == l.orig_shape[0] && l.pad_k >= 1);
    require(l.packed_shape[1] % l.pad_k == 0 && l.packed_shape[1] - l.orig_shape[1] < l.pad_k);
  }
  Report again;
  auto reread = parse_manifest(manifest_text(manifest), again, "fuzz");
  require(reread && again.ok() && again.warnings.empty() && to_manifest(std::move(*reread)) == manifest);
  return 0;
}
