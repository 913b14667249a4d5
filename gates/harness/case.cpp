#include "gates/harness/case.hpp"

namespace squareq::gates {

std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::vector: return "vector";
    case Kind::property: return "property";
    case Kind::differential: return "differential";
  }
  return "vector";
}

std::string_view name_of(Status status) {
  switch (status) {
    case Status::pass: return "pass";
    case Status::fail: return "fail";
    case Status::not_supported: return "not_supported";
    case Status::not_run: return "not_run";
    case Status::mistrusted: return "mistrusted";
    case Status::waived: return "waived";
    case Status::crash: return "crash";
    case Status::timeout: return "timeout";
  }
  return "not_run";
}

std::optional<Status> status_of(std::string_view name) {
  for (Status status : all_statuses)
    if (name_of(status) == name) return status;
  return std::nullopt;
}

}  // namespace squareq::gates
