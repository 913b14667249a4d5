#include "gates/harness/goldens.hpp"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <bit>
#include <cstdint>

#include "gates/harness/embedded.hpp"

namespace squareq::gates {

const nlohmann::json& goldens() {
  static const nlohmann::json object = nlohmann::json::parse(embedded("vectors/slab-v2-goldens.json"));
  return object;
}

float float_of_hex(const std::string& hex) { return std::bit_cast<float>(static_cast<std::uint32_t>(std::stoul(hex, nullptr, 16))); }

std::string hex_of_float(float value) { return fmt::format("{:08x}", std::bit_cast<std::uint32_t>(value)); }

std::vector<double> matrix_of_hex(const nlohmann::json& rows) {
  std::vector<double> out;
  for (const auto& row : rows)
    for (const auto& item : row) out.push_back(float_of_hex(item.get<std::string>()));
  return out;
}

std::vector<double> matrix_of_numbers(const nlohmann::json& rows) {
  std::vector<double> out;
  for (const auto& row : rows)
    for (const auto& item : row) out.push_back(item.get<double>());
  return out;
}

std::string sha256_hex(const void* data, std::size_t bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_Digest(data, bytes, digest, &length, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

}  // namespace squareq::gates
