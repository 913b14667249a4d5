#include "squareq/training/models/flux1.hpp"

#include <fmt/format.h>

#include <cmath>

#include "squareq/error.hpp"
#include "squareq/training/models/attention.hpp"
#include "squareq/training/models/modulation.hpp"
#include "squareq/training/tensor_bridge.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

using torch::Tensor;

constexpr std::int64_t kSinusoidWidth = 256;
constexpr double kNormEpsilon = 1e-6;
constexpr double kRopeTheta = 10000;
constexpr double kTimePeriod = 10000;

/// q, k, v [B, S, H, d] -> [B, S, H * d]
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v) {
  return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2);
}

/// The 16-bit float overflows in residual streams; diffusers clips it there.
Tensor clipped(const Tensor& x) { return x.scalar_type() == torch::kFloat16 ? x.clamp(-65504, 65504) : x; }

/// m [B, n * D] -> n pieces [B, 1, D]
std::vector<Tensor> chunks(const Tensor& m, std::int64_t n) { return m.unsqueeze(1).chunk(n, -1); }

AdapterTensors rest(const std::vector<Tensor>& in, std::size_t from) { return AdapterTensors(in).subspan(from); }

void expect(const Tensor& t, std::string_view name, std::vector<std::int64_t> shape) {
  if (!t.defined()) throw Error(Code::MD_TENSOR, fmt::format("input '{}' is missing", name), {}, {}, std::string(name));
  const bool same = t.dim() == static_cast<std::int64_t>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), t.sizes().begin(), [](auto a, auto b) { return a < 0 || a == b; });
  if (same) return;
  std::string wanted = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) wanted += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  throw Error(Code::CALL_SHAPE, fmt::format("input '{}' has shape {}, the model needs {}]", name, shape_of(t), wanted), {}, {},
              std::string(name));
}

}  // namespace

Flux1::Flux1(const ModelConfig& config, WeightStore& store, torch::Dtype dtype)
    : config_(config), linears_(&store.linears()), dtype_(dtype) {
  const auto at = [&](const std::string& name) { return linears_->index(name); };
  const auto attention_at = [&](const std::string& prefix, const std::string& q, const std::string& k, const std::string& v,
                                const std::string& added) {
    return Attention{at(prefix + q), at(prefix + k), at(prefix + v), store.tensor(prefix + "norm_" + added + "q.weight"),
                     store.tensor(prefix + "norm_" + added + "k.weight")};
  };
  const auto embedder = [&](const std::string& name) {
    return Embedder{at("time_text_embed." + name + ".linear_1"), at("time_text_embed." + name + ".linear_2")};
  };
  x_embedder_ = at("x_embedder");
  context_embedder_ = at("context_embedder");
  norm_out_ = at("norm_out.linear");
  proj_out_ = at("proj_out");
  time_ = embedder("timestep_embedder");
  text_ = embedder("text_embedder");
  if (config.guidance_embeds) guidance_ = embedder("guidance_embedder");
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string p = fmt::format("transformer_blocks.{}.", i);
    doubles_.push_back({{at(p + "norm1.linear"), at(p + "attn.to_out.0"), at(p + "ff.net.0.proj"), at(p + "ff.net.2"),
                         attention_at(p + "attn.", "to_q", "to_k", "to_v", "")},
                        {at(p + "norm1_context.linear"), at(p + "attn.to_add_out"), at(p + "ff_context.net.0.proj"),
                         at(p + "ff_context.net.2"), attention_at(p + "attn.", "add_q_proj", "add_k_proj", "add_v_proj", "added_")}});
  }
  for (std::int64_t i = 0; i < config.num_single_layers; ++i) {
    const std::string p = fmt::format("single_transformer_blocks.{}.", i);
    singles_.push_back(
        {at(p + "norm.linear"), at(p + "proj_mlp"), at(p + "proj_out"), attention_at(p + "attn.", "to_q", "to_k", "to_v", "")});
  }
}

