#include "squareq/builder/format_group.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "squareq/builder/build.hpp"
#include "squareq/builder/inspect.hpp"
#include "squareq/builder/selection.hpp"
#include "squareq/slab/slab.hpp"
#include "squareq/text.hpp"

struct sq_context {
  std::uint32_t threads = 0;
};

namespace squareq {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr char version[] = "0.1.0";

void copy_text(char* to, std::size_t bytes, const std::string& from) {
  const std::size_t n = std::min(bytes - 1, from.size());
  std::memcpy(to, from.data(), n);
  to[n] = '\0';
}

sq_status fail(sq_error* error, const Problem& p) {
  if (error) {
    error->code = static_cast<sq_status>(p.code);
    copy_text(error->message, sizeof error->message, p.message);
    copy_text(error->layer, sizeof error->layer, p.layer);
    copy_text(error->tensor, sizeof error->tensor, p.tensor);
    copy_text(error->file, sizeof error->file, p.file);
  }
  return static_cast<sq_status>(p.code);
}

/// No exception crosses the C boundary.
template <class Work>
sq_status guarded(sq_error* error, Work work) {
  try {
    work();
    return SQ_OK;
  } catch (const Error& e) {
    return fail(error, e.problem());
  } catch (const std::bad_alloc&) {
    return fail(error, {Code::HOST_OOM, "out of host memory", "", "", ""});
  } catch (const std::exception& e) {
    return fail(error, {Code::INTERNAL, printable(e.what()), "", "", ""});
  }
}

/// The fields of a request, each asked for by name and type; what was not asked for is an error.
class Request {
 public:
  explicit Request(const char* text) {
    if (!text) throw Error(Code::CALL_NULL, "request is null");
    object_ = json::parse(text, nullptr, false);
    if (!object_.is_object()) throw Error(Code::CFG_JSON, "request is not a JSON object");
  }

  bool has(const char* key) { return seen(key) && !object_[key].is_null(); }

  std::string text(const char* key) {
    if (!has(key)) throw Error(Code::CFG_KEY, std::string("request has no \"") + key + "\"");
    if (!object_[key].is_string()) throw Error(Code::CFG_TYPE, std::string("request: \"") + key + "\" is not a string");
    return object_[key];
  }
  std::string text(const char* key, const std::string& otherwise) { return has(key) ? text(key) : otherwise; }

  bool flag(const char* key, bool otherwise) {
    if (!has(key)) return otherwise;
    if (!object_[key].is_boolean()) throw Error(Code::CFG_TYPE, std::string("request: \"") + key + "\" is not true or false");
    return object_[key];
  }

  std::uint64_t natural(const char* key, std::uint64_t otherwise) {
    if (!has(key)) return otherwise;
    if (!object_[key].is_number_unsigned())
      throw Error(Code::CFG_TYPE, std::string("request: \"") + key + "\" is not a non-negative integer");
    return object_[key];
  }

  std::vector<std::string> texts(const char* key) {
    std::vector<std::string> all;
    if (!has(key)) return all;
    if (!object_[key].is_array()) throw Error(Code::CFG_TYPE, std::string("request: \"") + key + "\" is not an array of strings");
    for (const json& item : object_[key]) {
      if (!item.is_string()) throw Error(Code::CFG_TYPE, std::string("request: \"") + key + "\" is not an array of strings");
      all.push_back(item);
    }
    return all;
  }

  void no_other() const {
    for (const auto& [key, value] : object_.items())
      if (!known_.contains(key)) throw Error(Code::CFG_KEY, "request: unknown key \"" + printable(key) + "\"");
  }

 private:
  bool seen(const char* key) {
    known_.insert(key);
    return object_.contains(key);
  }

  json object_;
  std::set<std::string> known_;
};

void answer(const ordered_json& value, sq_text_sink sink, void* user) {
  if (!sink) throw Error(Code::CALL_NULL, "text sink is null");
  const std::string text = value.dump(-1, ' ', true, ordered_json::error_handler_t::replace);
  sink(user, text.data(), text.size());
}

sq_status build_call(sq_context* context, const char* text, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    if (!context) throw Error(Code::CALL_NULL, "context is null");
    Request request(text);
    BuildOptions options;
    options.model = request.text("model");
    options.out = request.text("out");
    options.name = request.text("name");
    options.architecture_id = request.text("arch_id", options.architecture_id);
    options.pack_k = request.natural("pack_k", options.pack_k);
    options.include_prefixes = request.texts("include_prefix");
    options.architecture = request.text("arch", options.architecture);
    options.companion = request.flag("companion", true);
    options.backend = request.text("backend", options.backend);
    options.threads = context->threads;
    request.no_other();
    answer(build_json(build(options)), sink, user);
  });
}

sq_status validate_call(sq_context* context, const char* text, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    if (!context) throw Error(Code::CALL_NULL, "context is null");
    Request request(text);
    if (request.has("slab") == request.has("container"))
      throw Error(Code::CFG_KEY, "request needs exactly one of \"slab\" and \"container\"");
    ValidateOptions options;
    options.quick = request.flag("quick", false);
    options.threads = context->threads;
    if (request.has("model")) {
      Report ignored;
      options.expected_signature = select(Checkpoint::open(request.text("model")), "auto", {}, ignored).signature;
    }
    const bool container = request.has("container");
    const std::string path = request.text(container ? "container" : "slab");
    request.no_other();
    answer(report_json(container ? validate_container(path) : validate(SlabPaths::resolve(path), options)), sink, user);
  });
}

sq_status report_call(sq_context* context, const char* text, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    if (!context) throw Error(Code::CALL_NULL, "context is null");
    Request request(text);
    const std::string path = request.text("slab");
    request.no_other();
    answer(inspect_json(Slab::open(path)), sink, user);
  });
}

sq_status create(const sq_host* host, sq_context** out, sq_error* error) {
  return guarded(error, [&] {
    if (!host || !out) throw Error(Code::CALL_NULL, "host or context is null");
    if (host->abi_version != SQ_ABI_VERSION)
      throw Error(Code::CALL_VERSION, "host speaks contract version " + std::to_string(host->abi_version) + ", squareq version " +
                                          std::to_string(SQ_ABI_VERSION));
    *out = new sq_context{host->threads};
  });
}

void destroy(sq_context* context) { delete context; }

sq_status describe(sq_context*, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    answer({{"name", "squareq"},
            {"version", version},
            {"abi_version", SQ_ABI_VERSION},
            {"device", "cpu"},
            {"deterministic", true},
            {"usable", true},
            {"groups", {"format"}},
            {"operations", ordered_json::array()},
            {"formats", {"bp8_v2"}},
            {"activation_dtypes", ordered_json::array()},
            {"rounding_classes", ordered_json::array()},
            {"details", {{"architectures", architecture_ids()}}}},
           sink, user);
  });
}

}  // namespace

const sq_implementation* format_implementation() {
  static const sq_format_group format = {sizeof(sq_format_group), 0, build_call, validate_call, report_call};
  static const sq_implementation table = {sizeof(sq_implementation),
                                          SQ_ABI_VERSION,
                                          "squareq",
                                          version,
                                          create,
                                          destroy,
                                          describe,
                                          nullptr,
                                          nullptr,
                                          nullptr,
                                          &format,
                                          nullptr};
  return &table;
}

}  // namespace squareq
