// One adapter for a whole run: started once, spoken to by every case's child process in turn, started anew after a fault.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gates/adapter/answer.hpp"
#include "gates/adapter/exchange_files.hpp"
#include "gates/adapter/process.hpp"
#include "gates/harness/case.hpp"

namespace squareq::gates::adapter {

/// How an adapter said no: becomes the status and the error record of a contract call.
struct Refusal {
  Code code;
  std::string message, layer, tensor;
};

/// The parent of all cases constructs one before it forks. What parent and children must both know (the next id, whether a call was under way, the
/// first fault) lies in memory that they share. Calls of one process may come from any thread; two processes never call at once, because the
/// parent waits for a case before it starts the next.
class Session {
 public:
  struct Limits {
    std::chrono::milliseconds start{120'000};  ///< until `start` is answered: interpreters load their libraries
    std::chrono::milliseconds call{45'000};    ///< until any other request is answered
  };

  /// Starts nothing yet. Throws Error(IO_*) where there is no temporary folder.
  Session(std::string command, Limits limits);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  /// The process is up and has answered `start`; its description is known. Throws Fault.
  void start();
  /// The describe() object, as answered at the first start.
  const std::string& description() const { return description_; }

  /// Sends one request with its tensors and waits. `request` holds "command" and its fields. Copies outputs into the caller's tensors only after
  /// every check, so that a fault leaves them as they were. Throws Refusal (refused, unsupported) or Fault; after a Fault every further call throws it again.
  nlohmann::json call(nlohmann::ordered_json request, const std::vector<NamedTensor>& inputs = {}, const std::vector<NamedTensor>& outputs = {});

  /// Before a case is forked: a fresh process where the last case left it in doubt; `call_limit` bounds each answer. False, with the verdict
  /// filled, where the adapter cannot be started.
  bool before_case(std::chrono::milliseconds call_limit, Verdict& verdict);
  /// After it ended: a fault becomes the verdict, whatever the case made of it, with the process's end and the last lines of its stderr.
  void after_case(Verdict& verdict);

  /// A result that is no result: remembers and throws the fault.
  [[noreturn]] void broken(const std::string& text) { remember(Fault(Fault::Kind::protocol, text)); }

  /// Told by the table that makes contexts.
  void context_opened();
  void context_closed();

  /// For the smoke test, which judges single lines: the raw exchange, without a retry or a restart.
  Answer exchange(nlohmann::ordered_json request, std::chrono::milliseconds limit);
  void launch();
  bool running() const { return process_ != nullptr; }
  /// Sends `stop`. Empty where the adapter answered it and left with status 0; else what it did instead.
  std::string stop();
  /// How the process ended and its last lines on stderr, for messages; ends it where it still runs.
  std::string post_mortem();

 private:
  struct Shared;

  std::string stderr_tail() const;
  [[noreturn]] void remember(const Fault& fault);

  std::string command_;
  Limits limits_;
  std::filesystem::path folder_;
  pid_t owner_;
  std::unique_ptr<Process> process_;
  Shared* shared_;
  std::string description_;
  std::string unusable_;          // why it could not be started again
  std::uintmax_t log_start_ = 0;  // where the current case's stderr begins
  std::mutex mutex_;
};

}  // namespace squareq::gates::adapter
