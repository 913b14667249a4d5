#include "gates/harness/linear.hpp"

#include <cmath>

#include "squareq/tensor.hpp"

namespace squareq::gates {

Layer::Layer(std::string layer_name, std::int64_t out_features, std::int64_t in_features, std::int64_t pack_k, bool with_bias)
    : name(std::move(layer_name)), n(out_features), k(in_features), padded(pack_k <= 1 ? in_features : (in_features + pack_k - 1) / pack_k * pack_k),
      has_bias(with_bias), qweight("qweight", Role::in, SQ_I8, {n, padded}), scale("scale", Role::in, SQ_F32, {n}),
      zero_point("zero_point", Role::in, SQ_F32, {n}), bias("bias", Role::in, SQ_F32, {with_bias ? n : 0}) {}

DirectWeight::DirectWeight(const Layer& layer) {
  parts_ = {{"qweight", *layer.qweight.tensor()}, {"scale", *layer.scale.tensor()}, {"zero_point", *layer.zero_point.tensor()}};
  if (layer.has_bias) parts_.push_back({"bias", *layer.bias.tensor()});
  weight_ = sized<sq_weight>();
  weight_.part_count = static_cast<std::uint32_t>(parts_.size());
  weight_.format = "bp8_v2";
  weight_.name = layer.name.c_str();
  weight_.out_features = layer.n;
  weight_.in_features = layer.k;
  weight_.parts = parts_.data();
  ref_ = sized<sq_weight_ref>();
  ref_.weight = &weight_;
}

Adapter::Adapter(std::int64_t r, std::int64_t n, std::int64_t k, float s)
    : rank(r), scaling(s), a_t("lora a_t", Role::in, SQ_F32, {r, k}), b_t("lora b_t", Role::in, SQ_F32, {n, r}) {}

Problem::Problem(std::int64_t rows, Layer l, std::int32_t x_dtype, std::int64_t x_stride, std::int64_t x_shift)
    : m(rows), layer(std::move(l)), x("x", Role::in, x_dtype, {rows, layer.k}, x_stride, x_shift) {}

void fill(Problem& p, Random& random, const DataSpec& spec) {
  Layer& layer = p.layer;
  for (std::int64_t n = 0; n < layer.n; ++n) {
    for (std::int64_t k = 0; k < layer.k; ++k) layer.qweight.set(n, k, static_cast<double>(random.integer(-127, 127)));
    layer.qweight.set(n, random.integer(0, layer.k - 1), random.integer(0, 1) ? 127 : -127);
    layer.scale.set(n, spec.dyadic_scales ? std::ldexp(1.0, static_cast<int>(random.integer(-9, -5))) : random.uniform(0.5e-3, 2e-3));
    if (layer.has_bias)
      layer.bias.set(n, spec.integer_x ? layer.scale.at(n) * static_cast<double>(random.integer(-1000, 1000)) : random.normal());
  }
  p.x.fill([&] { return spec.integer_x ? static_cast<double>(random.integer(-spec.integer_x, spec.integer_x)) : random.normal(); });
  if (spec.rank) {
    Adapter& a = p.adapter.emplace(spec.rank, layer.n, layer.k, spec.scaling);
    a.a_t.fill([&] { return random.normal() / std::sqrt(static_cast<double>(layer.k)); });
    if (!spec.b_zero) a.b_t.fill([&] { return 0.1 * random.normal(); });
  }
}

namespace {

/// The contract's view of an adapter; points into it.
sq_lora lora_of(const Adapter& a) {
  auto lora = sized<sq_lora>();
  lora.scaling = a.scaling;
  lora.a_t = a.a_t.tensor();
  lora.b_t = a.b_t.tensor();
  lora.x = a.x_own ? a.x_own->tensor() : nullptr;
  return lora;
}

Guarded* pointer(std::optional<Guarded>& tensor) { return tensor ? &*tensor : nullptr; }
const sq_tensor* view(std::optional<Guarded>& tensor) { return tensor ? tensor->tensor() : nullptr; }

std::string text(const Problem& p) {
  return "(M " + std::to_string(p.m) + ", K " + std::to_string(p.layer.k) + ", N " + std::to_string(p.layer.n) + ", x " + std::string(dtype_name(p.x.dtype())) + ")";
}

}  // namespace

ForwardOutputs forward(Instance& instance, Problem& p, ForwardWish wish, const sq_weight_ref* weight) {
  ForwardOutputs out{Guarded("y", Role::out, p.y_dtype, {p.m, p.layer.n}, p.y_stride), {}, {}};
  if (wish.preactivation) out.preactivation.emplace("preactivation", Role::out, SQ_F32, std::vector<std::int64_t>{p.m, p.layer.n});
  if (wish.h) out.h.emplace("h", Role::out, SQ_F32, std::vector<std::int64_t>{p.m, p.adapter->rank});
  const DirectWeight direct(p.layer);
  const sq_lora lora = p.adapter ? lora_of(*p.adapter) : sq_lora{};
  auto args = sized<sq_linear_forward_args>();
  args.activation = p.activation;
  args.weight = weight ? weight : direct.ref();
  args.x = p.x.tensor();
  args.lora = p.adapter ? &lora : nullptr;
  args.y = out.y.tensor();
  args.preactivation = view(out.preactivation);
  args.h = view(out.h);
  Guarded* none = nullptr;
  Guarded* a_t = p.adapter ? &p.adapter->a_t : none;
  Guarded* b_t = p.adapter ? &p.adapter->b_t : none;
  Guarded* own = p.adapter ? pointer(p.adapter->x_own) : none;
  require(instance.linear().linear_forward != nullptr, "linear_forward is described but its entry is null");
  call_ok("linear_forward " + text(p),
          {&p.layer.qweight, &p.layer.scale, &p.layer.zero_point, &p.layer.bias, &p.x, a_t, b_t, own, &out.y, pointer(out.preactivation), pointer(out.h)},
          [&](sq_error* e) { return instance.linear().linear_forward(instance.get(), &args, e); });
  return out;
}

Guarded dequantize(Instance& instance, const sq_weight_ref& weight, std::int64_t n, std::int64_t k, std::int32_t dtype) {
  Guarded out("out", Role::out, dtype, {n, k});
  auto args = sized<sq_dequantize_args>();
  args.weight = &weight;
  args.out = out.tensor();
  require(instance.linear().dequantize != nullptr, "dequantize is described but its entry is null");
  call_ok("dequantize", {&out}, [&](sq_error* e) { return instance.linear().dequantize(instance.get(), &args, e); });
  return out;
}

Guarded dequantized(const Layer& layer, std::int32_t dtype) {
  Guarded out("expected", Role::in, dtype, {layer.n, layer.k});
  for (std::int64_t n = 0; n < layer.n; ++n)
    for (std::int64_t k = 0; k < layer.k; ++k)
      out.set(n, k, static_cast<double>(static_cast<float>(layer.qweight.at(n, k)) * static_cast<float>(layer.scale.at(n))));
  return out;
}

BackwardOutputs backward(Instance& instance, Problem& p, Guarded& dy, Guarded* preactivation, Guarded* h, BackwardWish wish, const sq_weight_ref* weight,
                         BackwardOutputs* into) {
  BackwardOutputs out;
  const bool branch_x = p.adapter && p.adapter->x_own;
  if (wish.dx) out.dx.emplace("dx", Role::out, dy.dtype(), std::vector<std::int64_t>{p.m, p.layer.k});
  if (wish.dx && branch_x) out.dx_lora.emplace("dx_lora", Role::out, dy.dtype(), std::vector<std::int64_t>{p.m, p.layer.k});
  const bool adapters = wish.adapters && p.adapter;
  if (adapters && !into) {
    const Role role = wish.accumulate ? Role::inout : Role::out;
    out.da_t.emplace("da_t", role, SQ_F32, std::vector<std::int64_t>{p.adapter->rank, p.layer.k});
    out.db_t.emplace("db_t", role, SQ_F32, std::vector<std::int64_t>{p.layer.n, p.adapter->rank});
  }
  std::optional<Guarded>& da_t = into ? into->da_t : out.da_t;
  std::optional<Guarded>& db_t = into ? into->db_t : out.db_t;
  const DirectWeight direct(p.layer);
  const sq_lora lora = p.adapter ? lora_of(*p.adapter) : sq_lora{};
  auto args = sized<sq_linear_backward_args>();
  args.activation = p.activation;
  args.accumulate = wish.accumulate ? 1 : 0;
  args.weight = weight ? weight : direct.ref();
  args.dy = dy.tensor();
  args.preactivation = preactivation ? preactivation->tensor() : nullptr;
  args.x = p.x.tensor();
  args.lora = p.adapter ? &lora : nullptr;
  args.h = h && wish.use_h ? h->tensor() : nullptr;
  args.dx = view(out.dx);
  args.dx_lora = view(out.dx_lora);
  args.da_t = adapters ? view(da_t) : nullptr;
  args.db_t = adapters ? view(db_t) : nullptr;
  Guarded* none = nullptr;
  require(instance.linear().linear_backward != nullptr, "linear_backward is described but its entry is null");
  call_ok("linear_backward " + text(p),
          {&p.layer.qweight, &p.layer.scale, &p.layer.zero_point, &p.layer.bias, &p.x, p.adapter ? &p.adapter->a_t : none, p.adapter ? &p.adapter->b_t : none,
           p.adapter ? pointer(p.adapter->x_own) : none, &dy, preactivation, h, pointer(out.dx), pointer(out.dx_lora), adapters ? pointer(da_t) : none,
           adapters ? pointer(db_t) : none},
          [&](sq_error* e) { return instance.linear().linear_backward(instance.get(), &args, e); });
  return out;
}

}  // namespace squareq::gates
