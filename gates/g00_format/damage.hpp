// Ways to spoil the golden pair `three_layers`, one field or byte at a time.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "gates/g00_format/g00_format.hpp"

namespace squareq::gates::g00 {

using Damage = std::function<void(Pair&)>;

/// Bytes of the slab's JSON header, padding included.
std::size_t header_bytes(const Pair& p);
/// Replaces the header's JSON text and its length; padded to 8 bytes unless the text is to stand as it is.
void set_header(Pair& p, std::string text, bool padded = true);

/// Replaces the first `from` of the header.
Damage header_text(const std::string& from, const std::string& to);
/// Edits the manifest as JSON and writes it back in the golden's style.
Damage manifest(const std::function<void(nlohmann::ordered_json&)>& edit);
/// A key of the manifest's top level.
Damage top(const std::string& key, const nlohmann::ordered_json& value);
/// A key of layer 1: blocks.2.proj, 3 x 5 padded to 8, with bias.
Damage layer(const std::string& key, const nlohmann::ordered_json& value);
/// Overwrites bytes of a tensor's data.
Damage data(const std::string& tensor, std::size_t offset, const std::string& bytes);
/// The four bytes of an F32.
std::string f32(float value);

}  // namespace squareq::gates::g00
