#include "squareq/training/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "squareq/text.hpp"
#include "squareq/training/device.hpp"

namespace squareq::training {

namespace {

using nlohmann::json;

json description(const Implementation& implementation) { return json::parse(implementation.describe()); }

/// Why the implementation cannot serve here, where these groups are needed; empty where it can.
std::string unfit(const json& d, std::initializer_list<const char*> needed) {
  if (!d.value("usable", true)) return d.value("reason", "it says so itself");
  if (d.value("device", "cpu") == "cuda" && !torch_has_cuda()) return "this program was built with a libtorch without CUDA (preset 'cuda' has it)";
  const json groups = d.value("groups", json::array());
  for (const char* group : needed)
    if (std::find(groups.begin(), groups.end(), group) == groups.end()) return fmt::format("it lacks the group '{}'", group);
  return {};
}

Implementation load(const std::string& name, std::initializer_list<const char*> groups = {"linear", "lora", "stream"}) {
  Implementation implementation = Implementation::load(find_backend(name));
  if (const std::string reason = unfit(description(implementation), groups); !reason.empty())
    throw Error(Code::CFG_BACKEND, fmt::format("backend '{}' cannot be used here: {}", printable(name), printable(reason)));
  return implementation;
}

Context create(Implementation implementation, sq_device device, unsigned threads) {
  sq_host host{};
  host.device = device;
  host.allocator = device_allocator(device);
  host.threads = threads;
  host.deterministic = 1;
  return Context(std::move(implementation), host);
}

}  // namespace

ChosenBackend choose_backend() {
  try {
    const Implementation cuda = load("cuda");
    const json d = description(cuda);
    const json devices = d.value("details", json::object()).value("devices", json::array());
    return {"cuda", devices.empty() ? std::string("a GPU is usable") : devices.front().value("name", "a GPU") + " is usable"};
  } catch (const Error& e) {
    if (e.code() != Code::CFG_BACKEND) throw;
    return {"cpu", e.what()};
  }
}

torch::Dtype default_dtype(const std::string& backend) {
  const std::string name = backend == "auto" ? choose_backend().name : backend;
  return description(Implementation::load(find_backend(name))).value("device", "cpu") == "cuda" ? torch::kBFloat16 : torch::kFloat32;
}

Context open_backend(const std::string& name, unsigned threads, bool deterministic) {
  Implementation implementation = load(name == "auto" ? choose_backend().name : name);
  const sq_device device{description(implementation).value("device", "cpu") == "cuda" ? SQ_CUDA : SQ_CPU, 0};
  prepare_device(device, deterministic);
  return create(std::move(implementation), device, threads);
}

Context open_context(const std::string& name, sq_device device, unsigned threads) {
  Implementation implementation = load(name, {"linear", "lora"});
  const std::string wanted = device.kind == SQ_CUDA ? "cuda" : "cpu", own = description(implementation).value("device", "cpu");
  if (own != wanted)
    throw Error(Code::CFG_BACKEND, fmt::format("backend '{}' computes on {}, it was asked for tensors on {}", printable(name), printable(own), wanted));
  return create(std::move(implementation), device, threads);
}

std::string backend_device(const Context& backend) {
  return json::parse(backend.implementation().describe(backend.get())).value("device", "cpu");
}

}  // namespace squareq::training
