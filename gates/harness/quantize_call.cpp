#include "gates/harness/quantize_call.hpp"

#include "squareq/tensor.hpp"

namespace squareq::gates {
namespace {

struct Prepared {
  Quantized out;
  std::vector<sq_part> parts;
  sq_quantize_args args;
};

Prepared prepare(Guarded& w, std::int64_t pack_k, const std::string& layer) {
  const std::int64_t n = w.rows(), k = w.columns(), padded = pack_k <= 1 ? k : (k + pack_k - 1) / pack_k * pack_k;
  Prepared p{{Guarded("qweight", Role::out, SQ_I8, {n, padded}), Guarded("scale", Role::out, SQ_F32, {n}), Guarded("zero_point", Role::out, SQ_F32, {n}), 0}, {}, {}};
  p.parts = {{"qweight", *p.out.qweight.tensor()}, {"scale", *p.out.scale.tensor()}, {"zero_point", *p.out.zero_point.tensor()}};
  p.args = sized<sq_quantize_args>();
  p.args.pack_k = static_cast<std::uint32_t>(pack_k);
  p.args.format = "bp8_v2";
  p.args.name = layer.c_str();
  p.args.w = w.tensor();
  p.args.out = p.parts.data();
  p.args.out_count = static_cast<std::uint32_t>(p.parts.size());
  return p;
}

}  // namespace

Quantized quantize(Instance& instance, Guarded& w, std::int64_t pack_k, const std::string& layer) {
  require(instance.linear().quantize != nullptr, "quantize is described but its entry is null");
  Prepared p = prepare(w, pack_k, layer);
  std::uint64_t floored = ~0ull;
  p.args.floored_rows = &floored;
  call_ok("quantize " + shape_text(*w.tensor()), {&w, &p.out.qweight, &p.out.scale, &p.out.zero_point},
          [&](sq_error* e) { return instance.linear().quantize(instance.get(), &p.args, e); });
  require(floored != ~0ull, "quantize did not report floored_rows");
  p.out.floored_rows = floored;
  return std::move(p.out);
}

void quantize_refused(Instance& instance, Guarded& w, std::int64_t pack_k, std::initializer_list<Code> codes, const std::string& what) {
  const std::string layer = "refused.layer";  // the arguments point into it
  Prepared p = prepare(w, pack_k, layer);
  call_refused("quantize of " + what, codes, {&w, &p.out.qweight, &p.out.scale, &p.out.zero_point},
               [&](sq_error* e) { return instance.linear().quantize(instance.get(), &p.args, e); });
}

void load(Layer& layer, const Quantized& q) {
  layer.qweight.set_bytes(q.qweight.bytes());
  layer.scale.set_bytes(q.scale.bytes());
}

}  // namespace squareq::gates
