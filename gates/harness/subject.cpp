#include "gates/harness/subject.hpp"

#include <nlohmann/json.hpp>

#include "gates/harness/placement.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

[[noreturn]] void bad_description(const std::string& what) { throw Error(Code::INTERNAL, "describe(): " + what); }

std::set<std::string> words(const json& object, const char* key) {
  std::set<std::string> out;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) bad_description(std::string("no array '") + key + "'");
  for (const json& item : *found) {
    if (!item.is_string()) bad_description(std::string("'") + key + "' holds something that is no string");
    out.insert(item.get<std::string>());
  }
  return out;
}

std::string text(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) bad_description(std::string("no string '") + key + "'");
  return found->get<std::string>();
}

bool is_path(std::string_view backend) { return backend.find('/') != std::string_view::npos || backend.ends_with(".so"); }

}  // namespace

bool Description::offers(std::string_view need) const {
  const auto tail = [need](std::string_view prefix) { return std::string(need.substr(prefix.size())); };
  if (need.starts_with("operation:")) return operations.contains(tail("operation:"));
  if (need.starts_with("dtype:")) return activation_dtypes.contains(tail("dtype:"));
  if (need.starts_with("format:")) return formats.contains(tail("format:"));
  if (need.starts_with("device:")) return device == tail("device:");
  if (need.starts_with("class:")) return rounding_classes.contains(tail("class:"));
  if (need == "in_process") return in_process;
  return groups.contains(std::string(need));
}

Description parse_description(const std::string& answer) {
  const json object = json::parse(answer, nullptr, false);
  if (!object.is_object()) bad_description("the answer is no JSON object: '" + printable(answer, 80) + "'");
  Description d;
  d.json = answer;
  d.name = text(object, "name");
  d.version = text(object, "version");
  const auto abi = object.find("abi_version");
  if (abi == object.end() || !abi->is_number_integer() || abi->get<std::int64_t>() != SQ_ABI_VERSION) bad_description("abi_version is not " + std::to_string(SQ_ABI_VERSION));
  d.groups = words(object, "groups");
  d.operations = words(object, "operations");
  if (object.contains("device")) d.device = text(object, "device");
  if (object.contains("formats")) d.formats = words(object, "formats");
  if (object.contains("activation_dtypes")) d.activation_dtypes = words(object, "activation_dtypes");
  if (object.contains("rounding_classes")) d.rounding_classes = words(object, "rounding_classes");
  const auto flag = [&](const char* key, bool fallback) {
    const auto found = object.find(key);
    if (found == object.end()) return fallback;
    if (!found->is_boolean()) bad_description(std::string("'") + key + "' is no boolean");
    return found->get<bool>();
  };
  d.deterministic = flag("deterministic", false);
  d.usable = flag("usable", true);
  if (object.contains("reason") && object["reason"].is_string()) d.reason = object["reason"].get<std::string>();
  return d;
}

namespace {

sq_host host_with(std::uint32_t threads) {
  auto host = sized<sq_host>();
  host.threads = threads;
  host.deterministic = 1;
  return host;
}

}  // namespace

Instance::Instance(const Implementation& implementation, std::uint32_t threads) : Instance(implementation, host_with(threads)) {}

Instance::Instance(const Implementation& implementation, sq_host host) : meter_(std::make_unique<Meter>(device_of(implementation))) {
  host.allocator = meter_->table();
  context_.emplace(implementation, host);
}

Subject Subject::open(const GateOptions& options) {
  Subject subject(Implementation::load(find_backend(options.backend)));
  subject.place_tensors();
  if (!is_path(options.backend)) {
    if (options.format && !subject.main_->format) subject.format_.emplace(options.format);
    if (options.module && !subject.main_->module) subject.module_.emplace(options.module);
  }
  return subject;
}

Subject Subject::on(const Implementation& implementation, DeviceMemory& device) {
  use_device(&device);
  return Subject(placed_on(implementation, device));
}

/// What describes itself badly is judged where it is described, and runs on the host.
void Subject::place_tensors() {
  const json d = json::parse(main_.describe(), nullptr, false);
  if (!d.is_object() || d.value("device", json()) != "cuda" || d.value("usable", json(true)) == false) return;
  *this = on(main_, cuda_device_memory());
}

const Implementation& Subject::of_group(std::string_view group) const {
  if (group == "format" && format_) return *format_;
  if (group == "module" && module_) return *module_;
  return main_;
}

Description Subject::describe() const {
  Description d = parse_description(main_.describe());
  for (const auto* table : {&format_, &module_}) {
    if (!*table) continue;
    const Description more = parse_description((*table)->describe());
    d.groups.insert(more.groups.begin(), more.groups.end());
    d.operations.insert(more.operations.begin(), more.operations.end());
  }
  return d;
}

}  // namespace squareq::gates
