// C++20 wrapper of the contract: loads an implementation, turns status codes into squareq::Error, owns contexts, stream sessions
// and leases. Header-only; thread-safety is that of contract.h.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "squareq/contract.h"
#include "squareq/error.hpp"
#include "squareq/tensor.hpp"

namespace squareq {

/// sq_error with its size set.
inline sq_error make_error() {
  sq_error e{};
  e.size = sizeof(sq_error);
  return e;
}

/// Throws Error for any status but SQ_OK. Layer, tensor and file come from the implementation's error record.
inline void check(sq_status status, const sq_error& e) {
  if (status == SQ_OK) return;
  const std::string text = e.message[0] ? e.message : std::string(code_meaning(static_cast<Code>(status)));
  throw Error(static_cast<Code>(status), text, e.file, e.layer, e.tensor);
}

inline void append_text(void* user, const char* text, std::uint64_t bytes) {
  static_cast<std::string*>(user)->append(text, bytes);
}

/// A contract struct with its size field set: `auto args = sized<sq_linear_forward_args>();`
template <class T>
T sized() {
  T value{};
  value.size = sizeof(T);
  return value;
}

/// Whether a group's table reaches as far as `entry` and has it there: tables grow at their end, so an older one is shorter.
template <class Group, class Operation>
bool offered(const Group& group, Operation Group::*entry) {
  const auto end = reinterpret_cast<const char*>(&(group.*entry)) + sizeof(Operation) - reinterpret_cast<const char*>(&group);
  return static_cast<std::size_t>(end) <= group.size && group.*entry != nullptr;
}

/// An implementation of the contract, from a shared library (kept open while any copy lives) or from this process.
class Implementation {
 public:
  explicit Implementation(const sq_implementation* table) : table_(table) {}

  /// Opens a shared library by path with RTLD_LOCAL. Throws CFG_BACKEND (cannot be opened, no entry point) or CALL_VERSION (both
  /// versions named).
  static Implementation load(const std::filesystem::path& path) {
    std::shared_ptr<void> library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), [](void* h) { if (h) dlclose(h); });
    if (!library) throw Error(Code::CFG_BACKEND, std::string("cannot load backend: ") + dlerror(), path.string());
    const auto entry = reinterpret_cast<sq_get_implementation>(dlsym(library.get(), SQ_ENTRY_POINT));
    if (!entry) throw Error(Code::CFG_BACKEND, path.string() + " exports no " SQ_ENTRY_POINT, path.string());
    std::uint32_t own = 0;
    const sq_implementation* table = entry(SQ_ABI_VERSION, &own);
    if (!table || table->abi_version != SQ_ABI_VERSION)
      throw Error(Code::CALL_VERSION, path.string() + " implements contract version " + std::to_string(own) + ", this program version " +
                                          std::to_string(SQ_ABI_VERSION), path.string());
    Implementation implementation(table);
    implementation.library_ = std::move(library);
    return implementation;
  }

  const sq_implementation& table() const { return *table_; }
  const sq_implementation* operator->() const { return table_; }

  /// The implementation's description of itself on this machine, a JSON object.
  std::string describe(sq_context* context = nullptr) const {
    std::string text;
    sq_error e = make_error();
    check(table_->describe(context, append_text, &text, &e), e);
    return text;
  }

 private:
  const sq_implementation* table_;
  std::shared_ptr<void> library_;
};

/// Our own backends: libsquareq_NAME.so in $SQUAREQ_BACKEND_PATH, beside the program, or in ../lib of it. NAME may also be a path
/// to any shared library (it then holds a '/' or ends in ".so"). Throws CFG_BACKEND, naming what was looked for.
inline std::filesystem::path find_backend(std::string_view name) {
  namespace fs = std::filesystem;
  if (name.find('/') != std::string_view::npos || name.ends_with(".so")) return fs::path(name);
  const std::string file = "libsquareq_" + std::string(name) + ".so";
  std::vector<fs::path> folders;
  if (const char* path = std::getenv("SQUAREQ_BACKEND_PATH")) folders.emplace_back(path);
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  folders.push_back(program);
  folders.push_back(program.parent_path() / "lib");
  folders.push_back(program.parent_path() / "lib" / "squareq");
  std::string looked;
  for (const fs::path& folder : folders) {
    if (fs::exists(folder / file, ignored)) return folder / file;
    looked += (looked.empty() ? "" : ", ") + folder.string();
  }
  throw Error(Code::CFG_BACKEND, "backend '" + std::string(name) + "' not found: no " + file + " in " + looked);
}

