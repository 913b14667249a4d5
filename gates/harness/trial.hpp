// What a case's run function works with: instances of the implementation, seeded random numbers, and the ways to end.
#pragma once

#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gates/harness/case.hpp"
#include "gates/harness/guarded.hpp"
#include "gates/harness/random.hpp"
#include "gates/harness/subject.hpp"

namespace squareq::gates {

/// How a run ends other than by returning (= pass).
struct Ended : std::runtime_error {
  Ended(Status s, const std::string& text) : std::runtime_error(text), status(s) {}
  Status status;
};

[[noreturn]] inline void fail(const std::string& text) { throw Ended(Status::fail, text); }
[[noreturn]] inline void mistrust(const std::string& text) { throw Ended(Status::mistrusted, text); }
[[noreturn]] inline void not_supported(const std::string& text) { throw Ended(Status::not_supported, text); }
inline void require(bool good, const std::string& text) {
  if (!good) fail(text);
}

/// What a run may bring to a property: one example to run instead of many, and who is told which example is being run.
struct ExampleOptions {
  std::optional<std::map<std::string, std::int64_t>> given;
  std::function<void(const std::string& example)> note;
};

/// One run of one case. Lives in the child process that runs it.
class Trial {
 public:
  Trial(const Subject& subject, const Description& description, std::uint64_t seed, std::string case_id, ExampleOptions examples = {});
  ~Trial();
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

  const Subject& subject() const { return subject_; }
  const Description& description() const { return description_; }

  /// A new instance of the table that serves `group`; lives until the trial ends.
  Instance& instance(std::string_view group = "linear", std::uint32_t threads = 2);
  /// The same with the callbacks of `host`.
  Instance& instance(std::string_view group, const sq_host& host);
  /// An instance of our reference backend, for differential cases.
  Instance& reference();

  /// Random numbers that depend on the run's seed, the case and `purpose` only.
  Random random(std::string_view purpose) const;

  /// Records error / bound; the report shows the largest. Above 1 the case fails.
  void margin(double value);
  std::optional<double> largest_margin() const { return margin_; }
  /// Puts another largest margin in place and returns the one before: a property keeps one per example.
  std::optional<double> exchange_margin(std::optional<double> margin) { return std::exchange(margin_, margin); }

  /// The example that a property must run instead of its own, if one was given.
  const std::optional<std::map<std::string, std::int64_t>>& take_example();
  /// Whether a given example found no property to take it.
  bool example_left() const { return examples_.given && !example_taken_; }
  /// Tells the parent what is being run, so that a crash can name it.
  void note_example(const std::string& text) const {
    if (examples_.note) examples_.note(text);
  }
  /// What made a property fail, "m=3,k=17"; empty: nothing did.
  void counterexample(std::string text) { counterexample_ = std::move(text); }
  const std::string& counterexample() const { return counterexample_; }

  /// An empty folder of this trial, removed at its end.
  const std::filesystem::path& folder();

  /// After the run: every instance is destroyed; memory must be back and the allocator table not misused.
  void finish();

 private:
  const Subject& subject_;
  const Description& description_;
  std::uint64_t seed_;
  std::string case_id_;
  ExampleOptions examples_;
  bool example_taken_ = false;
  std::string counterexample_;
  std::optional<double> margin_;
  std::optional<Implementation> reference_implementation_;
  std::vector<std::unique_ptr<Instance>> instances_;
  std::filesystem::path folder_;
};

/// Runs one case in this process and turns every way of ending into a verdict (crashes and hangs excepted).
Verdict run_here(const Case& gate_case, const Subject& subject, const Description& description, std::uint64_t seed, const ExampleOptions& examples = {});

/// Calls `operation(sq_error*)` with every tensor armed. It must return SQ_OK, write all of its outputs and nothing else.
template <class F>
void call_ok(const std::string& what, std::initializer_list<Guarded*> tensors, F&& operation) {
  for (Guarded* t : tensors)
    if (t) t->arm();
  sq_error e = make_error();
  const sq_status status = operation(&e);
  if (status != SQ_OK) fail(what + " refused: " + std::string(code_name(static_cast<Code>(status))) + ": " + e.message);
  for (Guarded* t : tensors)
    if (t)
      if (const std::string damage = t->damage_after_success(); !damage.empty()) fail(what + ": " + damage);
}

/// The same call must be refused with one of `codes`, with a message, and must change nothing. Returns the error record.
template <class F>
sq_error call_refused(const std::string& what, const std::vector<Code>& codes, std::initializer_list<Guarded*> tensors, F&& operation) {
  for (Guarded* t : tensors)
    if (t) t->arm();
  sq_error e = make_error();
  const auto status = static_cast<Code>(operation(&e));
  if (status == Code::OK) fail(what + ": accepted, but must be refused");
  std::string expected;
  bool known = false;
  for (const Code code : codes) {
    expected += (expected.empty() ? "" : " or ") + std::string(code_name(code));
    known = known || code == status;
  }
  if (!known) fail(what + ": refused with " + std::string(code_name(status)) + ", expected " + expected + " (" + e.message + ")");
  if (e.message[0] == '\0') fail(what + ": refused without a message");
  if (static_cast<Code>(e.code) != status) fail(what + ": error record holds " + std::string(code_name(static_cast<Code>(e.code))) + ", the call returned " + std::string(code_name(status)));
  for (Guarded* t : tensors)
    if (t)
      if (const std::string damage = t->damage_after_refusal(); !damage.empty()) fail(what + ": " + damage);
  return e;
}

/// The error names every one of `words` in its message, layer, tensor or file. A word may offer spellings: "f16|float16". Case is ignored.
void must_name(const std::string& what, const sq_error& error, const std::vector<std::string_view>& words);

}  // namespace squareq::gates
