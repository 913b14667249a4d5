#include "squareq/training/modules/module_group.hpp"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "squareq/error.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"
#include "squareq/training/backend.hpp"
#include "squareq/training/model.hpp"
#include "squareq/training/models/slab_reader.hpp"
#include "squareq/training/modules/scaffold.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using torch::nn::Module;

/// A module that is no quantized Linear: one weight, frozen.
class OtherModule : public Module {
 public:
  OtherModule(const std::string& kind, const std::vector<std::int64_t>& shape) : Module(kind) {
    register_parameter("weight", torch::zeros(shape), false);
  }
};

struct ModuleContext {
  std::mutex mutex;
  std::map<std::uint64_t, std::shared_ptr<Module>> trees;
  std::uint64_t next = 1;
  unsigned threads = 0;
  std::optional<Context> backend;
};

ModuleContext& own(sq_context* context) {
  if (!context) throw Error(Code::CALL_NULL, "context is null");
  return *reinterpret_cast<ModuleContext*>(context);
}

Module& tree_of(ModuleContext& context, std::uint64_t id) {
  const auto at = context.trees.find(id);
  if (at == context.trees.end()) throw Error(Code::CALL_STATE, fmt::format("module {} does not exist", id));
  return *at->second;
}

template <class Work>
sq_status locked(sq_context* context, sq_error* error, Work&& work) {
  return guarded(error, [&] {
    ModuleContext& own_context = own(context);
    const std::lock_guard lock(own_context.mutex);
    try {
      work(own_context);
    } catch (const json::exception& e) {
      throw Error(Code::CALL_VALUE, fmt::format("request: {}", printable(e.what())));
    }
  });
}

json parsed(const char* request) {
  if (!request) throw Error(Code::CALL_NULL, "request is null");
  return json::parse(request);
}

void answer(sq_text_sink sink, void* user, const ordered_json& value) {
  if (!sink) return;
  const std::string text = value.dump(-1, ' ', true, ordered_json::error_handler_t::replace);
  sink(user, text.data(), text.size());
}

/// A key that nothing reads is a mistake of the caller's, not a wish to be passed over.
void only_keys(const json& object, const std::string& what, std::initializer_list<const char*> known) {
  if (!object.is_object()) throw Error(Code::CALL_VALUE, fmt::format("{} is no JSON object", what));
  for (const auto& item : object.items())
    if (std::find(known.begin(), known.end(), item.key()) == known.end())
      throw Error(Code::CALL_VALUE, fmt::format("{} holds the unknown key '{}'", what, printable(item.key())));
}

LinearSpec linear_spec(const json& layer) {
  only_keys(layer, "an entry of 'layers'", {"name", "in", "out", "bias"});
  LinearSpec spec{layer.at("name"), layer.at("in"), layer.at("out"), layer.at("bias")};
  if (spec.in < 1 || spec.out < 1)
    throw Error(Code::CALL_VALUE, fmt::format("layer '{}': in is {}, out is {}, both must be at least 1", printable(spec.name), spec.in, spec.out));
  return spec;
}

LoraSpec lora_spec(const json& lora) {
  only_keys(lora, "'lora'", {"rank", "alpha", "init"});
  LoraSpec spec;
  spec.rank = lora.value("rank", std::int64_t{8});
  spec.alpha = lora.value("alpha", 1.0);
  if (spec.rank < 1) throw Error(Code::CALL_VALUE, fmt::format("lora rank is {}, must be at least 1", spec.rank));
  const std::string init = lora.value("init", "peft");
  if (init != "peft" && init != "squareq") throw Error(Code::CALL_VALUE, fmt::format("lora init '{}' is none of peft, squareq", printable(init)));
  spec.init = init == "peft" ? LoraInit::peft : LoraInit::squareq;
  return spec;
}

