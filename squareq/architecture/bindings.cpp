#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

#include "squareq/architecture/data.hpp"
#include "squareq/text.hpp"

namespace squareq::architecture_detail {
namespace {

constexpr std::string_view placeholder = "{i}";

struct Pattern {
  std::string head, tail;
  bool counted = false;
};

Pattern split(const std::string& pattern) {
  const std::size_t at = pattern.find(placeholder);
  if (at == std::string::npos) return {pattern, "", false};
  return {pattern.substr(0, at), pattern.substr(at + placeholder.size()), true};
}

struct Match {
  std::uint64_t index = 0;
  std::string_view rest;
};

/// Matches "transformer_blocks.12.attn.to_q" against "transformer_blocks.{i}.": index 12, rest "attn.to_q".
std::optional<Match> match(const Pattern& pattern, std::string_view name) {
  if (!name.starts_with(pattern.head)) return std::nullopt;
  name.remove_prefix(pattern.head.size());
  if (!pattern.counted) return Match{0, name};
  Match result;
  const auto [end, status] = std::from_chars(name.data(), name.data() + name.size(), result.index);
  const auto digits = static_cast<std::size_t>(end - name.data());
  if (status != std::errc() || (digits > 1 && name[0] == '0') || !name.substr(digits).starts_with(pattern.tail)) return std::nullopt;
  result.rest = name.substr(digits + pattern.tail.size());
  return result;
}

bool has_bias(const Module& m) { return m.bias && m.kind != Kind::table; }

using Shapes = std::unordered_map<std::string, const std::vector<std::uint64_t>*>;

/// How many repetitions of an instance the checkpoint holds. Numbers must run from 0 without a hole.
std::uint64_t count_of(const Pattern& pattern, std::span<const TensorShape> tensors) {
  std::set<std::uint64_t> seen;
  for (const TensorShape& t : tensors)
    if (const auto found = match(pattern, t.name)) seen.insert(found->index);
  std::uint64_t expected = 0;
  for (const std::uint64_t index : seen) {
    if (index != expected)
      throw Error(Code::MD_TENSOR,
                  "checkpoint holds " + pattern.head + std::to_string(index) + " but no " + pattern.head + std::to_string(expected));
    ++expected;
  }
  return expected;
}

}  // namespace

std::string numbered(const std::string& pattern, std::uint64_t index) {
  const Pattern p = split(pattern);
  return p.counted ? p.head + std::to_string(index) + p.tail : p.head;
}

std::string join(const std::string& prefix, const std::string& path) {
  if (path.empty() && prefix.ends_with('.')) return prefix.substr(0, prefix.size() - 1);
  return prefix + path;
}

std::vector<std::string> spellings(const Family& family, const std::string& scheme, const std::string& name) {
  if (scheme == "diffusers") return {name};
  for (const Instance& instance : family.instances) {
    const auto found = match(split(instance.diffusers), name);
    if (!found) continue;
    const std::string diffusers = numbered(instance.diffusers, found->index), native = numbered(instance.native, found->index);
    for (const Module& m : family.templates.at(instance.template_name).modules) {
      const std::string module = join(diffusers, m.diffusers), target = join(native, m.native);
      if (m.kind == Kind::table && module == name) return {target};
      if (has_bias(m) && module + ".bias" == name) return {target + ".bias"};
      if (m.kind == Kind::table || module + ".weight" != name) continue;
      std::vector<std::string> all;
      for (const std::string& parameter : m.native_parameters) all.push_back(target + "." + parameter);
      return all;
    }
  }
  return {};
}

Bindings bind_model(const Family& family, const std::string& scheme, std::span<const TensorShape> tensors) {
  auto shapes = std::make_shared<Shapes>();
  for (const TensorShape& t : tensors) shapes->emplace(t.name, &t.shape);
  const auto find = [shapes, &family, scheme](const std::string& diffusers_name) -> const std::vector<std::uint64_t>* {
    for (const std::string& spelling : spellings(family, scheme, diffusers_name))
      if (const auto found = shapes->find(spelling); found != shapes->end()) return found->second;
    return nullptr;
  };

  Bindings b;
  b.family = &family;
  b.scheme = scheme;
  for (const auto& [name, dimension] : family.dims) {
    const std::vector<std::uint64_t>* shape = dimension.tensor.empty() ? nullptr : find(dimension.tensor);
    if (shape && dimension.axis < shape->size() && (*shape)[dimension.axis] > 0) {
      b.dims[name] = (*shape)[dimension.axis];
    } else if (!shape && dimension.absent) {
      b.dims[name] = dimension.absent;
    } else {
      const auto candidates = spellings(family, scheme, dimension.tensor);
      const std::string tensor = candidates.empty() ? dimension.tensor : candidates.front();
      throw Error(Code::MD_TENSOR,
                  family.name + " model (" + scheme + " names): tensor " + tensor +
                      (shape ? " has no positive size on axis " + std::to_string(dimension.axis) : " is missing"),
                  {}, {}, tensor);
    }
  }
  for (const auto& [name, tensor] : family.flags) b.flags[name] = find(tensor) != nullptr;
  for (const Instance& instance : family.instances)
    if (!instance.count.empty() && !b.counts.contains(instance.count))
      b.counts[instance.count] = count_of(split(scheme == "diffusers" ? instance.diffusers : instance.native), tensors);
  b.block_flag = [find, &family](const Instance& instance, std::uint64_t index, const std::string& flag) {
    return find(numbered(instance.diffusers, index) + family.templates.at(instance.template_name).flags.at(flag)) != nullptr;
  };
  b.present = [shapes](const std::string& name) { return shapes->contains(name); };
  return b;
}

Bindings bind_model(const Family& family, const std::string& scheme, const Variant& variant) {
  Bindings b;
  b.family = &family;
  b.scheme = scheme;
  b.dims = variant.dims;
  b.counts = variant.counts;
  b.flags = variant.flags;
  b.block_flag = [&variant](const Instance&, std::uint64_t index, const std::string& flag) {
    const auto found = variant.block_flags.find(flag);
    return found != variant.block_flags.end() && index < found->second;
  };
  return b;
}

}  // namespace squareq::architecture_detail
