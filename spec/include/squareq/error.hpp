// Error codes as C++ values, the exception that carries one, and the exit status each class ends with (spec/70-errors.md).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "squareq/contract.h"

namespace squareq {

enum class Code : std::int32_t {
  OK = SQ_OK,
#define SQ_CODE(name, number, klass, meaning) name = number,
#include "squareq/error_codes.inc"
#undef SQ_CODE
};

enum class CodeClass { FORMAT, USAGE, SYSTEM, WARNING };

/// "ST_DUP" for Code::ST_DUP; "OK" for OK; "UNKNOWN" for a number that the registry does not hold.
inline std::string_view code_name(Code code) {
  switch (code) {
    case Code::OK: return "OK";
#define SQ_CODE(name, number, klass, meaning) \
  case Code::name: return #name;
#include "squareq/error_codes.inc"
#undef SQ_CODE
  }
  return "UNKNOWN";
}

inline std::string_view code_meaning(Code code) {
  switch (code) {
    case Code::OK: return "success";
#define SQ_CODE(name, number, klass, meaning) \
  case Code::name: return meaning;
#include "squareq/error_codes.inc"
#undef SQ_CODE
  }
  return "unknown code";
}

inline CodeClass code_class(Code code) {
  switch (code) {
#define SQ_CODE(name, number, klass, meaning) \
  case Code::name: return CodeClass::klass;
#include "squareq/error_codes.inc"
#undef SQ_CODE
    case Code::OK: break;
  }
  return CodeClass::SYSTEM;
}

/// Process exit status for an error of this code: 1 bad or mismatched file, 2 wrong usage, 3 could not finish, 130 interrupted.
inline int exit_status(Code code) {
  if (code == Code::OK) return 0;
  if (code == Code::IO_INTERRUPTED) return 130;
  switch (code_class(code)) {
    case CodeClass::FORMAT: return 1;
    case CodeClass::USAGE: return 2;
    case CodeClass::SYSTEM: return 3;
    case CodeClass::WARNING: return 0;
  }
  return 3;
}

/// One finding about a file. `file`, `layer` and `tensor` are empty where they do not apply. Text is already safe to print.
struct Problem {
  Code code{};
  std::string message;
  std::string file;
  std::string layer;
  std::string tensor;
};

/// Every failure in the library is thrown as this. what() is one line that a person can act on.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message, std::string file = {}, std::string layer = {}, std::string tensor = {})
      : std::runtime_error(message), problem_{code, message, std::move(file), std::move(layer), std::move(tensor)} {}
  explicit Error(Problem problem) : std::runtime_error(problem.message), problem_(std::move(problem)) {}

  Code code() const { return problem_.code; }
  const Problem& problem() const { return problem_; }

 private:
  Problem problem_;
};

}  // namespace squareq
