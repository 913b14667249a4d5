// How a refusal leaves an operation: squareq::Error with its code before the message; Python sees a RuntimeError.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "squareq/error.hpp"

namespace squareq::torch_ops {

/// `coded<&kernel>` has the kernel's signature and lets its errors through as "CALL_SHAPE: <message>".
template <auto kernel>
struct Coded;

template <class Result, class... Arguments, Result (*kernel)(Arguments...)>
struct Coded<kernel> {
  static Result call(Arguments... arguments) {
    try {
      return kernel(std::forward<Arguments>(arguments)...);
    } catch (const Error& e) {
      const std::string code = std::string(code_name(e.code())) + ": ";
      if (std::string_view(e.what()).starts_with(code)) throw;  // an operation called by this one has said it
      throw Error(e.code(), code + e.what(), e.problem().file, e.problem().layer, e.problem().tensor);
    }
  }
};

template <auto kernel>
inline constexpr auto coded = &Coded<kernel>::call;

}  // namespace squareq::torch_ops
