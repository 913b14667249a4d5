// Ctrl-C for commands that write or read for long: the first one asks for an orderly end, a second one ends the process the usual way.
#pragma once

#include <atomic>
#include <csignal>

namespace squareq::cli {

class InterruptGuard {
 public:
  InterruptGuard() {
    flag() = false;
    struct sigaction action {};
    action.sa_handler = [](int) { flag() = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &before_);
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard() { sigaction(SIGINT, &before_, nullptr); }

  const std::atomic<bool>* interrupted() const { return &flag(); }

 private:
  static std::atomic<bool>& flag() {
    static std::atomic<bool> interrupted{false};
    return interrupted;
  }

  struct sigaction before_ {};
};

}  // namespace squareq::cli
