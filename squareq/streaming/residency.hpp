// Residency states of a block, the legal transitions between them, and a recorder that checks them (spec/60-streaming.md).
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squareq/contract.h"

namespace squareq::streaming {

inline constexpr std::int32_t kResidencyStates = 6;

/// "unloaded", "host_staged", "prefetching", "gpu_ready", "evicting", "gpu_freeing"; "unknown state" for any other value.
std::string_view residency_name(std::int32_t state);

/// One of the 8 edges that normal work takes.
bool normal_edge(std::int32_t from, std::int32_t to);

/// host_staged -> unloaded or prefetching -> unloaded: a load that failed or was cancelled.
bool failure_edge(std::int32_t from, std::int32_t to);

/// Either of them: 10 of the 36 ordered pairs.
bool legal_edge(std::int32_t from, std::int32_t to);

struct Transition {
  std::uint64_t session = 0;
  std::uint32_t block = 0;
  std::int32_t from = 0;
  std::int32_t to = 0;
};

/// Receives sq_host::on_transition. Keeps every transition in order of arrival, and a sentence for each that is illegal or does not
/// start where the block was. Every block of a session starts unloaded. Thread-safe.
class TransitionRecorder {
 public:
  /// The function for sq_host::on_transition; `user` is the recorder.
  static void record(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to);

  void add(const Transition& transition);
  std::vector<Transition> transitions() const;
  std::vector<std::string> violations() const;
  std::int32_t state(std::uint64_t session, std::uint32_t block) const;

 private:
  mutable std::mutex mutex_;
  std::vector<Transition> transitions_;
  std::vector<std::string> violations_;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::int32_t> states_;
};

}  // namespace squareq::streaming
