#include "bench/cuda/layer.hpp"

#include <algorithm>

namespace squareq::bench {
namespace {

std::size_t size(std::int64_t rows, std::int64_t columns, std::size_t element) { return static_cast<std::size_t>(rows * columns) * element; }

sq_tensor tensor(const Buffer& buffer, std::int32_t dtype, std::int64_t rows, std::int64_t columns) {
  return make_tensor(buffer.data(), dtype, {rows, columns}, kDevice);
}
sq_tensor vector(const Buffer& buffer, std::int32_t dtype, std::int64_t length) { return make_tensor(buffer.data(), dtype, {length}, kDevice); }

}  // namespace

/// What every call has of its own.
struct Layer::Set {
  Buffer x, dy, y, dx, kept, q, wide, scale, h, codes, code_scale;
  Set(const Random& random, std::int64_t m, const Shape& s, unsigned seed)
      : x(size(m, s.k, 2)), dy(size(m, s.n, 2)), y(size(m, s.n, 2)), dx(size(m, s.k, 2)), kept(size(m, s.n, 2)), q(size(s.n, s.k, 1)),
        wide(size(s.n, s.k, 2)), scale(size(s.n, 1, 4)), h(size(m, kRank, 4)), codes(size(m, s.k, 1)), code_scale(size(m, 1, 4)) {
    random.fill(x, SQ_BF16, seed), random.fill(dy, SQ_BF16, seed + 1), random.fill(wide, SQ_BF16, seed + 2), random.fill(dx, SQ_BF16, seed + 3);
    random.fill(q, SQ_I8, seed + 4), random.fill(codes, SQ_I8, seed + 5);
    random.fill(scale, SQ_F32, seed + 6), random.fill(h, SQ_F32, seed + 7), random.fill(code_scale, SQ_F32, seed + 8);
  }
};

/// What all calls share: what is small, and the target of dequantize().
struct Layer::Shared {
  Buffer a, b, da, db, bias, wide_bias, shift, modulation, whole;
  Shared(const Random& random, const Shape& s)
      : a(size(kRank, s.k, 4)), b(size(s.n, kRank, 4)), da(size(kRank, s.k, 4)), db(size(s.n, kRank, 4)), bias(size(s.n, 1, 4)),
        wide_bias(size(s.n, 1, 2)), shift(size(1, s.k, 2)), modulation(size(1, s.k, 2)), whole(size(s.n, s.k, 2)) {
    random.fill(a, SQ_F32, 90), random.fill(b, SQ_F32, 91), random.fill(bias, SQ_F32, 92);
    random.fill(wide_bias, SQ_BF16, 93), random.fill(shift, SQ_BF16, 94), random.fill(modulation, SQ_BF16, 95), random.fill(whole, SQ_BF16, 96);
  }
};

/// The contract's structs over one set.
struct Layer::Views {
  sq_tensor x, dy, y, dx, kept, h, a_t, b_t, da, db;
  sq_part weight_parts[3], code_parts[2];
  sq_weight weight = sized<sq_weight>();
  sq_weight_ref ref = sized<sq_weight_ref>();
  sq_lora lora = sized<sq_lora>();
  sq_quantized_activation codes = sized<sq_quantized_activation>();

