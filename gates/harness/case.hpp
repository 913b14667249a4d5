// What a gate case is, and what its run may end with (spec/90-conformance.md).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace squareq::gates {

class Trial;

enum class Kind { vector, property, differential };

enum class Status { pass, fail, not_supported, not_run, mistrusted, waived, crash, timeout };

inline constexpr Status all_statuses[] = {Status::pass,       Status::fail,   Status::not_supported, Status::not_run,
                                          Status::mistrusted, Status::waived, Status::crash,         Status::timeout};

std::string_view name_of(Kind kind);
std::string_view name_of(Status status);
/// The status with that name; nothing for an unknown one.
std::optional<Status> status_of(std::string_view name);

/// One vector or one property. `id` is a stable slug of dot-separated words: it does not change when sections are renumbered.
struct Case {
  int gate = 0;
  std::string id;
  Kind kind = Kind::vector;
  std::vector<std::string> requirements;  ///< ids of normative sentences, most important first, never empty
  std::vector<std::string> needs;         ///< "linear", "lora", ... , "dtype:bf16", "operation:numeric_guard"
  std::string hunts;                      ///< the mistake that this case finds, in a few words
  std::function<void(Trial&)> run;
  int timeout_s = 60;
};

struct Verdict {
  Status status = Status::not_run;
  std::optional<double> margin;  ///< largest error / bound seen; > 1 fails
  std::string message;
  double seconds = 0;
  std::string example;  ///< what a property failed, crashed or hung on, as --example takes it; empty: nothing, or no property
};

}  // namespace squareq::gates
