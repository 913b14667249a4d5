#include "squareq/streaming/telemetry.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::streaming {
namespace {

/// Builds {"key": value, ...} in the style of json.dumps.
class Line {
 public:
  Line& number(const char* key, std::int64_t value) { return raw(key, std::to_string(value)); }
  Line& number(const char* key, double value) { return raw(key, python_float(value)); }
  Line& raw(const char* key, const std::string& value) {
    text_ += (text_.size() > 1 ? ", \"" : "\"") + std::string(key) + "\": " + value;
    return *this;
  }
  std::string close() { return text_ + "}"; }

 private:
  std::string text_ = "{";
};

Line stagehand_keys(const sq_step_metrics& m) {
  Line line;
  line.number("step", m.step).number("h2d_bytes", m.h2d_bytes).number("d2h_bytes", m.d2h_bytes);
  line.number("copy_time_ms", m.copy_time_ms).number("compute_time_ms", m.compute_time_ms).number("stall_time_ms", m.stall_time_ms);
  line.number("stall_count", m.stall_count).number("evictions", m.evictions);
  line.number("prefetch_hits", m.prefetch_hits).number("prefetch_misses", m.prefetch_misses);
  line.number("vram_used_mb", m.vram_used_mb).number("vram_reserved_mb", m.vram_reserved_mb);
  line.number("host_pool_free", m.host_pool_free).number("host_pool_in_use", m.host_pool_in_use);
  line.number("dtype_promotions", m.dtype_promotions).number("nan_count", m.nan_count).number("inf_count", m.inf_count);
  return line;
}

[[noreturn]] void fail(const std::filesystem::path& path, const char* doing, int error) {
  const Code code = error == ENOSPC ? Code::IO_NO_SPACE : error == EACCES || error == EPERM ? Code::IO_PERM : error == ENOENT ? Code::IO_MISSING : Code::IO_ERROR;
  const std::string name = printable(path.string());
  throw Error(code, "cannot " + std::string(doing) + " telemetry file " + name + ": " + std::strerror(error), name);
}

}  // namespace

std::string python_float(double value) {
  if (!std::isfinite(value)) return "null";
  if (value == 0) return std::signbit(value) ? "-0.0" : "0.0";
  // Shortest digits d.ddd and exponent, laid out by the rules of Python's repr.
  std::array<char, 40> buffer;
  const auto [end, failure] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::fabs(value), std::chars_format::scientific);
  if (failure != std::errc()) throw Error(Code::INTERNAL, "a double did not fit in 40 characters");
  const std::string text(buffer.data(), end);
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  std::string digits = text.substr(0, e);
  std::erase(digits, '.');
  std::string out = std::signbit(value) ? "-" : "";
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits.substr(0, 1) + (count > 1 ? "." + digits.substr(1) : "") + text.substr(e);
  } else if (exponent < 0) {
    out += "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  } else if (count > exponent + 1) {
    out += digits.substr(0, static_cast<std::size_t>(exponent) + 1) + "." + digits.substr(static_cast<std::size_t>(exponent) + 1);
  } else {
    out += digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  }
  return out;
}

std::string stagehand_line(const sq_step_metrics& metrics) { return stagehand_keys(metrics).close(); }

std::string step_line(const StepRecord& record) {
  const sq_step_metrics& m = record.metrics;
  Line line = stagehand_keys(m);
  line.number("wall_ms", m.wall_ms).number("slot_wait_ms", m.slot_wait_ms);
  line.number("disk_read_bytes", m.disk_read_bytes).number("disk_read_ms", m.disk_read_ms).number("pinned_bytes", m.pinned_bytes);
  line.number("vram_peak_bytes", m.vram_peak_bytes).number("launches", m.launches);
  line.raw("loss", record.loss ? python_float(*record.loss) : "null").raw("skipped", record.skipped ? "true" : "false");
  return line.close();
}

TelemetryWriter::TelemetryWriter(std::filesystem::path path) : path_(std::move(path)), file_(std::fopen(path_.c_str(), "ae")) {
  if (!file_) fail(path_, "open", errno);
}

void TelemetryWriter::write(const StepRecord& record) {
  const std::string line = step_line(record) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0) fail(path_, "write", errno);
}

void StepWindow::add(const sq_step_metrics& metrics) {
  steps_.push_back(metrics);
  if (steps_.size() > capacity_) steps_.pop_front();
}

double StepWindow::hit_rate() const {
  std::int64_t hits = 0, all = 0;
  for (const sq_step_metrics& m : steps_) {
    hits += m.prefetch_hits;
    all += m.prefetch_hits + m.prefetch_misses;
  }
  return all ? static_cast<double>(hits) / static_cast<double>(all) : 0.0;
}

double StepWindow::mean_stall_ms() const {
  double sum = 0;
  for (const sq_step_metrics& m : steps_) sum += m.stall_time_ms;
  return steps_.empty() ? 0.0 : sum / static_cast<double>(steps_.size());
}

double StepWindow::max_stall_ms() const {
  double largest = 0;
  for (const sq_step_metrics& m : steps_) largest = std::max(largest, m.stall_time_ms);
  return largest;
}

std::string_view StepWindow::vram_trend() const {
  if (steps_.size() < 3) return "stable";
  const auto middle = steps_.begin() + static_cast<std::ptrdiff_t>(steps_.size() / 2);
  const auto mean = [](auto from, auto to) {
    double sum = 0;
    const auto count = static_cast<double>(std::distance(from, to));
    for (; from != to; ++from) sum += from->vram_used_mb;
    return sum / count;
  };
  const double delta = mean(middle, steps_.end()) - mean(steps_.begin(), middle);
  return delta > 50.0 ? "growing" : delta < -50.0 ? "shrinking" : "stable";
}

bool log_due(std::int64_t step, std::int64_t interval) { return interval > 0 && step % interval == 0; }

std::string log_line(const StepWindow& window, const sq_step_metrics& last) {
  char text[256];
  std::snprintf(text, sizeof text, "[STAGEHAND step=%lld] hit=%.1f%% stall=%.1fms evict=%lld vram=%.1fG pool=%lld/%lld", static_cast<long long>(last.step),
                window.hit_rate() * 100.0, last.stall_time_ms, static_cast<long long>(last.evictions), last.vram_used_mb / 1024.0,
                static_cast<long long>(last.host_pool_free), static_cast<long long>(last.host_pool_free + last.host_pool_in_use));
  return text;
}

}  // namespace squareq::streaming