torch::Dtype float_dtype(const std::string& name) {
  for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf, torch::kFloat64})
    if (squareq::dtype_name(to_sq_dtype(dtype)) == name) return dtype;
  throw Error(Code::CALL_VALUE, fmt::format("dtype '{}' is none of f32, bf16, f16, f64", printable(name)));
}

/// Registers `leaf` at a dotted path, making containers on the way.
void place(Module& root, const std::string& path, std::shared_ptr<Module> leaf) {
  Module* at = &root;
  std::size_t from = 0;
  for (std::size_t dot = path.find('.'); dot != std::string::npos; from = dot + 1, dot = path.find('.', from)) {
    const std::string part = path.substr(from, dot - from);
    const auto children = at->named_children();
    at = children.contains(part) ? children[part].get() : at->register_module(part, std::make_shared<Module>("container")).get();
  }
  const std::string last = path.substr(from);
  if (last.empty() || at->named_children().contains(last))
    throw Error(Code::CALL_VALUE, fmt::format("module '{}' is given twice, or its name is empty", printable(path)));
  at->register_module(last, std::move(leaf));
}

std::shared_ptr<Module> other_module(const json& other) {
  only_keys(other, "an entry of 'others'", {"name", "kind", "shape", "bias"});
  const std::string name = other.at("name"), kind = other.at("kind");
  const auto shape = other.at("shape").get<std::vector<std::int64_t>>();
  const std::map<std::string, std::size_t> kinds{{"embedding", 2}, {"layer_norm", 1}, {"rms_norm", 1}, {"conv2d", 4}, {"linear", 2}};
  const auto known = kinds.find(kind);
  if (known == kinds.end())
    throw Error(Code::CALL_VALUE, fmt::format("module '{}': kind '{}' is none of embedding, layer_norm, rms_norm, conv2d, linear",
                                              printable(name), printable(kind)));
  if (shape.size() != known->second)
    throw Error(Code::CALL_VALUE,
                fmt::format("module '{}': a {} has {} dimensions, {} are given", printable(name), kind, known->second, shape.size()));
  if (kind == "linear") return std::make_shared<LinearShape>(LinearSpec{name, shape[1], shape[0], other.value("bias", false)});
  return std::make_shared<OtherModule>(kind, shape);
}

sq_status create(sq_context* context, const char* request, std::uint64_t* module, sq_text_sink sink, void* user, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    if (!module) throw Error(Code::CALL_NULL, "module is null");
    const json r = parsed(request);
    only_keys(r, "the request", {"layers", "others", "lora"});
    auto root = std::make_shared<Module>("model");
    std::set<std::string> others;  // paths that hold a module already
    for (const json& other : r.value("others", json::array())) {
      place(*root, other.at("name"), other_module(other));
      others.insert(other.at("name").get<std::string>());
    }
    std::vector<LinearSpec> layers;
    for (const json& layer : r.at("layers")) {
      layers.push_back(linear_spec(layer));
      // A layer that is listed twice is for scaffold() to refuse.
      if (others.insert(layers.back().name).second) place(*root, layers.back().name, std::make_shared<LinearShape>(layers.back()));
    }
    std::optional<LoraSpec> lora;
    if (const json l = r.value("lora", json()); !l.is_null()) lora = lora_spec(l);
    const std::vector<std::string> replaced = scaffold(*root, layers, lora);
    *module = c.next++;
    c.trees.emplace(*module, root);
    answer(sink, user, {{"layers", replaced}});
  });
}

sq_status load(sq_context* context, std::uint64_t module, const char* request, sq_text_sink sink, void* user, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    Module& root = tree_of(c, module);
    const json r = parsed(request);
    only_keys(r, "the request", {"slab"});
    const Slab slab = Slab::open(r.at("slab").get<std::string>());
    answer(sink, user, {{"loaded", load_slab(root, slab)}});
  });
}

