// A random linear layer with optional low-rank branch, and the two calls on it.
#pragma once

#include "reference/tests/harness.hpp"

namespace squareq::tests {

struct Layer {
  std::int64_t m, k, n, padded, rank;
  std::vector<std::int8_t> q;
  std::vector<float> scale, bias, zero_point, x, dy, a_t, b_t, lora_x;
  float scaling = 0.75f;
  std::int32_t activation = SQ_ACT_NONE;
  bool with_bias = true, own_x = false;

  Layer(std::int64_t m_, std::int64_t k_, std::int64_t n_, std::int64_t rank_, std::uint32_t seed) : m(m_), k(k_), n(n_), padded((k_ + 7) / 8 * 8), rank(rank_) {
    std::mt19937 random(seed);
    const auto uniform = [&](double low, double high) { return static_cast<float>(low + (high - low) * static_cast<double>(random()) / 4294967295.0); };
    const auto fill = [&](std::vector<float>& v, std::int64_t count, double low, double high) {
      for (std::int64_t i = 0; i < count; ++i) v.push_back(uniform(low, high));
    };
    for (std::int64_t i = 0; i < n * padded; ++i) q.push_back(static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127));
    fill(scale, n, 0.001, 0.02), fill(bias, n, -1, 1), fill(x, m * k, -1, 1), fill(dy, m * n, -1, 1);
    fill(a_t, rank * k, -1, 1), fill(b_t, n * rank, -1, 1), fill(lora_x, m * k, -1, 1);
    zero_point.assign(static_cast<std::size_t>(n), 0.0f);
  }
};

/// The contract's structs over a Layer's vectors; valid while both live.
struct Bound {
  Layer& l;
  std::vector<sq_part> parts;
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();
  sq_tensor x, dy, a_t, b_t, lora_x;
  sq_lora lora = sized<sq_lora>();
  Tensor y, preactivation, h, dx, dx_lora, da_t, db_t;
  sq_linear_forward_args forward = sized<sq_linear_forward_args>();
  sq_linear_backward_args backward = sized<sq_linear_backward_args>();

  explicit Bound(Layer& layer) : l(layer), y(SQ_F32, {l.m, l.n}), preactivation(SQ_F32, {l.m, l.n}), h(SQ_F32, {l.m, l.rank}), dx(SQ_F32, {l.m, l.k}),
                                 dx_lora(SQ_F32, {l.m, l.k}), da_t(SQ_F32, {l.rank, l.k}), db_t(SQ_F32, {l.n, l.rank}) {
    parts = {{"qweight", make_tensor(l.q.data(), SQ_I8, {l.n, l.padded})}, {"scale", make_tensor(l.scale.data(), SQ_F32, {l.n})},
             {"zero_point", make_tensor(l.zero_point.data(), SQ_F32, {l.n})}, {"bias", make_tensor(l.bias.data(), SQ_F32, {l.n})}};
    weight.format = "bp8_v2";
    weight.name = "blocks.3.attn.to_q";
    weight.out_features = l.n;
    weight.in_features = l.k;
    weight.parts = parts.data();
    weight.part_count = l.with_bias ? 4 : 3;
    ref.weight = &weight;
    x = make_tensor(l.x.data(), SQ_F32, {l.m, l.k});
    dy = make_tensor(l.dy.data(), SQ_F32, {l.m, l.n});
    a_t = make_tensor(l.a_t.data(), SQ_F32, {l.rank, l.k});
    b_t = make_tensor(l.b_t.data(), SQ_F32, {l.n, l.rank});
    lora_x = make_tensor(l.lora_x.data(), SQ_F32, {l.m, l.k});
    lora.scaling = l.scaling;
    lora.a_t = &a_t;
    lora.b_t = &b_t;
    lora.x = l.own_x ? &lora_x : nullptr;
    forward.activation = backward.activation = l.activation;
    forward.weight = backward.weight = &ref;
    forward.x = backward.x = &x;
    forward.lora = backward.lora = l.rank ? &lora : nullptr;
    forward.y = &y;
    forward.preactivation = &preactivation;
    forward.h = l.rank ? &h : nullptr;
    backward.dy = &dy;
    backward.preactivation = l.activation ? &preactivation : nullptr;
    backward.dx = &dx;
    backward.dx_lora = l.rank && l.own_x ? &dx_lora : nullptr;
    backward.da_t = l.rank ? &da_t : nullptr;
    backward.db_t = l.rank ? &db_t : nullptr;
  }
  Bound(const Bound&) = delete;
  Bound& operator=(const Bound&) = delete;

  Bound& run_forward(const Context& context) { call(context.linear().linear_forward, context, forward); return *this; }
  Bound& run_backward(const Context& context) { call(context.linear().linear_backward, context, backward); return *this; }
};

}  // namespace squareq::tests
