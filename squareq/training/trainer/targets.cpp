#include "squareq/training/trainer/targets.hpp"

#include <fmt/format.h>

#include <cmath>
#include <set>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/trainer/philox.hpp"
#include "squareq/training/trainer/strict_json.hpp"

namespace squareq::training {

namespace {

/// `*` stands for any characters.
bool matches_wildcard(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool matches_pattern(const std::string& pattern, const std::string& name) {
  if (pattern.find('*') != std::string::npos) return matches_wildcard(pattern, name);
  return name == pattern || name.ends_with("." + pattern);
}

/// "norm1.linear", "norm1_context.linear", "norm.linear": what makes shift, scale and gate.
bool is_modulation(const std::string& name) {
  const std::size_t leaf = name.rfind('.');
  if (leaf == std::string::npos || name.substr(leaf) != ".linear") return false;
  const std::size_t parent = name.rfind('.', leaf - 1);
  return name.compare(parent == std::string::npos ? 0 : parent + 1, 4, "norm") == 0;
}

bool is_attention(const std::string& name) {
  for (const char* part : {".attn.", ".attn1.", ".attn2."})
    if (name.find(part) != std::string::npos) return true;
  return false;
}

/// The name without its block: "transformer_blocks.0.attn.to_q" -> "attn.to_q".
std::string ending(const std::string& name) {
  std::size_t at = std::string::npos;
  for (std::size_t i = 0; i + 1 < name.size(); ++i)
    if (name[i] >= '0' && name[i] <= '9' && name[i + 1] == '.' && i > 0 &&
        (name[i - 1] == '.' || (name[i - 1] >= '0' && name[i - 1] <= '9'))) {
      at = i + 2;
      break;
    }
  return at == std::string::npos ? name : name.substr(at);
}

}  // namespace

std::vector<TargetLayer> choose_targets(const std::vector<TargetLayer>& model, const std::vector<std::string>& targets) {
  std::set<std::string> chosen;
  for (const std::string& target : targets) {
    std::size_t found = 0;
    for (const TargetLayer& layer : model) {
      const bool in_block = layer.block >= 0;
      const bool hit = target == "default"             ? in_block && !is_modulation(layer.name)
                       : target == "attention"         ? in_block && is_attention(layer.name)
                       : target == "all-block-linears" ? in_block
                                                       : matches_pattern(target, layer.name);
      if (!hit) continue;
      chosen.insert(layer.name);
      ++found;
    }
    if (found > 0) continue;
    std::vector<std::string> known{"default", "attention", "all-block-linears"};
    for (const TargetLayer& layer : model) known.push_back(ending(layer.name));
    const std::string hint = nearest(target, known);
    throw Error(Code::CFG_VALUE, fmt::format("lora.targets entry '{}' matches none of the model's {} linears{}", printable(target),
                                             model.size(), hint.empty() ? "" : "; did you mean '" + hint + "'?"));
  }
  std::vector<TargetLayer> list;
  for (const TargetLayer& layer : model)
    if (chosen.contains(layer.name)) list.push_back(layer);
  return list;
}

std::vector<LoraLayer> initial_adapters(const std::vector<TargetLayer>& layers, std::int64_t rank, double alpha, LoraInit init,
                                        std::uint64_t seed) {
  std::vector<LoraLayer> adapters;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const TargetLayer& target = layers[i];
    LoraLayer layer{target.name, alpha, rank, target.in, target.out, {}, {}};
    layer.down.resize(static_cast<std::size_t>(rank * target.in));
    layer.up.assign(static_cast<std::size_t>(rank * target.out), 0.0f);
    RandomStream random(seed, Purpose::init, i);
    const double r = static_cast<double>(rank);
    const double bound = init == LoraInit::peft ? 1.0 / std::sqrt(static_cast<double>(target.in)) : std::sqrt(6.0 / r);
    for (float& x : layer.down) {
      if (init == LoraInit::gaussian)
        x = static_cast<float>(static_cast<double>(random.normal()) / r);
      else
        x = static_cast<float>((2.0 * static_cast<double>(random.uniform()) - 1.0) * bound);
    }
    adapters.push_back(std::move(layer));
  }
  return adapters;
}

}  // namespace squareq::training
