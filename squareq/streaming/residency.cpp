#include "squareq/streaming/residency.hpp"

namespace squareq::streaming {

std::string_view residency_name(std::int32_t state) {
  switch (state) {
    case SQ_UNLOADED: return "unloaded";
    case SQ_HOST_STAGED: return "host_staged";
    case SQ_PREFETCHING: return "prefetching";
    case SQ_GPU_READY: return "gpu_ready";
    case SQ_EVICTING: return "evicting";
    case SQ_GPU_FREEING: return "gpu_freeing";
    default: return "unknown state";
  }
}

bool normal_edge(std::int32_t from, std::int32_t to) {
  switch (from) {
    case SQ_UNLOADED: return to == SQ_HOST_STAGED;
    case SQ_HOST_STAGED: return to == SQ_PREFETCHING;
    case SQ_PREFETCHING: return to == SQ_GPU_READY;
    case SQ_GPU_READY: return to == SQ_EVICTING || to == SQ_GPU_FREEING;
    case SQ_EVICTING: return to == SQ_HOST_STAGED || to == SQ_UNLOADED;
    case SQ_GPU_FREEING: return to == SQ_UNLOADED;
    default: return false;
  }
}

bool failure_edge(std::int32_t from, std::int32_t to) { return to == SQ_UNLOADED && (from == SQ_HOST_STAGED || from == SQ_PREFETCHING); }

bool legal_edge(std::int32_t from, std::int32_t to) { return normal_edge(from, to) || failure_edge(from, to); }

void TransitionRecorder::record(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to) {
  static_cast<TransitionRecorder*>(user)->add({session, block, from, to});
}

void TransitionRecorder::add(const Transition& transition) {
  const std::lock_guard lock(mutex_);
  std::int32_t& state = states_.try_emplace({transition.session, transition.block}, SQ_UNLOADED).first->second;
  const auto name = [](std::int32_t s) { return "'" + std::string(residency_name(s)) + "'"; };
  const std::string edge = "block " + std::to_string(transition.block) + ": " + name(transition.from) + " to " + name(transition.to);
  if (!legal_edge(transition.from, transition.to)) violations_.push_back(edge + " is no legal transition");
  if (transition.from != state) violations_.push_back(edge + ", but the block was in " + name(state));
  state = transition.to;
  transitions_.push_back(transition);
}

std::vector<Transition> TransitionRecorder::transitions() const {
  const std::lock_guard lock(mutex_);
  return transitions_;
}

std::vector<std::string> TransitionRecorder::violations() const {
  const std::lock_guard lock(mutex_);
  return violations_;
}

std::int32_t TransitionRecorder::state(std::uint64_t session, std::uint32_t block) const {
  const std::lock_guard lock(mutex_);
  const auto found = states_.find({session, block});
  return found == states_.end() ? SQ_UNLOADED : found->second;
}

}  // namespace squareq::streaming