void Flux1::check(const ForwardInputs& in) const {
  expect(in.hidden_states, "hidden_states", {-1, -1, config_.in_channels});
  const std::int64_t batch = in.hidden_states.size(0), axes = static_cast<std::int64_t>(config_.axes_dims_rope.size());
  expect(in.encoder_hidden_states, "encoder_hidden_states", {batch, -1, config_.joint_attention_dim});
  expect(in.pooled_projections, "pooled_projections", {batch, config_.pooled_projection_dim});
  expect(in.timestep, "timestep", {batch});
  expect(in.img_ids, "img_ids", {in.hidden_states.size(1), axes});
  expect(in.txt_ids, "txt_ids", {in.encoder_hidden_states.size(1), axes});
  if (config_.guidance_embeds) {
    if (!in.guidance.defined())
      throw Error(Code::MD_TENSOR, "input 'guidance' is missing: this model has a guidance embedding", {}, {}, "guidance");
    expect(in.guidance, "guidance", {batch});
  } else if (in.guidance.defined()) {
    throw Error(Code::MD_TENSOR, "input 'guidance' is given, but this model has no guidance embedding", {}, {}, "guidance");
  }
}

Tensor Flux1::sinusoid(const Tensor& value) const {
  // FP32 exponents, frequencies and arguments, as in diffusers: double precision here would move outputs by up to 3e-5. The exponential
  // is rounded correctly: libtorch's own differs in the last bit between versions and instruction sets, which is worth 1e-5.
  const std::int64_t half = kSinusoidWidth / 2;
  const Tensor exponent = torch::arange(half, torch::dtype(torch::kFloat32).device(value.device())) * -std::log(kTimePeriod) / half;
  const Tensor frequency = torch::exp(exponent.to(torch::kFloat64)).to(torch::kFloat32);
  const Tensor scaled = (value.to(dtype_ == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32) * 1000).to(torch::kFloat32);
  const Tensor angle = scaled.unsqueeze(1) * frequency;
  return torch::cat({torch::cos(angle), torch::sin(angle)}, -1).to(dtype_);
}

Tensor Flux1::rope_table(const Tensor& txt_ids, const Tensor& img_ids) const {
  const Tensor positions = torch::cat({txt_ids.to(torch::kFloat32), img_ids.to(torch::kFloat32)}).to(torch::kFloat64);
  std::vector<Tensor> angles;
  for (std::size_t axis = 0; axis < config_.axes_dims_rope.size(); ++axis) {
    const std::int64_t dim = config_.axes_dims_rope[axis];
    const Tensor exponent = torch::arange(0, dim, 2, torch::dtype(torch::kFloat64).device(positions.device())) / dim;
    angles.push_back(positions.select(1, static_cast<std::int64_t>(axis)).unsqueeze(1) * torch::pow(kRopeTheta, exponent).reciprocal());
  }
  const Tensor angle = torch::cat(angles, 1);
  return torch::view_as_complex(torch::stack({torch::cos(angle), torch::sin(angle)}, -1).to(torch::kFloat32));
}

Tensor Flux1::embed(const Embedder& e, const Tensor& x, AdapterTensors adapters) const {
  return linear(e.second, linear(e.first, x, adapters, SQ_ACT_SILU), adapters);
}

Flux1::Conditioning Flux1::condition(const ForwardInputs& in, AdapterTensors adapters) const {
  Tensor vec = embed(time_, sinusoid(in.timestep), adapters);
  if (config_.guidance_embeds) vec = vec + embed(guidance_, sinusoid(in.guidance), adapters);
  vec = vec + embed(text_, in.pooled_projections.to(dtype_), adapters);
  return {torch::silu(vec), rope_table(in.txt_ids, in.img_ids)};
}

Tensor Flux1::embed_image(const Tensor& hidden_states, AdapterTensors adapters) const {
  return linear(x_embedder_, hidden_states.to(dtype_), adapters);
}

Tensor Flux1::embed_text(const Tensor& encoder_hidden_states, AdapterTensors adapters) const {
  return linear(context_embedder_, encoder_hidden_states.to(dtype_), adapters);
}

