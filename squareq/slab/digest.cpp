#include "squareq/slab/digest.hpp"

#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <new>

namespace squareq {
namespace {

constexpr char hex_digits[] = "0123456789abcdef";
constexpr std::uint64_t piece_bytes = 4u << 20;

void require(bool good, const char* what) {
  if (!good) throw Error(Code::INTERNAL, what);
}

}  // namespace

std::uint64_t xxh3(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }

std::string digest_hex(std::uint64_t digest) {
  std::string hex(16, '0');
  for (int i = 15; i >= 0; --i, digest >>= 4) hex[static_cast<std::size_t>(i)] = hex_digits[digest & 15];
  return hex;
}

std::optional<std::uint64_t> parse_digest(std::string_view hex) {
  if (hex.size() != 16) return std::nullopt;
  std::uint64_t digest = 0;
  for (const char c : hex) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'a' || c > 'f')) return std::nullopt;
    digest = (digest << 4) | static_cast<std::uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  return digest;
}

struct Xxh3::State {
  XXH3_state_t* state = XXH3_createState();
  ~State() { XXH3_freeState(state); }
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) {
  if (!state_->state) throw std::bad_alloc();
  XXH3_64bits_reset(state_->state);
}
Xxh3::Xxh3(Xxh3&&) noexcept = default;
Xxh3& Xxh3::operator=(Xxh3&&) noexcept = default;
Xxh3::~Xxh3() = default;
void Xxh3::update(const void* data, std::size_t bytes) { XXH3_64bits_update(state_->state, data, bytes); }
std::uint64_t Xxh3::digest() const { return XXH3_64bits_digest(state_->state); }

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  if (!state_->context) throw std::bad_alloc();
  require(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1, "the crypto library offers no SHA-256");
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::update(const void* data, std::size_t bytes) {
  require(EVP_DigestUpdate(state_->context, data, bytes) == 1, "SHA-256 failed");
}

std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  require(EVP_DigestFinal_ex(state_->context, digest, &size) == 1, "SHA-256 failed");
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += hex_digits[digest[i] >> 4];
    text += hex_digits[digest[i] & 15];
  }
  return text;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

std::uint64_t tensor_digest(const SafetensorsFile& file, const TensorRecord& tensor) {
  Xxh3 hash;
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min(piece_bytes, tensor.bytes())));
  for (std::uint64_t at = 0; at < tensor.bytes(); at += piece.size()) {
    const std::uint64_t bytes = std::min<std::uint64_t>(piece.size(), tensor.bytes() - at);
    file.read(tensor, at, piece.data(), bytes);
    hash.update(piece.data(), static_cast<std::size_t>(bytes));
  }
  return hash.digest();
}

}  // namespace squareq
