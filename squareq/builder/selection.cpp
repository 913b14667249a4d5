#include "squareq/builder/selection.hpp"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "squareq/slab/manifest.hpp"
#include "squareq/slab/signature.hpp"
#include "squareq/tensor.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

constexpr std::string_view weight_suffix = ".weight";

std::string text(const std::vector<std::uint64_t>& shape) { return shape_text(std::vector<std::int64_t>(shape.begin(), shape.end())); }

bool is_float(FileDtype dtype) {
  return dtype == FileDtype::F64 || dtype == FileDtype::F32 || dtype == FileDtype::F16 || dtype == FileDtype::BF16;
}

std::optional<Architecture> identify(const Checkpoint& checkpoint, const std::string& wanted, Report& report) {
  if (wanted == "none") return std::nullopt;
  const std::vector<std::string> known = architecture_ids();
  if (wanted != "auto" && std::find(known.begin(), known.end(), wanted) == known.end())
    published_architecture(wanted);  // throws, listing them
  const std::vector<TensorShape> shapes = checkpoint.shapes();
  std::optional<Architecture> found = recognise(shapes, checkpoint.config_json());
  const std::string file = checkpoint.source().string();
  if (!found) {
    if (wanted != "auto")
      throw Error(Code::MD_ARCH, printable_path(checkpoint.source()) + " is of no known architecture, " + wanted + " was asked for", file);
    report.add(
        Code::MD_GENERIC,
        "architecture not recognised: every 2-D weight that is no embedding, position table or norm by its name is taken for a linear",
        file);
    return std::nullopt;
  }
  if (wanted != "auto" && found->id() != wanted)
    throw Error(Code::MD_ARCH, printable_path(checkpoint.source()) + " is " + found->id() + ", " + wanted + " was asked for", file);
  Report problems;
  for (Problem& p : found->check(shapes, file)) problems.add(std::move(p));
  problems.throw_first();
  return found;
}

void check_linear(const Checkpoint& checkpoint, const LinearSource& l) {
  const auto refuse = [&](Code code, const Checkpoint::Tensor& t, const std::string& what) {
    throw Error(code, "tensor " + printable(t.name) + " " + text(t.shape) + " " + std::string(dtype_name(t.dtype)) + ": " + what,
                checkpoint.files()[t.file].path().string(), printable(l.name), printable(t.name));
  };
  if (!is_slab_name(l.name)) refuse(Code::MF_NAME, *l.weight, "'" + printable(l.name) + "' cannot be a layer's name");
  if (l.out() == 0 || l.in() == 0) refuse(Code::MD_TENSOR, *l.weight, "a linear's dimensions must be positive");
  for (const Checkpoint::Tensor* t : {l.weight, l.bias})
    if (t && !is_float(t->dtype)) refuse(Code::MD_TENSOR, *t, "only F64, F32, F16 and BF16 can be quantized");
  if (l.bias && l.bias->shape != std::vector<std::uint64_t>{l.out()})
    refuse(Code::MD_TENSOR, *l.bias, "expected [" + std::to_string(l.out()) + "]");
}

std::vector<LinearSource> all_linears(const Checkpoint& checkpoint, const Architecture* architecture) {
  std::vector<LinearSource> linears;
  for (const Checkpoint::Tensor& t : checkpoint.tensors()) {
    if (!architecture && !is_generic_linear(t)) continue;
    if (!t.name.ends_with(weight_suffix)) continue;
    LinearSource l;
    l.name = t.name.substr(0, t.name.size() - weight_suffix.size());
    if (architecture && !architecture->is_linear(l.name)) continue;
    l.weight = &t;
    l.bias = checkpoint.find(l.name + ".bias");
    check_linear(checkpoint, l);
    linears.push_back(std::move(l));
  }
  return linears;
}

}  // namespace

bool is_generic_linear(const Checkpoint::Tensor& tensor) {
  static constexpr std::array<std::string_view, 4> whole = {"wte", "wpe", "shared", "relative_attention_bias"};
  static constexpr std::array<std::string_view, 4> endings = {"embed", "embedding", "embeddings", "embed_tokens"};
  if (tensor.shape.size() != 2 || !tensor.name.ends_with(weight_suffix)) return false;
  std::string_view last = tensor.name;
  last.remove_suffix(weight_suffix.size());
  last.remove_prefix(last.rfind('.') == std::string_view::npos ? 0 : last.rfind('.') + 1);
  return last.find("norm") == std::string_view::npos && std::find(whole.begin(), whole.end(), last) == whole.end() &&
         std::none_of(endings.begin(), endings.end(), [&](std::string_view ending) { return last.ends_with(ending); });
}

Selection select(const Checkpoint& checkpoint, const std::string& architecture, const std::vector<std::string>& include_prefixes,
                 Report& report) {
  Selection s;
  s.architecture = identify(checkpoint, architecture, report);
  std::vector<LinearSource> linears = all_linears(checkpoint, s.architecture ? &*s.architecture : nullptr);
  if (linears.empty())
    throw Error(Code::MD_TENSOR, printable_path(checkpoint.source()) + " holds no linear layer", checkpoint.source().string());

  std::vector<LinearTopology> topology;
  for (const LinearSource& l : linears) topology.push_back({l.name, l.in(), l.out(), l.bias != nullptr});
  s.signature = model_signature(topology);

  for (const std::string& prefix : include_prefixes)
    if (std::none_of(linears.begin(), linears.end(), [&](const LinearSource& l) { return l.name.starts_with(prefix); }))
      throw Error(Code::CFG_VALUE,
                  "no linear layer's name starts with '" + printable(prefix) + "'; the first layer is " + printable(linears.front().name));
  std::unordered_set<const Checkpoint::Tensor*> taken;
  for (LinearSource& l : linears) {
    if (!include_prefixes.empty() &&
        std::none_of(include_prefixes.begin(), include_prefixes.end(), [&](const std::string& p) { return l.name.starts_with(p); }))
      continue;
    taken.insert(l.weight);
    if (l.bias) taken.insert(l.bias);
    s.quantized.push_back(std::move(l));
  }
  for (const Checkpoint::Tensor& t : checkpoint.tensors())
    if (!taken.contains(&t)) s.rest.push_back(&t);
  return s;
}

}  // namespace squareq