/// One instance of an implementation. Movable; the destructor destroys it.
class Context {
 public:
  Context(Implementation implementation, sq_host host) : implementation_(std::move(implementation)) {
    host.size = sizeof(sq_host);
    host.abi_version = SQ_ABI_VERSION;
    sq_context* raw = nullptr;
    sq_error e = make_error();
    check(implementation_->create(&host, &raw, &e), e);
    context_ = std::shared_ptr<sq_context>(raw, implementation_->destroy);
  }

  sq_context* get() const { return context_.get(); }
  const Implementation& implementation() const { return implementation_; }
  const sq_implementation* operator->() const { return &implementation_.table(); }

  /// The group's table, or CALL_UNSUPPORTED naming implementation and group.
  const sq_linear_group& linear() const { return require(implementation_->linear, "linear"); }
  const sq_stream_group& stream() const { return require(implementation_->stream, "stream"); }
  const sq_telemetry_group& telemetry() const { return require(implementation_->telemetry, "telemetry"); }

 private:
  template <class Group>
  const Group& require(const Group* group, const char* name) const {
    if (!group) throw Error(Code::CALL_UNSUPPORTED, std::string("backend '") + implementation_->name + "' has no group '" + name + "'");
    return *group;
  }

  Implementation implementation_;            // declared first: the library must outlive the context
  std::shared_ptr<sq_context> context_;
};

/// Calls one operation of a group and throws on failure: call(ctx.linear().linear_forward, ctx, args).
template <class Args>
void call(sq_status (*operation)(sq_context*, const Args*, sq_error*), const Context& context, const Args& args) {
  if (!operation) throw Error(Code::CALL_UNSUPPORTED, std::string("operation not offered by backend '") + context->name + "'");
  sq_error e = make_error();
  check(operation(context.get(), &args, &e), e);
}

/// A stream session; closes itself.
class StreamSession {
 public:
  StreamSession(Context context, const sq_stream_open_args& args) : context_(std::move(context)) {
    sq_error e = make_error();
    check(context_.stream().open(context_.get(), &args, &id_, &e), e);
  }
  StreamSession(const StreamSession&) = delete;
  StreamSession& operator=(const StreamSession&) = delete;
  ~StreamSession() { context_.stream().close(context_.get(), id_, nullptr); }

  std::uint64_t id() const { return id_; }
  const Context& context() const { return context_; }

  void begin_step(std::uint32_t schedule) {
    sq_error e = make_error();
    check(context_.stream().begin_step(context_.get(), id_, schedule, &e), e);
  }
  void end_step(bool abandoned = false) {
    sq_error e = make_error();
    check(context_.stream().end_step(context_.get(), id_, abandoned ? 1 : 0, &e), e);
  }
  sq_stream_stats stats() const {
    auto s = sized<sq_stream_stats>();
    sq_error e = make_error();
    check(context_.stream().stats(context_.get(), id_, &s, &e), e);
    return s;
  }

 private:
  Context context_;
  std::uint64_t id_ = 0;
};

/// A block's weights between acquire and release. Releases on every path.
class Lease {
 public:
  Lease(StreamSession& session, std::uint32_t block, sq_stream_handle stream = nullptr) : session_(&session), stream_(stream) {
    sq_error e = make_error();
    check(session.context().stream().acquire(session.context().get(), session.id(), block, stream, &lease_, &e), e);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (lease_) session_->context().stream().release(session_->context().get(), session_->id(), lease_, stream_, nullptr);
  }

  sq_weight_ref layer(std::uint32_t index) const {
    auto ref = sized<sq_weight_ref>();
    ref.layer = index;
    ref.session = session_->id();
    ref.lease = lease_;
    return ref;
  }
  void release() {
    sq_error e = make_error();
    const sq_status status = session_->context().stream().release(session_->context().get(), session_->id(), lease_, stream_, &e);
    lease_ = 0;
    check(status, e);
  }

 private:
  StreamSession* session_;
  sq_stream_handle stream_;
  sq_lease lease_ = 0;
};

}  // namespace squareq
