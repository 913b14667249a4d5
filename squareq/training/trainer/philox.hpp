// Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011): every draw of a run is a pure function of (seed, purpose, step,
// index), so there is no generator state to save, resuming is exact, and no libtorch version changes what a seed draws.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>

namespace squareq::training {

/// One Philox 4x32-10 block: 128 bits of counter, 64 bits of key.
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// What a draw is for; streams of different purposes never overlap. Numbers are part of what a seed means: append only.
enum class Purpose : std::uint32_t { order = 1, timestep = 2, noise = 3, caption = 4, init = 5, dropout = 6, validation = 7, sample = 8 };

/// The sequence of numbers that belongs to (seed, purpose, step). Not thread-safe; cheap to make.
class RandomStream {
 public:
  RandomStream(std::uint64_t seed, Purpose purpose, std::uint64_t step)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        step_low_(static_cast<std::uint32_t>(step)),
        high_((static_cast<std::uint32_t>(purpose) << 24) | (static_cast<std::uint32_t>(step >> 32) & 0xFFFFFF)) {}

  std::uint32_t bits() {
    if (at_ == 4) {
      block_ = philox({static_cast<std::uint32_t>(index_), static_cast<std::uint32_t>(index_ >> 32), step_low_, high_}, key_);
      ++index_;
      at_ = 0;
    }
    return block_[at_++];
  }

  std::uint64_t bits64() {
    const std::uint64_t low = bits();
    return low | (std::uint64_t{bits()} << 32);
  }

  /// [0, 1), 24 bits: exact in float.
  float uniform() { return static_cast<float>(bits() >> 8) * 0x1p-24f; }

  /// [0, bound), unbiased (rejection).
  std::uint64_t below(std::uint64_t bound) {
    const std::uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
    for (;;) {
      const std::uint64_t value = bits64();
      if (value < limit) return value % bound;
    }
  }

  /// N(0, 1) by Box and Muller in double; two values per two words, |x| < 6.7.
  float normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double u = (static_cast<double>(bits()) + 0.5) * 0x1p-32;
    const double angle = 2.0 * std::numbers::pi * (static_cast<double>(bits()) * 0x1p-32);
    const double radius = std::sqrt(-2.0 * std::log(u));
    spare_ = static_cast<float>(radius * std::sin(angle));
    has_spare_ = true;
    return static_cast<float>(radius * std::cos(angle));
  }

  void fill_normal(std::span<float> out) {
    for (float& x : out) x = normal();
  }

 private:
  std::array<std::uint32_t, 2> key_;
  std::uint32_t step_low_, high_;
  std::uint64_t index_ = 0;
  std::array<std::uint32_t, 4> block_{};
  unsigned at_ = 4;
  bool has_spare_ = false;
  float spare_ = 0;
};

}  // namespace squareq::training