  Views(const Layer& layer, int set, bool bias) {
    const Set& o = *layer.sets_[static_cast<std::size_t>(set)];
    const Shared& shared = *layer.shared_;
    const std::int64_t m = layer.rows_, k = layer.shape_.k, n = layer.shape_.n;
    x = tensor(o.x, SQ_BF16, m, k), dy = tensor(o.dy, SQ_BF16, m, n), y = tensor(o.y, SQ_BF16, m, n), dx = tensor(o.dx, SQ_BF16, m, k);
    kept = tensor(o.kept, SQ_BF16, m, n), h = tensor(o.h, SQ_F32, m, kRank);
    a_t = tensor(shared.a, SQ_F32, kRank, k), b_t = tensor(shared.b, SQ_F32, n, kRank);
    da = tensor(shared.da, SQ_F32, kRank, k), db = tensor(shared.db, SQ_F32, n, kRank);
    weight_parts[0] = {"qweight", tensor(o.q, SQ_I8, n, k)};
    weight_parts[1] = {"scale", vector(o.scale, SQ_F32, n)};
    weight_parts[2] = {"bias", vector(shared.bias, SQ_F32, n)};
    code_parts[0] = {"q", tensor(o.codes, SQ_I8, m, k)};
    code_parts[1] = {"scale", vector(o.code_scale, SQ_F32, m)};
    weight.format = "bp8_v2", weight.name = "layer", weight.out_features = n, weight.in_features = k;
    weight.parts = weight_parts, weight.part_count = bias ? 3 : 2;
    ref.weight = &weight;
    lora.a_t = &a_t, lora.b_t = &b_t, lora.scaling = 1;
    codes.format = "per_token_int8", codes.parts = code_parts, codes.part_count = 2;
  }
  Views(const Views&) = delete;
  Views& operator=(const Views&) = delete;
};

Layer::Layer(const Context& context, const Random& random, std::int64_t rows, const Shape& shape, cudaStream_t stream)
    : rows_(rows), shape_(shape), context_(context), stream_(stream), shared_(std::make_shared<const Shared>(random, shape)) {
  const int count = count_sets(rows, shape);
  for (int i = 0; i < count; ++i) sets_.push_back(std::make_shared<const Set>(random, rows, shape, static_cast<unsigned>(10 * i)));
  require(cudaDeviceSynchronize(), "filling");
}

int Layer::count_sets(std::int64_t rows, const Shape& shape) {
  const std::size_t bytes = 2 * size(rows, shape.k, 2) + 2 * size(rows, shape.n, 2) + size(shape.n, shape.k, 1);
  return static_cast<int>(std::clamp<std::size_t>((std::size_t{220} << 20) / bytes + 1, 2, 16));
}

ProductOperands Layer::forward_operands(int set, bool whole) const {
  const Set& o = *sets_[static_cast<std::size_t>(set)];
  return {o.x.data(), whole ? shared_->whole.data() : o.wide.data(), o.y.data(), shared_->wide_bias.data(), o.kept.data()};
}

ProductOperands Layer::backward_operands(int set, bool whole) const {
  const Set& o = *sets_[static_cast<std::size_t>(set)];
  return {o.dy.data(), whole ? shared_->whole.data() : o.wide.data(), o.dx.data()};
}

void Layer::forward(int set, const ForwardCall& wanted) const {
  const Views v(*this, set, wanted.gelu);
  auto args = sized<sq_linear_forward_args>();
  args.stream = stream_, args.weight = &v.ref, args.y = &v.y, args.compute = wanted.compute;
  if (wanted.codes) args.xq = &v.codes;
  else args.x = wanted.copied ? &v.dx : &v.x;
  if (wanted.gelu) args.activation = SQ_ACT_GELU_TANH;
  if (wanted.kept) args.preactivation = &v.kept;
  if (wanted.lora) args.lora = &v.lora, args.h = &v.h;
  call(context_.linear().linear_forward, context_, args);
}

void Layer::backward(int set, const BackwardCall& wanted) const {
  const Views v(*this, set, false);
  auto args = sized<sq_linear_backward_args>();
  args.stream = stream_, args.weight = &v.ref, args.dy = &v.dy, args.dx = &v.dx, args.compute = wanted.compute;
  if (wanted.lora) args.lora = &v.lora, args.x = &v.x, args.h = &v.h, args.da_t = &v.da, args.db_t = &v.db;
  call(context_.linear().linear_backward, context_, args);
}

void Layer::dequantize(int set) const {
  const Views v(*this, set, false);
  const sq_tensor out = tensor(shared_->whole, SQ_BF16, shape_.n, shape_.k);
  auto args = sized<sq_dequantize_args>();
  args.stream = stream_, args.weight = &v.ref, args.out = &out;
  call(context_.linear().dequantize, context_, args);
}

void Layer::produce_codes(int set) const {
  const Views v(*this, set, false);
  const sq_tensor shift = tensor(shared_->shift, SQ_BF16, 1, shape_.k), modulation = tensor(shared_->modulation, SQ_BF16, 1, shape_.k);
  auto args = sized<sq_quantize_activation_args>();
  args.producer = SQ_PRODUCER_LAYERNORM_MODULATE, args.stream = stream_, args.x = &v.x, args.shift = &shift, args.scale = &modulation;
  args.epsilon = 1e-6f, args.format = "per_token_int8", args.out = v.code_parts, args.out_count = 2;
  call(context_.linear().quantize_activation, context_, args);
}

void Layer::copy_x(int set) const {
  const Set& o = *sets_[static_cast<std::size_t>(set)];
  require(cudaMemcpyAsync(o.dx.data(), o.x.data(), o.x.bytes(), cudaMemcpyDeviceToDevice, stream_), "copying X");
}

}  // namespace squareq::bench
