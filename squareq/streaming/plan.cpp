#include "squareq/streaming/plan.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <tuple>

#include "squareq/error.hpp"
#include "squareq/streaming/bytes.hpp"

namespace squareq::streaming {
namespace {

__extension__ typedef unsigned __int128 Wide;  // bytes times a count

constexpr std::uint32_t kFewestSlots = 2;  // one computes while one loads
constexpr std::uint32_t kMostSlots = 4;    // beyond four, residents of their own size use the bytes better
constexpr std::uint64_t kNoBound = std::numeric_limits<std::uint64_t>::max();

std::uint64_t sum(const std::vector<std::uint64_t>& bytes) { return std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0}); }

std::uint64_t other_bytes(const PlanRequest& request) {
  std::uint64_t bytes = 0;
  for (const Consumer& consumer : request.others) bytes += consumer.bytes;
  return bytes;
}

/// Visits of a training step (or of a forward pass) over all blocks, with their compute times.
std::vector<TimedVisit> timed_order(const Rates& rates, bool backward) {
  std::vector<TimedVisit> order;
  const auto n = static_cast<std::uint32_t>(rates.forward_seconds.size());
  for (std::uint32_t i = 0; i < n; ++i) order.push_back({i, rates.forward_seconds[i]});
  if (backward)
    for (std::uint32_t i = n; i-- > 0;) order.push_back({i, rates.backward_seconds[i]});
  return order;
}

PassTraffic steady_traffic(const Schedule& schedule, const std::vector<std::uint64_t>& block_bytes) {
  SlotTags tags;
  replay(schedule, block_bytes, tags);
  return replay(schedule, block_bytes, tags);
}

std::string amount(std::uint64_t bytes) { return std::to_string(bytes) + " bytes (" + bytes_text(bytes) + ")"; }

void require_fit(const PlanRequest& request, std::uint64_t weights, const std::string& what) {
  const std::uint64_t all = weights + other_bytes(request);
  if (request.budget && weights > request.budget)
    throw Error(Code::CFG_BUDGET, "budget of " + amount(request.budget) + " cannot hold the weights: " + what + " needs " + amount(weights) + ", of which " +
                                      amount(request.outside_bytes) + " are linears outside blocks");
  if (request.vram && all > request.vram) {
    std::string parts;
    for (const Consumer& consumer : request.others) parts += ", " + consumer.name + " " + bytes_text(consumer.bytes);
    throw Error(Code::CFG_BUDGET, "vram of " + amount(request.vram) + " is too small: " + what + " needs " + amount(all) + " (weights " +
                                      bytes_text(weights) + parts + ")");
  }
}

/// A choice of slots and streamed blocks, without what follows from it.
struct Choice {
  std::uint32_t slots = 0;
  std::vector<std::uint32_t> streamed;
};

Plan complete(const PlanRequest& request, const Choice& choice) {
  Plan plan;
  plan.streamed = choice.streamed;
  plan.slots = static_cast<std::uint32_t>(std::min<std::size_t>(choice.slots, choice.streamed.size()));
  std::size_t next = 0;
  for (std::uint32_t i = 0; i < request.block_bytes.size(); ++i) {
    if (next < plan.streamed.size() && plan.streamed[next] == i) {
      ++next;
      plan.slot_bytes = std::max(plan.slot_bytes, request.block_bytes[i]);
      plan.host_bytes += request.keep_host_master ? request.block_bytes[i] : 0;
    } else {
      plan.residents.push_back(i);
      plan.resident_bytes += request.block_bytes[i];
    }
  }
  plan.outside_bytes = request.outside_bytes;
  plan.other_bytes = other_bytes(request);
  plan.train = train_schedule(plan.streamed, plan.slots);
  plan.forward = forward_schedule(plan.streamed, plan.slots);
  plan.train_traffic = steady_traffic(plan.train, request.block_bytes);
  plan.forward_traffic = steady_traffic(plan.forward, request.block_bytes);
  if (request.rates) {
    plan.train_time = predict(plan.train, request.block_bytes, timed_order(*request.rates, true), request.rates->link_bytes_per_second);
    plan.forward_time = predict(plan.forward, request.block_bytes, timed_order(*request.rates, false), request.rates->link_bytes_per_second);
  }
  return plan;
}

