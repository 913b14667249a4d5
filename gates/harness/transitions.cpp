#include "gates/harness/transitions.hpp"

#include <set>

#include "gates/harness/trial.hpp"

namespace squareq::gates {
namespace {

using Edge = std::pair<std::int32_t, std::int32_t>;

const std::set<Edge> normal_edges = {{SQ_UNLOADED, SQ_HOST_STAGED}, {SQ_HOST_STAGED, SQ_PREFETCHING}, {SQ_PREFETCHING, SQ_GPU_READY}, {SQ_GPU_READY, SQ_EVICTING},
                                     {SQ_GPU_READY, SQ_GPU_FREEING}, {SQ_EVICTING, SQ_HOST_STAGED}, {SQ_EVICTING, SQ_UNLOADED}, {SQ_GPU_FREEING, SQ_UNLOADED}};
const std::set<Edge> failure_edges = {{SQ_HOST_STAGED, SQ_UNLOADED}, {SQ_PREFETCHING, SQ_UNLOADED}};

}  // namespace

std::string residency_name(std::int32_t state) {
  static const char* const names[] = {"unloaded", "host_staged", "prefetching", "gpu_ready", "evicting", "gpu_freeing"};
  return state >= 0 && state < 6 ? names[state] : "state " + std::to_string(state);
}

sq_host Transitions::host() {
  auto host = sized<sq_host>();
  host.threads = 2;
  host.deterministic = 1;
  host.user = this;
  host.on_transition = record;
  return host;
}

void Transitions::record(void* user, std::uint64_t session, std::uint32_t block, std::int32_t from, std::int32_t to) {
  auto& self = *static_cast<Transitions*>(user);
  const std::lock_guard lock(self.mutex_);
  self.entries_.push_back({session, block, from, to});
  self.states_[{session, block}] = to;
}

std::vector<Transitions::Entry> Transitions::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

std::int32_t Transitions::state(std::uint64_t session, std::uint32_t block) const {
  const std::lock_guard lock(mutex_);
  const auto found = states_.find({session, block});
  return found == states_.end() ? static_cast<std::int32_t>(SQ_UNLOADED) : found->second;
}

void Transitions::check(bool failures) const {
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::int32_t> last;
  for (const Entry& e : entries()) {
    const std::string what = "block " + std::to_string(e.block) + ": " + residency_name(e.from) + " -> " + residency_name(e.to);
    const auto [at, first] = last.try_emplace({e.session, e.block}, static_cast<std::int32_t>(SQ_UNLOADED));
    require(at->second == e.from, what + " is reported, but the block was " + residency_name(at->second));
    require(normal_edges.contains({e.from, e.to}) || (failures && failure_edges.contains({e.from, e.to})), what + " is no transition of the table");
    at->second = e.to;
  }
}

}  // namespace squareq::gates
