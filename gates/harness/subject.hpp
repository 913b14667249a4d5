// The implementation under test: its tables, what it says about itself, and instances of it with measured memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gates/gates.hpp"
#include "gates/harness/memory.hpp"
#include "squareq/contract.hpp"

namespace squareq::gates {

/// The parsed answer of describe().
struct Description {
  std::string name;
  std::string version;
  std::string device = "cpu";
  bool deterministic = false;
  bool usable = true;
  std::string reason;  ///< why not usable
  bool in_process = true;  ///< its memory can be seen from here: false for an adapter
  std::set<std::string> groups;
  std::set<std::string> operations;
  std::set<std::string> formats;
  std::set<std::string> activation_dtypes;
  std::set<std::string> rounding_classes;
  std::string json;  ///< as answered

  /// "linear", "operation:quantize", "dtype:bf16", "format:bp8_v2", "device:cuda", "class:R4", "in_process" -> offered or not.
  bool offers(std::string_view need) const;
};

/// One context with an allocator of its own. Destroying it checks nothing; Trial::finish does.
class Instance {
 public:
  Instance(const Implementation& implementation, std::uint32_t threads);
  /// With the callbacks of `host`; the allocator is the instance's own.
  Instance(const Implementation& implementation, sq_host host);

  Meter& meter() { return *meter_; }
  const Context& context() const { return *context_; }
  sq_context* get() const { return context_->get(); }
  const sq_linear_group& linear() const { return context_->linear(); }
  const sq_stream_group& stream() const { return context_->stream(); }
  const sq_telemetry_group& telemetry() const { return context_->telemetry(); }
  /// Destroys the context; the meter stays readable.
  void destroy() { context_.reset(); }

 private:
  std::unique_ptr<Meter> meter_;
  std::optional<Context> context_;
};

class Subject {
 public:
  /// Loads the backend of `options` in this process; one that describes the device "cuda" gets its tensors there. Throws CFG_BACKEND (also
  /// where the suite cannot use the GPU) or CALL_VERSION.
  static Subject open(const GateOptions& options);
  /// An implementation whose tensors, slots and workspace lie on `device`: every tensor of this process is placed there from now on.
  static Subject on(const Implementation& implementation, DeviceMemory& device);

  /// Which table serves a group: the backend's own, or, beside one of our own backends, the library's.
  const Implementation& of_group(std::string_view group) const;
  const Implementation& implementation() const { return main_; }

  /// A table of this program: the adapter's.
  static Subject of_table(const sq_implementation* table) { return Subject(Implementation(table)); }

  /// Asks describe(). Throws Error(INTERNAL) when the answer is no JSON object with the required fields.
  Description describe() const;

 private:
  explicit Subject(Implementation main) : main_(std::move(main)) {}
  void place_tensors();

  Implementation main_;
  std::optional<Implementation> format_;
  std::optional<Implementation> module_;
};

/// Parses one describe() answer. Throws Error(INTERNAL) naming what is missing or wrong.
Description parse_description(const std::string& text);

}  // namespace squareq::gates
