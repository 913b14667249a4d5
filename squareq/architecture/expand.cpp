#include <algorithm>

#include "squareq/architecture/data.hpp"

namespace squareq::architecture_detail {
namespace {

std::string kohya_name(std::string module) {
  std::replace(module.begin(), module.end(), '.', '_');
  return "lora_unet_" + module;
}

class Expansion {
 public:
  Expansion(const Bindings& bindings, Architecture::Data& data) : b_(bindings), d_(data), diffusers_(b_.scheme == "diffusers") {}

  void run() {
    for (const Instance& instance : b_.family->instances) {
      const std::uint64_t count = instance.count.empty() ? 1 : b_.counts.at(instance.count);
      for (std::uint64_t i = 0; i < count; ++i) repetition(instance, i, count);
    }
    finish();
  }

 private:
  void repetition(const Instance& instance, std::uint64_t index, std::uint64_t count) {
    const Template& parts = b_.family->templates.at(instance.template_name);
    Sizes sizes = b_.dims;
    for (const auto& [name, expression] : instance.dims) sizes[name] = evaluate(expression, b_.dims);
    std::map<std::string, bool> flags = b_.flags;
    for (const auto& [name, value] : instance.flags) flags[name] = value;
    for (const auto& [name, tensor] : parts.flags) flags[name] = b_.block_flag(instance, index, name);
    flags["last"] = index + 1 == count;

    const std::string diffusers = numbered(instance.diffusers, index), native = numbered(instance.native, index);
    std::optional<std::size_t> block;
    if (!parts.block.empty()) {
      block = d_.blocks.size();
      d_.blocks.push_back({join(diffusers_ ? diffusers : native, ""), parts.block, kinds_[parts.block]++, {}});
    }
    for (const Module& m : parts.modules)
      if (std::all_of(m.when.begin(), m.when.end(),
                      [&](const std::string& f) { return f[0] == '!' ? !flags.at(f.substr(1)) : flags.at(f); }))
        module(m, join(diffusers, m.diffusers), join(native, m.native), sizes, block);
  }

  void module(const Module& m, const std::string& diffusers, const std::string& native, const Sizes& sizes,
              std::optional<std::size_t> block) {
    std::vector<std::uint64_t> shape;
    for (const std::string& size : m.shape) shape.push_back(evaluate(size, sizes));
    RowView rows;
    rows.swap_halves = m.swap_halves;
    rows.first_row = m.first_row.empty() ? 0 : evaluate(m.first_row, sizes);
    rows.rows = shape[0];
    if (m.kind == Kind::table) {
      tensor(diffusers, native, shape, rows);
      return;
    }
    std::string parameter = m.native_parameters.front();
    if (b_.present)
      for (const std::string& spelling : m.native_parameters)
        if (b_.present(native + "." + spelling)) {
          parameter = spelling;
          break;
        }
    tensor(diffusers + ".weight", native + "." + parameter, shape, rows);
    if (m.bias) tensor(diffusers + ".bias", native + ".bias", {shape[0]}, rows);
    if (m.kind == Kind::linear) layer(m, diffusers, native, shape, rows, block);
  }

  void tensor(const std::string& diffusers, const std::string& native, std::vector<std::uint64_t> shape, RowView rows) {
    d_.diffusers_tensors.push_back({diffusers, shape});
    rows.tensor = native;
    d_.native[diffusers] = rows;
    const auto [at, fresh] = native_index_.emplace(native, native_tensors_.size());
    if (fresh) native_tensors_.push_back({native, shape});
    std::uint64_t& total = native_tensors_[at->second].shape[0];
    total = std::max(fresh ? 0 : total, rows.first_row + rows.rows);
  }

  void layer(const Module& m, const std::string& diffusers, const std::string& native, const std::vector<std::uint64_t>& shape,
             RowView rows, std::optional<std::size_t> block) {
    const std::string& name = diffusers_ ? diffusers : native;
    if (diffusers_ || !d_.layer_index.contains(name)) {
      d_.layer_index[name] = d_.layers.size();
      if (block) d_.blocks[*block].layers.push_back(d_.layers.size());
      d_.layers.push_back({name, shape[0], shape[1], m.bias, block});
      weight_of_[name] = native + ".weight";
      rows.tensor = kohya_name(native);
      d_.kohya[name] = rows;
    }
  }

  /// Fused tensors know their height only now.
  void finish() {
    const auto rows_of = [&](const std::string& native) { return native_tensors_[native_index_.at(native)].shape[0]; };
    for (auto& [name, view] : d_.native) view.total_rows = rows_of(view.tensor);
    for (ArchitectureLayer& l : d_.layers) {
      RowView& view = d_.kohya[l.name];
      view.total_rows = rows_of(weight_of_[l.name]);
      if (diffusers_) continue;
      l.out = view.total_rows;
      view = {view.tensor, 0, l.out, l.out, false};
    }
    d_.tensors = diffusers_ ? d_.diffusers_tensors : std::move(native_tensors_);
  }

  const Bindings& b_;
  Architecture::Data& d_;
  bool diffusers_;
  std::map<std::string, std::size_t> kinds_;
  std::vector<TensorShape> native_tensors_;
  std::unordered_map<std::string, std::size_t> native_index_;
  std::unordered_map<std::string, std::string> weight_of_;
};

}  // namespace

void expand(const Bindings& bindings, Architecture::Data& data) { Expansion(bindings, data).run(); }

}  // namespace squareq::architecture_detail
