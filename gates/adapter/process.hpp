// The adapter's process: started through the shell, spoken to by lines with a deadline, ended for certain.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

#include "squareq/slab/file.hpp"

namespace squareq::gates::adapter {

using Clock = std::chrono::steady_clock;

/// One run of the command line in a process group of its own. Every wait has an end: Fault(timeout), Fault(crash) or Fault(protocol) instead
/// of a hang. The pipes are inherited across fork, so that a case's child process speaks to the same adapter; only the process that
/// constructed the object may end it. Not thread-safe.
class Process {
 public:
  /// Runs `sh -c command`; its stderr is appended to `log`. Throws Error(IO_ERROR) where no process or pipe can be made.
  Process(const std::string& command, const std::filesystem::path& log);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { kill(); }

  /// Bytes on stdout that nobody asked for are a protocol fault; a reader that is gone is a crash.
  void send(std::string_view line, Clock::time_point deadline);
  /// The next line without its newline; at most max_answer_bytes, and nothing may follow it.
  std::string receive(Clock::time_point deadline);

  /// Closes its stdin and waits for the end. False where it did not end in time.
  bool close_and_wait(Clock::time_point deadline);
  /// Ends the whole process group at once.
  void kill();
  /// "ended with exit status 3", "ended by signal 11 (Segmentation fault)", "was still running"; after the end only.
  const std::string& end() const { return end_; }
  /// It left with exit status 0 of its own accord.
  bool ended_well() const { return ended_well_; }

 private:
  bool reap(bool wait);

  pid_t pid_ = -1;
  pid_t owner_ = -1;
  UniqueFd to_, from_;
  std::string end_;
  bool ended_well_ = false;
};

}  // namespace squareq::gates::adapter
