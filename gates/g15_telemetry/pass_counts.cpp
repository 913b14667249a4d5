// The numeric guard's counts as a pass reports them.
#include <cmath>

#include "gates/g15_telemetry/g15_telemetry.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/stream.hpp"

namespace squareq::gates::g15 {
namespace {

void guard(Instance& instance, std::int64_t nans, std::int64_t infinite) {
  Guarded x("x", Role::in, SQ_F32, {nans + infinite + 1});
  x.fill([i = std::int64_t{0}, nans, infinite]() mutable { return i++ < nans ? NAN : i <= nans + infinite ? -INFINITY : 1.0; });
  guarded_counts(instance, *x.tensor(), {&x});
}

/// What the guard finds inside a pass is that pass's, all of it and nothing from before.
void run_guard_counts(Trial& trial) {
  Instance& instance = trial.instance("stream");
  std::vector<std::vector<Layer>> layers(1);
  Layer& layer = layers[0].emplace_back("layer", 4, 8, 1, false);
  layer.qweight.fill(1.0);
  layer.scale.fill(1.0);
  Blocks blocks(std::move(layers));
  const std::vector<sq_visit> visits = {{0, 0}};
  const sq_schedule schedule = schedule_of(visits, 0);
  StreamSession session(instance.context(), open_args(blocks, schedule, {.slots = 1, .lookahead = 0}));
  require(session.id() != 0, "a session has the id 0, which means that there is none");
  const auto pass = [&](std::initializer_list<std::pair<std::int64_t, std::int64_t>> found) {
    std::int64_t nans = 0, infinite = 0;
    session.begin_step(0);
    { const Lease lease(session, 0); }
    for (const auto& [n, i] : found) guard(instance, n, i), nans += n, infinite += i;
    session.end_step();
    const sq_step_metrics metrics = last_step(instance, session.id());
    require(metrics.nan_count == nans && metrics.inf_count == infinite,
            "a pass in which the guard found " + std::to_string(nans) + " NaN and " + std::to_string(infinite) + " infinite reports " + std::to_string(metrics.nan_count) + " and " + std::to_string(metrics.inf_count));
  };
  pass({{2, 3}, {5, 1}});
  guard(instance, 7, 9);
  pass({{1, 0}, {0, 2}, {4, 4}});
  pass({});
}

}  // namespace

void add_pass_counts(Cases& cases) {
  cases.push_back({15, "telemetry.guard_counts", Kind::vector, {"SQ-TEL-024", "SQ-LIN-030"}, {"stream", "telemetry", "operation:numeric_guard"}, "counts of the last call instead of the pass, or of the whole run", run_guard_counts});
}

}  // namespace squareq::gates::g15
