// Digests: XXH3-64 (seed 0) against corruption, SHA-256 for identity.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "squareq/slab/safetensors.hpp"

namespace squareq {

std::uint64_t xxh3(const void* data, std::size_t bytes);

/// 16 lower-case hex digits, most significant first (XXH canonical form).
std::string digest_hex(std::uint64_t digest);
/// nullopt unless exactly 16 lower-case hex digits.
std::optional<std::uint64_t> parse_digest(std::string_view hex);

/// XXH3-64 over pieces.
class Xxh3 {
 public:
  Xxh3();
  Xxh3(Xxh3&&) noexcept;
  Xxh3& operator=(Xxh3&&) noexcept;
  ~Xxh3();
  void update(const void* data, std::size_t bytes);
  std::uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// SHA-256 over pieces.
class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();
  void update(const void* data, std::size_t bytes);
  std::string hex();  ///< 64 lower-case digits; ends the computation

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view bytes);

/// XXH3-64 of a tensor's bytes, read in pieces.
std::uint64_t tensor_digest(const SafetensorsFile& file, const TensorRecord& tensor);

}  // namespace squareq