std::vector<std::uint32_t> every_block(const PlanRequest& request) {
  std::vector<std::uint32_t> blocks(request.block_bytes.size());
  std::iota(blocks.begin(), blocks.end(), 0u);
  return blocks;
}

/// What plans are compared by: time where it is known, then bytes moved, then device bytes, then slots.
std::tuple<double, std::uint64_t, std::uint64_t, std::uint32_t> cost(const PlanRequest& request, const Plan& plan) {
  const auto& time = request.training ? plan.train_time : plan.forward_time;
  return {time ? time->pass_seconds : 0.0, (request.training ? plan.train_traffic : plan.forward_traffic).bytes, plan.session_bytes(), plan.slots};
}

Plan search(const PlanRequest& request, std::uint64_t available) {
  const std::set<std::uint64_t> sizes(request.block_bytes.begin(), request.block_bytes.end());
  const std::uint64_t fractions = 4 * request.block_bytes.size();
  std::optional<Plan> best;
  for (const std::uint64_t largest : sizes) {
    std::uint64_t eligible = 0;
    for (const std::uint64_t bytes : request.block_bytes) eligible += bytes <= largest ? bytes : 0;
    std::vector<std::uint32_t> previous;
    for (std::uint64_t k = 1; k <= fractions; ++k) {
      const auto target = static_cast<std::uint64_t>(Wide{eligible} * k / fractions);
      std::vector<std::uint32_t> streamed = spread_streamed(request.block_bytes, target, largest);
      if (streamed.empty() || streamed == previous) continue;
      previous = streamed;
      std::uint64_t slot = 0, moved = 0;
      for (const std::uint32_t i : streamed) {
        slot = std::max(slot, request.block_bytes[i]);
        moved += request.block_bytes[i];
      }
      const std::uint64_t resident = sum(request.block_bytes) - moved;
      for (std::uint32_t slots = kFewestSlots; slots <= kMostSlots && slots < streamed.size(); ++slots) {
        if (resident + slots * slot > available) break;
        Plan plan = complete(request, {slots, streamed});
        if (!best || cost(request, plan) < cost(request, *best)) best = std::move(plan);
      }
    }
  }
  if (!best) throw Error(Code::INTERNAL, "no plan found within " + amount(available) + " although the minimum fits");
  return std::move(*best);
}

}  // namespace

std::uint64_t minimum_weight_bytes(const PlanRequest& request) {
  const std::uint64_t all = sum(request.block_bytes);
  std::uint64_t least = all;
  for (const std::uint64_t slot : request.block_bytes) {
    std::uint64_t larger = 0, streamed = 0;
    for (const std::uint64_t bytes : request.block_bytes) {
      larger += bytes > slot ? bytes : 0;
      streamed += bytes <= slot ? 1 : 0;
    }
    if (streamed > kFewestSlots) least = std::min(least, larger + kFewestSlots * slot);
  }
  return least + request.outside_bytes;
}

Plan make_plan(const PlanRequest& request) {
  const std::size_t n = request.block_bytes.size();
  if (request.rates && (request.rates->forward_seconds.size() != n || request.rates->backward_seconds.size() != n))
    throw Error(Code::CFG_VALUE, "rates are given for " + std::to_string(request.rates->forward_seconds.size()) + " forward and " +
                                     std::to_string(request.rates->backward_seconds.size()) + " backward visits, the model has " + std::to_string(n) + " blocks");
  if (request.resident_blocks) {
    const Plan plan = request.resident_blocks >= n ? complete(request, {}) : complete(request, {request.resident_blocks, every_block(request)});
    require_fit(request, plan.weight_bytes(), std::to_string(request.resident_blocks) + " resident blocks");
    return plan;
  }
  require_fit(request, minimum_weight_bytes(request), "the least that works");
  const std::uint64_t by_budget = request.budget ? request.budget - request.outside_bytes : kNoBound;
  const std::uint64_t by_vram = request.vram ? request.vram - request.outside_bytes - other_bytes(request) : kNoBound;
  const std::uint64_t available = std::min(by_budget, by_vram);
  if (sum(request.block_bytes) <= available) return complete(request, {});
  return search(request, available);
}

}  // namespace squareq::streaming
