// The V2 manifest: `NAME.manifest.json` beside the slab (spec/20-slab-format.md section 3, spec/schema/manifest.schema.json).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "squareq/slab/report.hpp"

namespace squareq {

inline constexpr std::string_view quant_version_v2 = "squareq_bp8_v2";
inline constexpr std::int64_t kernel_abi_version = 1;
inline constexpr std::string_view slab_runtime_version = "0.1.0";  ///< of the V2 contract, not of this program

/// One quantized linear layer. Shapes are [out, in] and [out, padded in].
struct ManifestLayer {
  std::string canonical_name;
  std::string qweight_key, scale_key, zero_point_key;
  std::optional<std::string> bias_key;
  std::array<std::uint64_t, 2> orig_shape{};
  std::array<std::uint64_t, 2> packed_shape{};
  std::uint64_t pad_k = 64;  ///< the alignment of a row in elements, not the number of padding columns
  std::optional<std::string> block_id;

  bool operator==(const ManifestLayer&) const = default;
};

struct Manifest {
  std::string model_signature;  ///< 16 lower-case hex digits
  std::string architecture_id = "unknown";
  std::vector<ManifestLayer> layers;

  std::uint64_t total_qweight_bytes() const;  ///< sum of packed_shape products; the caller's shapes must not overflow
  bool operator==(const Manifest&) const = default;
};

/// A layer as the Python V2 builder names it: keys NAME.qweight, .scale, .zero_point and, with a bias, .bias; padded_in follows
/// from pack_k (<= 1: none). CALL_VALUE when that overflows.
ManifestLayer make_layer(std::string canonical_name, std::uint64_t out_features, std::uint64_t in_features, std::uint64_t pack_k, bool bias);

/// Sorts layers by canonical_name, bytewise.
void sort_layers(Manifest& manifest);

/// The exact text that the Python V2 builder writes: json.dumps(indent=2), ASCII only, no newline at the end. Layers as they stand.
std::string manifest_text(const Manifest& manifest);

/// What a text said, bad layers included, so that the slab can still be checked against it.
struct ParsedManifest {
  /// The 15 keys of a layer in written order.
  enum Field : std::uint32_t {
    canonical_name, qweight_key, scale_key, zero_point_key, bias_key, orig_shape, packed_shape, pad_k, quant_bits, quant_scheme, quant_axis,
    dtype_qweight, dtype_scale, dtype_zero_point, block_id, layer_keys
  };
  struct Layer {
    ManifestLayer fields;
    std::uint32_t good = 0;  ///< bit `Field`: the key was present, of its type and inside its domain
    bool has(Field field) const { return good & (1u << field); }
  };

  std::string model_signature, architecture_id;  ///< empty when absent or malformed
  std::vector<Layer> layers;
  std::vector<std::string> claimed;  ///< tensor keys and names of layers too broken to keep
  bool layers_known = false;         ///< `layers` was an array that could be read to its end
};

/// Parses untrusted text. Every problem of the text and its fields (MF_JSON .. MF_LAYER_DUP) goes to `report` under `file`.
/// nullopt: nothing below the text level can be said (MF_JSON, or a root that is no object).
std::optional<ParsedManifest> parse_manifest(std::string_view text, Report& report, const std::string& file = {});

/// The manifest of a parse without problems.
Manifest to_manifest(ParsedManifest parsed);

/// True for a name that may stand in a slab: 1..512 bytes of UTF-8, no control or bidi control characters, no DEL, no `/` or `\`,
/// no empty segment between dots.
bool is_slab_name(std::string_view name);

}  // namespace squareq
