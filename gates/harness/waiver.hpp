// Waivers: known faults of an implementation, excused by name, with a reason and an end (spec/90-conformance.md,
// schema/waivers.schema.json). They are data beside a run; no case is ever edited to let an implementation pass.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gates/harness/case.hpp"

namespace squareq::gates {

struct Waiver {
  std::string case_id;
  std::string reason;
  std::chrono::year_month_day expires;  ///< the last day, in UTC, on which it counts
  std::string issue;                    ///< where the fault is followed up; empty: nowhere
};

/// A waiver that took effect: what the case would have been without it.
struct Waived {
  Waiver waiver;
  Status instead_of = Status::fail;
};

/// What became of a waiver in a run.
struct WaiverOutcome {
  enum class State {
    applied,   ///< the case is `waived` because of it
    expired,   ///< does not count any more
    unneeded,  ///< the case passes: the waiver is to be removed
    idle,      ///< the case was not run
  };
  Waiver waiver;
  State state = State::idle;
};
std::string_view name_of(WaiverOutcome::State state);

/// "2026-11-28" as a day. Nothing for any other spelling or a day that does not exist.
std::optional<std::chrono::year_month_day> parse_day(std::string_view text);
std::string day_text(std::chrono::year_month_day day);
/// The current day in UTC.
std::chrono::year_month_day today();

/// Parses a waiver file; `name` stands for it in messages. Throws CFG_JSON (text), CFG_KEY (unknown or twice), CFG_TYPE (missing or of
/// the wrong type), CFG_VALUE (unknown case, empty reason, no such day, two waivers for one case).
std::vector<Waiver> parse_waivers(const std::string& text, const std::string& name);
/// The same from a file; IO codes for the file itself.
std::vector<Waiver> read_waivers(const std::filesystem::path& file);

/// The waivers of one run.
class Waivers {
 public:
  Waivers(std::vector<Waiver> waivers, std::chrono::year_month_day day) : waivers_(std::move(waivers)), day_(day) {}

  /// Turns a verdict that a current waiver excuses (fail, mistrusted, crash, timeout, not_supported) into `waived`; what the verdict
  /// said stays in its message. Returns the waiver that was used.
  std::optional<Waived> excuse(const std::string& case_id, Verdict& verdict) const;
  /// What became of each, given the case's status after excuse().
  WaiverOutcome outcome(const Waiver& waiver, Status status) const;
  const std::vector<Waiver>& all() const { return waivers_; }

 private:
  bool expired(const Waiver& waiver) const { return std::chrono::sys_days(waiver.expires) < std::chrono::sys_days(day_); }

  std::vector<Waiver> waivers_;
  std::chrono::year_month_day day_;
};

}  // namespace squareq::gates
