#include "gates/adapter/run_adapter.hpp"

#include <cstdio>

#include "gates/adapter/table.hpp"

namespace squareq::gates::adapter {

AdapterRun::~AdapterRun() {
  if (!session_.running()) return;
  if (const std::string wrong = session_.stop(); !wrong.empty()) std::fprintf(stderr, "adapter: %s\n", wrong.c_str());
}

Description AdapterRun::describe() {
  try {
    session_.start();
    Description d = parse_description(session_.description());
    table_ = table_of(session_);
    d.in_process = false;
    return d;
  } catch (const Fault& fault) {
    throw Error(Code::INTERNAL, std::string("adapter: ") + fault.what());
  }
}

Verdict AdapterRun::around(int limit_s, const std::function<Verdict()>& run_case) {
  // A single answer gets less than the whole case, so that it is the adapter that is found hanging and not the case.
  Verdict verdict;
  if (!session_.before_case(std::chrono::milliseconds(limit_s * 750), verdict)) return verdict;
  verdict = run_case();
  session_.after_case(verdict);
  return verdict;
}

}  // namespace squareq::gates::adapter
