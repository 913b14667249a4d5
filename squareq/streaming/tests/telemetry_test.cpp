// SQ-TEL: lines byte for byte as Python's json module writes them, window statistics, log line.

#include "squareq/streaming/telemetry.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <fstream>
#include <limits>
#include <string>

#include "fixtures/places.hpp"
#include "squareq/error.hpp"

namespace squareq::streaming {
namespace {

const std::string kFixtures = test::fixtures() / "telemetry/";

TEST(Telemetry, EmptyStepIsStageHandsGoldenLine) {  // SQ-TEL-001, SQ-TEL-002
  EXPECT_EQ(stagehand_line({}),
            "{\"step\": 0, \"h2d_bytes\": 0, \"d2h_bytes\": 0, \"copy_time_ms\": 0.0, \"compute_time_ms\": 0.0, \"stall_time_ms\": 0.0, \"stall_count\": 0, "
            "\"evictions\": 0, \"prefetch_hits\": 0, \"prefetch_misses\": 0, \"vram_used_mb\": 0.0, \"vram_reserved_mb\": 0.0, \"host_pool_free\": 0, "
            "\"host_pool_in_use\": 0, \"dtype_promotions\": 0, \"nan_count\": 0, \"inf_count\": 0}");
}

TEST(Telemetry, FloatsReadAsPythonWritesThem) {  // SQ-TEL-003
  std::ifstream file(kFixtures + "python_floats.txt");
  std::string bits, text;
  int count = 0;
  while (file >> bits >> text) {
    EXPECT_EQ(python_float(std::bit_cast<double>(std::stoull(bits, nullptr, 16))), text) << bits;
    ++count;
  }
  EXPECT_EQ(count, 1000);
}

TEST(Telemetry, NonFiniteIsNull) {  // SQ-TEL-004
  EXPECT_EQ(python_float(std::numeric_limits<double>::quiet_NaN()), "null");
  EXPECT_EQ(python_float(std::numeric_limits<double>::infinity()), "null");
  EXPECT_EQ(python_float(-std::numeric_limits<double>::infinity()), "null");
}

StepRecord recipe(int n) {  // the rule of fixtures/telemetry/make.py
  const auto i = [n](int k) { return std::int64_t{1000} * n + k; };
  const auto f = [n](int k) { return (k + 1) / 8.0 + n / 3.0; };
  StepRecord r;
  sq_step_metrics& m = r.metrics;
  m.step = i(0), m.h2d_bytes = i(1), m.d2h_bytes = i(2);
  m.copy_time_ms = f(3), m.compute_time_ms = f(4), m.stall_time_ms = f(5);
  m.stall_count = i(6), m.evictions = i(7), m.prefetch_hits = i(8), m.prefetch_misses = i(9);
  m.vram_used_mb = f(10), m.vram_reserved_mb = f(11);
  m.host_pool_free = i(12), m.host_pool_in_use = i(13), m.dtype_promotions = i(14), m.nan_count = i(15), m.inf_count = i(16);
  m.wall_ms = f(17), m.slot_wait_ms = f(18), m.disk_read_bytes = i(19), m.disk_read_ms = f(20);
  m.pinned_bytes = i(21), m.vram_peak_bytes = i(22), m.launches = i(23);
  if (n > 0) r.loss = n / 7.0;
  r.skipped = n == 0;
  return r;
}

TEST(Telemetry, WriterAppendsTheLinesOfJsonDumps) {  // SQ-TEL-005, SQ-TEL-006
  const std::string path = testing::TempDir() + "squareq_telemetry_" + std::to_string(getpid()) + ".jsonl";
  std::remove(path.c_str());
  std::ifstream golden(kFixtures + "step_lines.jsonl");
  const std::string expected((std::istreambuf_iterator<char>(golden)), {});
  ASSERT_GT(expected.size(), 1000u);
  const auto content = [&path] {
    std::ifstream file(path);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  };
  {
    TelemetryWriter writer(path);
    writer.write(recipe(0));
    EXPECT_EQ(content(), expected.substr(0, expected.find('\n') + 1));  // flushed
  }
  TelemetryWriter writer(path);
  writer.write(recipe(1));
  writer.write(recipe(2));
  EXPECT_EQ(content(), expected);
  std::remove(path.c_str());
}

TEST(Telemetry, WriterNamesWhatItCannotOpenOrWrite) {
  try {
    TelemetryWriter writer("/nonexistent\x1b/steps.jsonl");
    ADD_FAILURE() << "opened";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::IO_MISSING);
    EXPECT_NE(std::string(e.what()).find("steps.jsonl"), std::string::npos);
    EXPECT_EQ(std::string(e.what()).find('\x1b'), std::string::npos);
  }
  try {
    TelemetryWriter full("/dev/full");
    full.write({});
    ADD_FAILURE() << "wrote to a full device";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::IO_NO_SPACE);
  }
}

