#include "gates/harness/run_case.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "gates/harness/property.hpp"
#include "gates/harness/trial.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

struct ChildResult {
  std::string text;       // what `work` returned, if it got that far
  std::string note;       // the last line that it sent before
  bool timed_out = false;
  std::string death;      // how the child ended where it did not end well
};

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

std::string describe_death(int status) {
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    return "signal " + std::to_string(number) + " (" + strsignal(number) + ")";
  }
  return "exit status " + std::to_string(WEXITSTATUS(status)) + " without a result";
}

using Note = std::function<void(const std::string&)>;

/// Forks before the implementation is loaded: no thread of it can exist in the parent. `work` may note what it is about to do: one line
/// at a time, of which the parent keeps the last; its result is a line too.
ChildResult in_child(const std::function<std::string(const Note&)>& work, int timeout_s) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error(Code::IO_ERROR, std::string("pipe: ") + std::strerror(errno));
  const pid_t child = ::fork();
  if (child < 0) throw Error(Code::HOST_OOM, std::string("fork: ") + std::strerror(errno));
  if (child == 0) {
    ::close(ends[0]);
    ::setpgid(0, 0);
    ::dup2(STDERR_FILENO, STDOUT_FILENO);  // an implementation that prints must not spoil our output
    write_all(ends[1], work([&](const std::string& line) { write_all(ends[1], line + "\n"); }));
    ::_exit(0);
  }
  ::close(ends[1]);
  ChildResult result;
  const auto deadline = Clock::now() + std::chrono::seconds(timeout_s);
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd ready{ends[0], POLLIN, 0};
    const int n = left > 0 ? ::poll(&ready, 1, static_cast<int>(left)) : 0;
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      result.timed_out = true;
      ::kill(child, SIGKILL);
      break;
    }
    char piece[4096];
    const ssize_t got = ::read(ends[0], piece, sizeof piece);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    result.text.append(piece, static_cast<std::size_t>(got));
    if (const auto end = result.text.rfind('\n'); end != std::string::npos) {
      const auto begin = end == 0 ? std::string::npos : result.text.rfind('\n', end - 1);
      result.note = result.text.substr(begin == std::string::npos ? 0 : begin + 1, end - (begin == std::string::npos ? 0 : begin + 1));
      result.text.erase(0, end + 1);
    }
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  if (!result.timed_out && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) result.death = describe_death(status);
  return result;
}

json to_json(const Verdict& v) {
  return {{"status", name_of(v.status)}, {"margin", v.margin ? json(*v.margin) : json(nullptr)}, {"has_margin", v.margin.has_value()},
          {"message", v.message}, {"seconds", v.seconds}, {"example", v.example}};
}

Verdict from_json(const json& object) {
  Verdict v;
  v.status = status_of(object.at("status").get<std::string>()).value();
  // JSON has no infinity: a margin that was one arrives as null.
  if (object.at("has_margin").get<bool>()) v.margin = object.at("margin").is_null() ? std::numeric_limits<double>::infinity() : object.at("margin").get<double>();
  v.message = object.at("message").get<std::string>();
  v.seconds = object.at("seconds").get<double>();
  v.example = object.at("example").get<std::string>();
  return v;
}

constexpr int describe_timeout_s = 30;

}  // namespace

Description describe_in_child(const GateOptions& options) {
  const ChildResult answer = in_child(
      [&](const Note&) {
        json out;
        try {
          const Subject subject = Subject::open(options);
          const Description d = subject.describe();
          out = {{"json", d.json}, {"groups", d.groups}, {"operations", d.operations}};
        } catch (const Error& e) {
          out = {{"code", static_cast<std::int32_t>(e.code())}, {"message", e.what()}, {"file", e.problem().file}};
        }
        return out.dump(-1, ' ', false, json::error_handler_t::replace);
      },
      describe_timeout_s);
  if (answer.timed_out) throw Error(Code::INTERNAL, "describe() did not return within " + std::to_string(describe_timeout_s) + " s");
  const json object = json::parse(answer.text, nullptr, false);
  if (!object.is_object()) throw Error(Code::INTERNAL, "describe() ended the process: " + answer.death);
  if (object.contains("code"))
    throw Error(static_cast<Code>(object["code"].get<std::int32_t>()), object["message"].get<std::string>(), object["file"].get<std::string>());
  Description d = parse_description(object.at("json").get<std::string>());
  d.groups = object.at("groups").get<std::set<std::string>>();
  d.operations = object.at("operations").get<std::set<std::string>>();
  return d;
}

std::optional<std::map<std::string, std::int64_t>> given_example(const GateOptions& options) {
  return options.example.empty() ? std::nullopt : std::optional(parse_example(options.example));
}

int limit_of(const Case& gate_case, const GateOptions& options) {
  return options.timeout_s > 0 ? std::min(options.timeout_s, gate_case.timeout_s) : gate_case.timeout_s;
}

Verdict run_in_child(const Case& gate_case, const GateOptions& options, const Description& description, const std::function<Subject()>& open) {
  const int limit = limit_of(gate_case, options);
  const auto start = Clock::now();
  const ChildResult result = in_child(
      [&](const Note& note) {
        Verdict v;
        try {
          const Subject subject = open();
          v = run_here(gate_case, subject, description, options.seed, {given_example(options), note});
        } catch (const std::exception& e) {
          v.status = Status::fail;
          v.message = e.what();
        }
        return to_json(v).dump(-1, ' ', false, json::error_handler_t::replace);
      },
      limit);
  Verdict verdict;
  verdict.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const std::string during = result.note.empty() ? "" : " during " + result.note;
  if (result.timed_out) {
    verdict.status = Status::timeout;
    verdict.message = "no result within " + std::to_string(limit) + " s" + during;
    verdict.example = result.note;
    return verdict;
  }
  const json object = json::parse(result.text, nullptr, false);
  if (!result.death.empty() || !object.is_object()) {
    verdict.status = Status::crash;
    verdict.message = "the case's process ended by " + result.death + during;
    verdict.example = result.note;
    return verdict;
  }
  return from_json(object);
}

}  // namespace squareq::gates
