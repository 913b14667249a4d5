// Runs cases in child processes, so that a crash or a hang is a verdict and not the end of the run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "gates/harness/case.hpp"
#include "gates/harness/subject.hpp"

namespace squareq::gates {

/// What describe() says, asked in a child process. Throws Error: CFG_BACKEND and CALL_VERSION as Subject::open does, INTERNAL where the
/// implementation crashed, hung or answered nonsense.
Description describe_in_child(const GateOptions& options);

/// The parsed --example of a run, if it has one. Throws CFG_VALUE.
std::optional<std::map<std::string, std::int64_t>> given_example(const GateOptions& options);

/// One case in a child process that opens the implementation itself: nothing of it ever runs in the parent.
Verdict run_in_child(const Case& gate_case, const GateOptions& options, const Description& description, const std::function<Subject()>& open);

/// Seconds that the case may take: its own, or `--timeout` where that is less.
int limit_of(const Case& gate_case, const GateOptions& options);

}  // namespace squareq::gates