std::vector<Tensor> Flux1::block(std::int64_t index, const std::vector<Tensor>& in) const {
  if (is_double(index)) return double_block(doubles_[static_cast<std::size_t>(index)], in);
  return single_block(singles_[static_cast<std::size_t>(index) - doubles_.size()], in);
}

Flux1::Projections Flux1::project(const Attention& a, const LinearInput& x, AdapterTensors adapters) const {
  return {linear(a.q, x, adapters), linear(a.k, x, adapters), linear(a.v, x, adapters).unflatten(-1, {-1, config_.attention_head_dim})};
}

Tensor Flux1::stream_tail(const Stream& s, const Tensor& x, const Tensor& attended, const std::vector<Tensor>& m,
                          AdapterTensors adapters) const {
  const Tensor y = torch::addcmul(x, m[2], linear(s.out, attended, adapters));
  const Tensor hidden = linear(s.mlp_in, modulated(y, m[3], m[4], kNormEpsilon), adapters, SQ_ACT_GELU_TANH);
  return torch::addcmul(y, m[5], linear(s.mlp_out, hidden, adapters));
}

std::vector<Tensor> Flux1::double_block(const DoubleBlock& b, const std::vector<Tensor>& in) const {
  const Tensor &image = in[0], &text = in[1], &silu_vec = in[2], &rope = in[3];
  const AdapterTensors adapters = rest(in, 4);
  const std::vector<Tensor> mi = chunks(linear(b.image.modulation, silu_vec, adapters), 6);  // shift, scale, gate; shift, scale, gate
  const std::vector<Tensor> mt = chunks(linear(b.text.modulation, silu_vec, adapters), 6);
  const Attention &of_image = b.image.attention, &of_text = b.text.attention;
  const Projections i = project(of_image, linears_->shared(modulated(image, mi[0], mi[1], kNormEpsilon)), adapters);
  const Projections t = project(of_text, linears_->shared(modulated(text, mt[0], mt[1], kNormEpsilon)), adapters);
  const Tensor attended = attend(linears_->heads({{t.q, of_text.norm_q}, {i.q, of_image.norm_q}}, rope, kNormEpsilon),
                                 linears_->heads({{t.k, of_text.norm_k}, {i.k, of_image.norm_k}}, rope, kNormEpsilon), torch::cat({t.v, i.v}, 1));
  const std::int64_t split = text.size(1);
  return {stream_tail(b.image, image, attended.slice(1, split), mi, adapters),
          clipped(stream_tail(b.text, text, attended.slice(1, 0, split), mt, adapters))};
}

std::vector<Tensor> Flux1::single_block(const SingleBlock& b, const std::vector<Tensor>& in) const {
  const Tensor &x = in[0], &silu_vec = in[1], &rope = in[2];
  const AdapterTensors adapters = rest(in, 3);
  const std::vector<Tensor> m = chunks(linear(b.modulation, silu_vec, adapters), 3);  // shift, scale, gate
  const LinearInput normed = linears_->shared(modulated(x, m[0], m[1], kNormEpsilon));
  const Projections p = project(b.attention, normed, adapters);
  const Tensor attended = attend(linears_->heads({{p.q, b.attention.norm_q}}, rope, kNormEpsilon),
                                 linears_->heads({{p.k, b.attention.norm_k}}, rope, kNormEpsilon), p.v);
  const Tensor joined = torch::cat({attended, linear(b.mlp, normed, adapters, SQ_ACT_GELU_TANH)}, -1);
  return {clipped(torch::addcmul(x, m[2], linear(b.out, joined, adapters)))};
}

Tensor Flux1::finish(const Tensor& x, const Tensor& silu_vec, AdapterTensors adapters) const {
  const std::vector<Tensor> m = chunks(linear(norm_out_, silu_vec, adapters), 2);  // scale first here
  return linear(proj_out_, modulated(x, m[1], m[0], kNormEpsilon), adapters);
}

}  // namespace squareq::training
