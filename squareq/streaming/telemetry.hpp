// Step metrics as JSON lines that existing StageHand scripts read, the statistics of a window of steps, and the log line
// (spec/80-telemetry.md, spec/schema/telemetry.schema.json).
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "squareq/contract.h"

namespace squareq::streaming {

/// A step's metrics and what the trainer adds to them.
struct StepRecord {
  sq_step_metrics metrics{};
  std::optional<double> loss;  // null where no loss was computed or it is not finite
  bool skipped = false;        // no optimizer step was taken
};

/// A number as Python's json.dumps writes a float: shortest digits that read back equal, ".0" on whole numbers, exponent from 1e16
/// and below 1e-4; NaN and infinities are "null".
std::string python_float(double value);

/// The 17 StageHand keys in their order, then ours; separators ", " and ": "; no newline.
std::string step_line(const StepRecord& record);

/// The 17 StageHand keys only.
std::string stagehand_line(const sq_step_metrics& metrics);

/// Appends one line per step and flushes it. Not thread-safe.
class TelemetryWriter {
 public:
  /// Opens for appending; creates the file. Throws IO_* naming it.
  explicit TelemetryWriter(std::filesystem::path path);
  void write(const StepRecord& record);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

/// Statistics of the last steps (StageHand: 100).
class StepWindow {
 public:
  explicit StepWindow(std::size_t capacity = 100) : capacity_(capacity) {}
  void add(const sq_step_metrics& metrics);

  double hit_rate() const;               // hits / (hits + misses), 0 if none
  double mean_stall_ms() const;          // 0 if empty
  double max_stall_ms() const;           // 0 if empty
  std::string_view vram_trend() const;   // "stable", "growing", "shrinking": later half against first half, 50 MiB

 private:
  std::size_t capacity_;
  std::deque<sq_step_metrics> steps_;
};

/// Whether a log line is due: interval > 0 and step a multiple of it, step 0 included.
bool log_due(std::int64_t step, std::int64_t interval);

/// "[STAGEHAND step=10] hit=98.2% stall=0.3ms evict=94 vram=5.4G pool=0/2"
std::string log_line(const StepWindow& window, const sq_step_metrics& last);

}  // namespace squareq::streaming
