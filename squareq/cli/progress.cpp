#include "squareq/cli/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "squareq/text.hpp"

namespace squareq::cli {
namespace {

std::string amount(std::uint64_t value, const std::string& unit) {
  if (unit != "B") return fmt::format("{}", value);
  return value >= 1'000'000'000 ? fmt::format("{:.2f} GB", static_cast<double>(value) * 1e-9) : fmt::format("{:.1f} MB", static_cast<double>(value) * 1e-6);
}

std::string clock_text(double seconds) {
  const auto s = static_cast<std::uint64_t>(seconds + 0.5);
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60) : fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace

ProgressMeter::ProgressMeter(std::string title, std::string unit, bool quiet)
    : title_(std::move(title)), unit_(std::move(unit)), visible_(!quiet && isatty(STDERR_FILENO) == 1) {}

ProgressMeter::~ProgressMeter() {
  if (drawn_) std::fputc('\n', stderr);
}

void ProgressMeter::update(std::uint64_t done, std::uint64_t total, std::string_view what) {
  if (!visible_) return;
  const auto now = Clock::now();
  if (!begun_) {
    // Work that a resumed run found finished must not inflate the rate.
    begun_ = true;
    first_ = done;
    start_ = now;
  }
  if (drawn_ && done != total && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done - first_) / seconds : 0;
  const std::string speed = unit_ == "B" ? fmt::format("{:.0f} MB/s", rate * 1e-6) : fmt::format("{:.2f} {}/s", rate, unit_);
  const std::string left = rate > 0 && total >= done ? clock_text(static_cast<double>(total - done) / rate) : "-:--";
  const double percent = total ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 0;
  fmt::print(stderr, "\r\033[K{} {:5.1f}%  {} of {}  {}  ETA {}  {}", title_, percent, amount(done, unit_), amount(total, unit_), speed, left,
             printable(what, 48));
  std::fflush(stderr);
}

}  // namespace squareq::cli
