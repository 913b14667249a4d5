// The edge between C++ and the C ABI: nothing is thrown across it, every failure becomes a status and a filled error record.
#pragma once

#include <cstring>
#include <new>
#include <string>

#include "squareq/error.hpp"

namespace squareq::reference {

inline void copy_text(char* target, std::size_t capacity, const std::string& text) {
  const std::size_t bytes = std::min(capacity - 1, text.size());
  std::memcpy(target, text.data(), bytes);
  target[bytes] = 0;
}

inline sq_status report(sq_error* e, const Problem& problem) {
  const auto code = static_cast<sq_status>(problem.code);
  if (!e || e->size < sizeof(sq_error)) return code;
  e->code = code;
  copy_text(e->message, sizeof e->message, problem.message);
  copy_text(e->layer, sizeof e->layer, problem.layer);
  copy_text(e->tensor, sizeof e->tensor, problem.tensor);
  copy_text(e->file, sizeof e->file, problem.file);
  return code;
}

template <class Body>
sq_status guarded(sq_error* e, const Body& body) {
  try {
    body();
    return SQ_OK;
  } catch (const Error& error) {
    return report(e, error.problem());
  } catch (const std::bad_alloc&) {
    return report(e, {Code::HOST_OOM, "host memory exhausted", {}, {}, {}});
  } catch (const std::exception& error) {
    return report(e, {Code::INTERNAL, std::string("reference: ") + error.what(), {}, {}, {}});
  }
}

}  // namespace squareq::reference