sq_step_metrics step(std::int64_t hits, std::int64_t misses, double stall, double vram) {
  sq_step_metrics m{};
  m.prefetch_hits = hits, m.prefetch_misses = misses, m.stall_time_ms = stall, m.vram_used_mb = vram;
  return m;
}

TEST(StepWindow, HitRateAndStalls) {  // SQ-TEL-010
  StepWindow window;
  EXPECT_EQ(window.hit_rate(), 0.0);
  EXPECT_EQ(window.mean_stall_ms(), 0.0);
  EXPECT_EQ(window.max_stall_ms(), 0.0);
  window.add(step(3, 1, 2.0, 0));
  window.add(step(0, 4, 5.0, 0));
  EXPECT_EQ(window.hit_rate(), 3.0 / 8.0);
  EXPECT_EQ(window.mean_stall_ms(), 3.5);
  EXPECT_EQ(window.max_stall_ms(), 5.0);
}

TEST(StepWindow, ForgetsAllButTheLastHundred) {  // SQ-TEL-010
  StepWindow window;
  window.add(step(0, 1000, 1e9, 0));
  for (int i = 0; i < 100; ++i) window.add(step(1, 0, 1.0, 0));
  EXPECT_EQ(window.hit_rate(), 1.0);
  EXPECT_EQ(window.max_stall_ms(), 1.0);
}

TEST(StepWindow, VramTrendComparesTheHalves) {  // SQ-TEL-011
  const auto trend = [](std::initializer_list<double> vram) {
    StepWindow window;
    for (const double mb : vram) window.add(step(0, 0, 0, mb));
    return std::string(window.vram_trend());
  };
  EXPECT_EQ(trend({0, 1000}), "stable");             // fewer than three
  EXPECT_EQ(trend({0, 50, 50}), "stable");           // exactly 50 is not more than 50
  EXPECT_EQ(trend({0, 50.5, 50.5}), "growing");      // split at n / 2: one against two
  EXPECT_EQ(trend({100, 49, 50}), "shrinking");
  EXPECT_EQ(trend({100, 0, 100, 100, 0}), "stable"); // 50 against 66.7
}

TEST(StepWindow, LogLine) {  // SQ-TEL-012, SQ-TEL-013
  StepWindow window;
  sq_step_metrics m = step(55, 1, 0.3, 5529.6);
  m.step = 10, m.evictions = 94, m.host_pool_free = 1, m.host_pool_in_use = 3;
  window.add(m);
  EXPECT_EQ(log_line(window, m), "[STAGEHAND step=10] hit=98.2% stall=0.3ms evict=94 vram=5.4G pool=1/4");
  EXPECT_TRUE(log_due(0, 10));
  EXPECT_TRUE(log_due(20, 10));
  EXPECT_FALSE(log_due(5, 10));
  EXPECT_FALSE(log_due(0, 0));
}

}  // namespace
}  // namespace squareq::streaming
