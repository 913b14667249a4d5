#include "gates/adapter/process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "gates/adapter/answer.hpp"
#include "squareq/text.hpp"

namespace squareq::gates::adapter {
namespace {

using Milliseconds = std::chrono::milliseconds;

std::pair<UniqueFd, UniqueFd> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw Error(Code::IO_ERROR, std::string("pipe: ") + std::strerror(errno));
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

/// False when the deadline passed first.
bool wait_for(int fd, short events, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<Milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd ready{fd, events, 0};
    const int n = ::poll(&ready, 1, static_cast<int>(std::min<long long>(left, 1'000'000)));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) throw Error(Code::IO_ERROR, std::string("poll: ") + std::strerror(errno));
  }
}

/// Runs in the forked child: only calls that are safe there.
[[noreturn]] void become(const char* command, int in, int out, int log) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_DFL);
  if (::dup2(in, STDIN_FILENO) < 0 || ::dup2(out, STDOUT_FILENO) < 0 || ::dup2(log, STDERR_FILENO) < 0) ::_exit(126);
  ::execl("/bin/sh", "sh", "-c", command, static_cast<char*>(nullptr));
  ::_exit(127);
}

}  // namespace

Process::Process(const std::string& command, const std::filesystem::path& log) : owner_(::getpid()) {
  ::signal(SIGPIPE, SIG_IGN);  // an adapter that is gone is a verdict, not our death
  auto [child_in, to] = make_pipe();
  auto [from, child_out] = make_pipe();
  const UniqueFd log_fd(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log_fd) throw_errno(errno, "write", log);
  pid_ = ::fork();
  if (pid_ < 0) throw Error(Code::HOST_OOM, std::string("fork: ") + std::strerror(errno));
  if (pid_ == 0) become(command.c_str(), child_in.get(), child_out.get(), log_fd.get());
  ::setpgid(pid_, pid_);  // whichever of the two comes first
  ::fcntl(to.get(), F_SETFL, O_NONBLOCK);
  ::fcntl(from.get(), F_SETFL, O_NONBLOCK);
  to_ = std::move(to);
  from_ = std::move(from);
}

void Process::send(std::string_view line, Clock::time_point deadline) {
  pollfd early{from_.get(), POLLIN, 0};
  if (::poll(&early, 1, 0) > 0 && (early.revents & POLLIN)) {
    char bytes[200];
    const ssize_t got = ::read(from_.get(), bytes, sizeof bytes);
    throw Fault(Fault::Kind::protocol, "the adapter wrote to stdout without a request: '" + printable({bytes, static_cast<std::size_t>(std::max<ssize_t>(got, 0))}, 120) + "'");
  }
  std::string text(line);
  text += '\n';
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t n = ::write(to_.get(), rest.data(), rest.size());
    if (n > 0) rest.remove_prefix(static_cast<std::size_t>(n));
    else if (errno == EPIPE) throw Fault(Fault::Kind::crash, "the adapter's process is gone: it reads no more requests");
    else if (errno == EAGAIN) {
      if (!wait_for(to_.get(), POLLOUT, deadline)) throw Fault(Fault::Kind::timeout, "the adapter did not read the request in time");
    } else if (errno != EINTR) throw Error(Code::IO_ERROR, std::string("write to the adapter: ") + std::strerror(errno));
  }
}

std::string Process::receive(Clock::time_point deadline) {
  std::string text;
  for (;;) {
    if (!wait_for(from_.get(), POLLIN, deadline)) throw Fault(Fault::Kind::timeout, "the adapter did not answer in time");
    char piece[65536];
    const ssize_t got = ::read(from_.get(), piece, sizeof piece);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) throw Error(Code::IO_ERROR, std::string("read from the adapter: ") + std::strerror(errno));
    if (got == 0)
      throw Fault(Fault::Kind::crash, text.empty() ? "the adapter's process ended instead of answering" : "the adapter's process ended in the middle of an answer: '" + printable(text, 120) + "'");
    const std::size_t searched = text.size();
    text.append(piece, static_cast<std::size_t>(got));
    const std::size_t end = text.find('\n', searched);
    if (end != std::string::npos && end + 1 != text.size()) throw Fault(Fault::Kind::protocol, "the adapter wrote more than one answer line; the second begins with '" + printable(std::string_view(text).substr(end + 1), 120) + "'");
    if (end == std::string::npos ? text.size() > max_answer_bytes : end > max_answer_bytes)
      throw Fault(Fault::Kind::protocol, "the answer is longer than " + std::to_string(max_answer_bytes) + " bytes; it begins with '" + printable(text, 80) + "'");
    if (end != std::string::npos) {
      text.pop_back();
      return text;
    }
  }
}

bool Process::reap(bool wait) {
  if (pid_ < 0) return true;
  int status = 0;
  pid_t got = 0;
  do got = ::waitpid(pid_, &status, wait ? 0 : WNOHANG);
  while (got < 0 && errno == EINTR);
  if (got == 0) return false;
  ended_well_ = got > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (got > 0 && WIFSIGNALED(status)) end_ = "ended by signal " + std::to_string(WTERMSIG(status)) + " (" + strsignal(WTERMSIG(status)) + ")";
  else if (got > 0) end_ = "ended with exit status " + std::to_string(WEXITSTATUS(status));
  ::kill(-pid_, SIGKILL);  // whatever it left behind in its group
  pid_ = -1;
  return true;
}

bool Process::close_and_wait(Clock::time_point deadline) {
  to_.reset();
  while (!reap(false)) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(Milliseconds(5));
  }
  return true;
}

void Process::kill() {
  if (pid_ < 0 || owner_ != ::getpid()) return;
  // One that is about to end by itself (its pipe closed already) gets the moment that it takes, so that its own end is what is told.
  const auto soon = Clock::now() + Milliseconds(2000);
  pollfd closed{from_.get(), POLLIN, 0};
  const bool ending = ::poll(&closed, 1, 0) > 0 && (closed.revents & POLLHUP);
  while (ending && !reap(false) && Clock::now() < soon) std::this_thread::sleep_for(Milliseconds(5));
  if (pid_ < 0) return;
  ::kill(-pid_, SIGKILL);
  reap(true);
  end_ = "was still running";
}

}  // namespace squareq::gates::adapter
