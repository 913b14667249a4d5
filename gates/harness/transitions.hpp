// What an implementation says about its blocks through on_transition, and whether the story holds together (spec/60-streaming.md).
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "squareq/contract.h"

namespace squareq::gates {

/// Records every transition of every session of one host. Must outlive the instance. Thread-safe.
class Transitions {
 public:
  struct Entry {
    std::uint64_t session = 0;
    std::uint32_t block = 0;
    std::int32_t from = 0, to = 0;
  };

  /// For Trial::instance(): a host whose callback writes into this record.
  sq_host host();

  std::vector<Entry> entries() const;
  /// The state in which the last transition of that block ended; `unloaded` where there was none.
  std::int32_t state(std::uint64_t session, std::uint32_t block) const;
  /// Fails at the first entry that does not start where the block's last one ended, or that is no edge of the table. `failures`: whether
  /// the two edges of failure and cancellation are allowed as well.
  void check(bool failures) const;

 private:
  static void record(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to);

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::int32_t> states_;
};

std::string residency_name(std::int32_t state);

}  // namespace squareq::gates
