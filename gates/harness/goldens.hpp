// The published goldens (vectors/slab-v2-goldens.json), made with the Python builder's arithmetic and checked against it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace squareq::gates {

const nlohmann::json& goldens();

/// "3f800000" -> 1.0f and back.
float float_of_hex(const std::string& hex);
std::string hex_of_float(float value);
/// A row-major matrix of float bit patterns, or of plain numbers.
std::vector<double> matrix_of_hex(const nlohmann::json& rows);
std::vector<double> matrix_of_numbers(const nlohmann::json& rows);

/// SHA-256 as 64 lower-case hex digits.
std::string sha256_hex(const void* data, std::size_t bytes);

}  // namespace squareq::gates
