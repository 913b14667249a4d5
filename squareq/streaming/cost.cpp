#include "squareq/streaming/cost.hpp"

namespace squareq::streaming {
namespace {

bool contains(std::string_view text, std::string_view piece) { return text.find(piece) != std::string_view::npos; }

double squared(double x) { return x * x; }

}  // namespace

Sees sees(std::string_view layer, std::string_view kind) {
  if (layer.ends_with(".norm.linear") || layer.ends_with(".norm1.linear") || layer.ends_with(".norm1_context.linear")) return Sees::vector;
  if (kind == "single") return Sees::all;
  if (kind == "transformer") return contains(layer, ".attn2.to_k") || contains(layer, ".attn2.to_v") ? Sees::text : Sees::image;
  for (const std::string_view piece : {".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out", ".ff_context."})
    if (contains(layer, piece)) return Sees::text;
  return Sees::image;
}

BlockCost block_cost(const std::vector<CostLayer>& layers, std::string_view kind, std::uint64_t width, const Tokens& tokens) {
  BlockCost cost;
  bool second_attention = false;
  for (const CostLayer& layer : layers) {
    std::uint64_t rows = 1;
    switch (sees(layer.name, kind)) {
      case Sees::vector: break;
      case Sees::image: rows = tokens.image; break;
      case Sees::text: rows = tokens.text; break;
      case Sees::all: rows = tokens.image + tokens.text; break;
    }
    cost.linear_flops += 2.0 * static_cast<double>(layer.out) * static_cast<double>(layer.in) * static_cast<double>(rows);
    cost.working_elements += rows * (layer.in + layer.out);
    second_attention = second_attention || contains(layer.name, ".attn2.to_q");
  }
  const auto image = static_cast<double>(tokens.image), text = static_cast<double>(tokens.text), channels = static_cast<double>(width);
  if (kind == "transformer") {
    cost.attention_flops = 4 * channels * (squared(image) + image * text);  // self, then cross
    cost.input_elements = tokens.image * width;
  } else {
    cost.attention_flops = 4 * channels * (squared(image + text) + (second_attention ? squared(image) : 0.0));
    cost.input_elements = (tokens.image + tokens.text) * width;
  }
  return cost;
}

}  // namespace squareq::streaming