sq_status cast(sq_context* context, std::uint64_t module, const char* request, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    Module& root = tree_of(c, module);
    const json r = parsed(request);
    only_keys(r, "the request", {"dtype", "scope"});
    const torch::Dtype dtype = float_dtype(r.at("dtype").get<std::string>());
    const std::string scope = r.value("scope", "parent");
    if (scope == "parent") return root.to(dtype);
    if (scope != "module") throw Error(Code::CALL_VALUE, fmt::format("scope '{}' is none of module, parent", printable(scope)));
    for (const auto& child : root.modules(false))
      if (auto* quantized = dynamic_cast<QuantLinear*>(child.get())) quantized->to(dtype);
  });
}

ordered_json entry(const std::string& name, const torch::Tensor& t) {
  return {{"name", name}, {"dtype", squareq::dtype_name(to_sq_dtype(t.scalar_type()))}, {"shape", t.sizes().vec()}};
}

sq_status list(sq_context* context, std::uint64_t module, sq_text_sink sink, void* user, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    Module& root = tree_of(c, module);
    ordered_json parameters = ordered_json::array(), buffers = ordered_json::array();
    for (const auto& p : root.named_parameters()) {
      parameters.push_back(entry(p.key(), p.value()));
      parameters.back()["trainable"] = p.value().requires_grad();
    }
    for (const auto& b : root.named_buffers()) buffers.push_back(entry(b.key(), b.value()));
    answer(sink, user, {{"parameters", parameters}, {"buffers", buffers}});
  });
}

sq_status freeze_all(sq_context* context, std::uint64_t module, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) { freeze(tree_of(c, module)); });
}

/// The contract's tensor over the caller's memory, after dtype, shape and contiguity were compared with `like`.
torch::Tensor callers(const sq_tensor* tensor, const torch::Tensor& like, const char* name) {
  if (!tensor || (!tensor->data && like.numel())) throw Error(Code::CALL_NULL, fmt::format("tensor for '{}' is null", printable(name)));
  if (tensor->dtype != to_sq_dtype(like.scalar_type()))
    throw Error(Code::CALL_DTYPE, fmt::format("'{}' is {}, the tensor given is {}", printable(name),
                                              squareq::dtype_name(to_sq_dtype(like.scalar_type())), squareq::dtype_name(tensor->dtype)));
  const std::vector<std::int64_t> shape(tensor->shape, tensor->shape + tensor->rank),
      strides(tensor->strides, tensor->strides + tensor->rank);
  if (like.sizes() != at::IntArrayRef(shape))
    throw Error(Code::CALL_SHAPE,
                fmt::format("'{}' has shape {}, the tensor given {}", printable(name), shape_of(like), shape_text(shape)));
  return torch::from_blob(tensor->data, shape, strides, torch::dtype(like.scalar_type()));
}

torch::Tensor find(Module& root, const char* name, bool buffers) {
  if (!name) throw Error(Code::CALL_NULL, "name is null");
  const auto parameters = root.named_parameters();
  if (const auto* p = parameters.find(name)) return *p;
  const auto all = root.named_buffers();
  if (const auto* b = all.find(name)) {
    if (!buffers) throw Error(Code::CALL_VALUE, fmt::format("'{}' is quantized state: only load changes it", printable(name)));
    return *b;
  }
  throw Error(Code::CALL_VALUE, fmt::format("the module has no parameter or buffer '{}'", printable(name)));
}

sq_status read(sq_context* context, std::uint64_t module, const char* name, const sq_tensor* out, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    torch::NoGradGuard no_grad;
    const torch::Tensor tensor = find(tree_of(c, module), name, true);
    callers(out, tensor, name).copy_(tensor);
  });
}

sq_status write(sq_context* context, std::uint64_t module, const char* name, const sq_tensor* in, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    torch::NoGradGuard no_grad;
    torch::Tensor tensor = find(tree_of(c, module), name, false);
    tensor.copy_(callers(in, tensor, name));
  });
}

