#include "gates/adapter/session.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "squareq/contract.h"
#include "squareq/text.hpp"

namespace squareq::gates::adapter {

using nlohmann::json;
using nlohmann::ordered_json;
using Milliseconds = std::chrono::milliseconds;

/// Written by whichever process makes a call, read by the parent after it.
struct Session::Shared {
  std::uint64_t next_id = 1;
  std::uint32_t under_way = 0;  // a request was sent and not yet answered
  std::uint32_t contexts = 0;
  Fault::Kind fault = Fault::Kind::none;
  char text[2048] = "";
};

namespace {

constexpr Milliseconds stop_limit{10'000};

void copy_text(char* to, std::size_t room, const std::string& text) {
  const std::size_t n = std::min(room - 1, text.size());
  std::memcpy(to, text.data(), n);
  to[n] = '\0';
}

}  // namespace

Session::Session(std::string command, Limits limits) : command_(std::move(command)), limits_(limits), owner_(::getpid()) {
  std::string pattern = (std::filesystem::temp_directory_path() / "squareq-adapter-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw Error(Code::IO_ERROR, "cannot make a temporary folder " + pattern + ": " + std::strerror(errno));
  folder_ = pattern;
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error(Code::HOST_OOM, std::string("mmap: ") + std::strerror(errno));
  shared_ = new (memory) Shared;
}

Session::~Session() {
  if (owner_ != ::getpid()) return;
  process_.reset();
  ::munmap(shared_, sizeof(Shared));
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void Session::launch() {
  process_.reset();
  const std::filesystem::path log = folder_ / "stderr";
  std::error_code ignored;
  const std::uintmax_t bytes = std::filesystem::file_size(log, ignored);
  log_start_ = ignored ? 0 : bytes;
  const std::uint64_t next_id = shared_->next_id;  // ids and folders are never used twice in a run
  *shared_ = Shared{};
  shared_->next_id = next_id;
  process_ = std::make_unique<Process>(command_, log);
}

void Session::start() {
  launch();
  try {
    ordered_json request = {{"command", "start"}, {"protocol", protocol_version}, {"host", {{"name", "squareq gates"}, {"abi_version", SQ_ABI_VERSION}, {"max_answer_bytes", max_answer_bytes}}}};
    const Answer answer = exchange(std::move(request), limits_.start);
    if (answer.kind != Answer::Kind::ok)
      throw Fault(Fault::Kind::protocol, "the adapter refused to start with protocol " + std::to_string(protocol_version) + ": " + std::string(code_name(answer.code)) + ": " + printable(answer.message));
    for (const char* group : {"stream", "telemetry"})
      if (const auto groups = answer.result.find("groups"); groups != answer.result.end() && groups->is_array() && std::find(groups->begin(), groups->end(), group) != groups->end())
        throw Fault(Fault::Kind::protocol, std::string("the adapter describes the group '") + group + "', which the protocol does not carry");
    const std::string text = answer.result.dump();
    if (!description_.empty() && text != description_) throw Fault(Fault::Kind::protocol, "the adapter describes itself otherwise than at its first start");
    description_ = text;
  } catch (const Fault& fault) {
    throw Fault(fault.kind, std::string(fault.what()) + post_mortem());
  }
}

Answer Session::exchange(ordered_json request, Milliseconds limit) {
  if (!process_) throw Fault(Fault::Kind::crash, "the adapter does not run");
  const std::uint64_t id = shared_->next_id++;
  ordered_json line = {{"id", id}};
  line.update(request);
  const auto deadline = Clock::now() + limit;
  shared_->under_way = 1;
  process_->send(line.dump(-1, ' ', true, ordered_json::error_handler_t::replace), deadline);
  Answer answer = parse_answer(process_->receive(deadline), id);
  shared_->under_way = 0;
  return answer;
}

void Session::remember(const Fault& fault) {
  if (shared_->fault == Fault::Kind::none) {
    shared_->fault = fault.kind;
    copy_text(shared_->text, sizeof shared_->text, fault.what());
  }
  throw Fault(shared_->fault, shared_->text);
}

json Session::call(ordered_json request, const std::vector<NamedTensor>& inputs, const std::vector<NamedTensor>& outputs) {
  const std::lock_guard lock(mutex_);
  if (shared_->fault != Fault::Kind::none) throw Fault(shared_->fault, shared_->text);
  const std::string command = request["command"].get<std::string>();
  const std::filesystem::path folder = folder_ / std::to_string(shared_->next_id);
  const bool with_files = !inputs.empty() || !outputs.empty();
  struct Removal {
    const std::filesystem::path& path;
    ~Removal() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } const removal{folder};
  try {
    if (with_files) {
      std::filesystem::create_directory(folder);
      write_inputs(folder / "inputs.safetensors", inputs);
      request["folder"] = folder.string();
      ordered_json wanted = ordered_json::object();
      for (const NamedTensor& t : outputs)
        wanted[t.name] = {{"dtype", protocol_dtype(t.tensor->dtype)}, {"shape", std::vector<std::int64_t>(t.tensor->shape, t.tensor->shape + t.tensor->rank)}};
      if (!wanted.empty() || !request.contains("outputs")) request["outputs"] = wanted;
    }
    Answer answer = exchange(std::move(request), limits_.call);
    if (answer.kind == Answer::Kind::unsupported) throw Refusal{Code::CALL_UNSUPPORTED, answer.message.empty() ? "the adapter answered that " + command + " is unsupported" : answer.message, {}, {}};
    if (answer.kind == Answer::Kind::refused) throw Refusal{answer.code, answer.message, answer.layer, answer.tensor};
    if (!outputs.empty()) read_outputs(folder / "outputs.safetensors", outputs);
    return std::move(answer.result);
  } catch (const Fault& fault) {
    remember(Fault(fault.kind, command + ": " + fault.what()));
  } catch (const std::filesystem::filesystem_error& error) {
    throw Error(Code::IO_ERROR, error.what());
  }
}

bool Session::before_case(Milliseconds call_limit, Verdict& verdict) {
  limits_.call = call_limit;
  const bool sound = process_ && shared_->fault == Fault::Kind::none && !shared_->under_way && !shared_->contexts;
  std::error_code ignored;
  const std::uintmax_t bytes = std::filesystem::file_size(folder_ / "stderr", ignored);
  log_start_ = ignored ? 0 : bytes;
  if (sound) return true;
  if (unusable_.empty()) {
    try {
      start();
      return true;
    } catch (const Fault& fault) {
      unusable_ = fault.what();  // not tried again: a start may take minutes to fail
    }
  }
  verdict.status = Status::crash;
  verdict.message = "the adapter could not be started again: " + unusable_;
  return false;
}

void Session::after_case(Verdict& verdict) {
  if (shared_->fault != Fault::Kind::none) {
    verdict.status = shared_->fault == Fault::Kind::crash ? Status::crash : shared_->fault == Fault::Kind::timeout ? Status::timeout : Status::fail;
    verdict.message = std::string("adapter: ") + shared_->text + post_mortem();
  } else if (verdict.status == Status::timeout || verdict.status == Status::crash) {
    verdict.message += std::string("; the adapter was ") + (shared_->under_way ? "answering request " + std::to_string(shared_->next_id - 1) : std::string("idle"));
  } else {
    return;
  }
  process_.reset();
}

void Session::context_opened() { ++shared_->contexts; }
void Session::context_closed() { --shared_->contexts; }

std::string Session::stop() {
  try {
    const Answer answer = exchange({{"command", "stop"}}, stop_limit);
    if (answer.kind != Answer::Kind::ok) return "it did not answer stop with ok";
    if (!process_->close_and_wait(Clock::now() + stop_limit)) return "it answered stop and did not end within " + std::to_string(stop_limit.count() / 1000) + " s";
    if (!process_->ended_well()) return "after stop it " + process_->end();
    process_.reset();
    return {};
  } catch (const Fault& fault) {
    return fault.what();
  }
}

std::string Session::stderr_tail() const {
  std::ifstream log(folder_ / "stderr", std::ios::binary);
  log.seekg(0, std::ios::end);
  const auto end = static_cast<std::uintmax_t>(std::max<std::streamoff>(log.tellg(), 0));
  constexpr std::uintmax_t shown = 1500;
  const std::uintmax_t from = std::max(log_start_, end > shown ? end - shown : 0);
  log.clear();
  log.seekg(static_cast<std::streamoff>(from));
  std::string text{std::istreambuf_iterator<char>(log), {}};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string Session::post_mortem() {
  std::string text;
  if (process_) {
    process_->kill();
    text = "; its process " + process_->end();
    process_.reset();
  }
  const std::string tail = stderr_tail();
  return text + (tail.empty() ? "; its stderr is empty" : "; its stderr ends with: " + printable(tail, 1500));
}

}  // namespace squareq::gates::adapter