sq_status forward(sq_context* context, std::uint64_t module, const char* layer, const sq_tensor* x, const sq_tensor* y, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    torch::NoGradGuard no_grad;
    if (!layer || !x || !y) throw Error(Code::CALL_NULL, "layer, x or y is null");
    Module& root = tree_of(c, module);
    const QuantLinear* quantized = nullptr;
    for (const auto& item : root.named_modules("", false))
      if (item.key() == layer) quantized = dynamic_cast<const QuantLinear*>(item.value().get());
    if (!quantized)
      throw Error(Code::MD_LAYER, fmt::format("'{}' is no quantized layer of the module", printable(layer)), {}, printable(layer));
    for (const auto& [tensor, which] : {std::pair{x, "x"}, {y, "y"}})
      if (tensor->dtype != SQ_F32 && tensor->dtype != SQ_BF16 && tensor->dtype != SQ_F16 && tensor->dtype != SQ_F64)
        throw Error(Code::CALL_DTYPE, fmt::format("layer '{}': {} is {}, must be f32, bf16, f16 or f64", printable(layer), which, squareq::dtype_name(tensor->dtype)), {},
                    printable(layer), which);
    if (!c.backend) c.backend.emplace(open_backend("cpu", c.threads));
    const std::vector<std::int64_t> shape(x->shape, x->shape + x->rank), strides(x->strides, x->strides + x->rank);
    const torch::Tensor input = torch::from_blob(x->data, shape, strides, torch::dtype(to_torch_dtype(x->dtype)));
    const torch::Tensor output = quantized->forward(input, *c.backend);
    const torch::Tensor destination = callers(y, output.to(to_torch_dtype(y->dtype)), layer);
    destination.copy_(output);
  });
}

sq_status destroy_module(sq_context* context, std::uint64_t module, sq_error* error) {
  return locked(context, error, [&](ModuleContext& c) {
    tree_of(c, module);
    c.trees.erase(module);
  });
}

sq_status create_context(const sq_host* host, sq_context** context, sq_error* error) {
  return guarded(error, [&] {
    if (!host || !context) throw Error(Code::CALL_NULL, "host or context is null");
    if (host->abi_version != SQ_ABI_VERSION)
      throw Error(Code::CALL_VERSION, fmt::format("host was compiled with contract version {}, this implementation with {}",
                                                  host->abi_version, SQ_ABI_VERSION));
    auto own_context = std::make_unique<ModuleContext>();
    own_context->threads = host->threads;
    *context = reinterpret_cast<sq_context*>(own_context.release());
  });
}

void destroy_context(sq_context* context) { delete reinterpret_cast<ModuleContext*>(context); }

sq_status describe(sq_context*, sq_text_sink sink, void* user, sq_error* error) {
  return guarded(error, [&] {
    answer(sink, user,
           {{"name", "squareq"},
            {"version", "0.1.0"},
            {"abi_version", SQ_ABI_VERSION},
            {"device", "cpu"},
            {"deterministic", true},
            {"groups", {"module"}},
            {"operations", {"create", "load", "cast", "list", "freeze", "read", "write", "forward"}},
            {"formats", {"bp8_v2"}},
            {"activation_dtypes", {"f32", "bf16", "f16"}},
            {"rounding_classes", ordered_json::array()},
            {"details", ordered_json::object()}});
  });
}

constexpr sq_module_group kGroup{sizeof(sq_module_group), 0, create, load, cast, list, freeze_all, read, write, forward, destroy_module};

}  // namespace

const sq_implementation* module_implementation() {
  static const sq_implementation table = [] {
    sq_implementation t{};
    t.size = sizeof t;
    t.abi_version = SQ_ABI_VERSION;
    t.name = "squareq";
    t.version = "0.1.0";
    t.create = create_context;
    t.destroy = destroy_context;
    t.describe = describe;
    t.module = &kGroup;
    return t;
  }();
  return &table;
}

}  // namespace squareq::training
