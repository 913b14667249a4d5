#include "squareq/training/modules/normed_heads.hpp"

#include <memory>

#include "squareq/error.hpp"
#include "squareq/training/tensor_bridge.hpp"
#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What does not change between the two directions. Keeps itself alive inside an autograd node.
struct Constants : torch::CustomClassHolder {
  Constants(Context of, std::vector<Tensor> per_stream, Tensor table, double eps)
      : backend(std::move(of)), weights(std::move(per_stream)), rope(std::move(table)), epsilon(static_cast<float>(eps)) {}

  Context backend;
  std::vector<Tensor> weights;  // [d] by stream
  Tensor rope;                  // [sum of S, d] F32
  float epsilon;
};

constexpr std::int64_t kAll = -1;

/// Batch `batch` of t [B, S, C], or all of it as one matrix.
Tensor rows_of(const Tensor& t, std::int64_t batch) { return batch == kAll ? t.flatten(0, 1) : t.select(0, batch); }

/// body(stream, batch, its rows of `joined` [B, sum of S, H d], their part of the table): one stream alone is one matrix, several are joined batch by batch.
template <class Body>
void for_pieces(const variable_list& xs, const Tensor& joined, const Tensor& rope, const Body& body) {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const std::int64_t length = xs[i].size(1), batches = length == 0 ? 0 : xs.size() == 1 ? 1 : xs[i].size(0);
    for (std::int64_t b = 0; b < batches; ++b) {
      const std::int64_t batch = xs.size() == 1 ? kAll : b;
      body(i, batch, rows_of(joined.narrow(1, first, length), batch), rope.narrow(0, first, length));
    }
    first += length;
  }
}

Tensor run_forward(const Constants& constants, const variable_list& xs) {
  std::int64_t total = 0;
  for (const Tensor& x : xs) total += x.size(1);
  const Tensor joined = torch::empty({xs[0].size(0), total, xs[0].size(2)}, xs[0].options());
  for_pieces(xs, joined, constants.rope, [&](std::size_t i, std::int64_t batch, const Tensor& y, const Tensor& table) {
    const Tensor x = rows_of(xs[i], batch);
    auto args = sized<sq_rms_norm_rope_forward_args>();
    const sq_tensor views[] = {view_of(x), view_of(constants.weights[i]), view_of(table), view_of(y)};
    args.epsilon = constants.epsilon, args.stream = stream_of(x.device());
    args.x = &views[0], args.weight = &views[1], args.rope = &views[2], args.y = &views[3];
    call(constants.backend.linear().rms_norm_rope_forward, constants.backend, args);
  });
  return joined.unflatten(-1, {-1, constants.weights[0].size(0)});
}

struct NormedHeads : torch::autograd::Function<NormedHeads> {
  static Tensor forward(AutogradContext* ctx, at::TensorList xs, c10::intrusive_ptr<Constants> constants) {
    variable_list saved(xs.begin(), xs.end());
    ctx->saved_data["constants"] = c10::IValue::make_capsule(constants);
    ctx->save_for_backward(saved);
    return run_forward(*constants, saved);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list xs = ctx->get_saved_variables();
    const auto capsule = ctx->saved_data["constants"].toCapsule();
    const Constants& constants = *static_cast<const Constants*>(capsule.get());
    variable_list result(xs.size() + 1);  // one more for the argument that is no tensor
    for (std::size_t i = 0; i < xs.size(); ++i)
      if (ctx->needs_input_grad(i)) result[i] = torch::empty(xs[i].sizes(), xs[i].options());
    for_pieces(xs, grads[0].flatten(2).contiguous(), constants.rope, [&](std::size_t i, std::int64_t batch, const Tensor& dy, const Tensor& table) {
      if (!result[i].defined()) return;
      const Tensor x = rows_of(xs[i], batch), dx = rows_of(result[i], batch);
      auto args = sized<sq_rms_norm_rope_backward_args>();
      const sq_tensor views[] = {view_of(dy), view_of(x), view_of(constants.weights[i]), view_of(table), view_of(dx)};
      args.epsilon = constants.epsilon, args.stream = stream_of(x.device());
      args.dy = &views[0], args.x = &views[1], args.weight = &views[2], args.rope = &views[3], args.dx = &views[4];
      call(constants.backend.linear().rms_norm_rope_backward, constants.backend, args);
    });
    return result;
  }
};

}  // namespace

bool offers_normed_heads(const Context& backend, torch::Dtype dtype) {
  const sq_linear_group& group = backend.linear();
  return (dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kFloat16) && offered(group, &sq_linear_group::rms_norm_rope_forward) &&
         offered(group, &sq_linear_group::rms_norm_rope_backward);
}

Tensor normed_heads(const Context& backend, const std::vector<HeadStream>& streams, const Tensor& rope, double epsilon) {
  variable_list xs;
  std::vector<Tensor> weights;
  bool differentiated = false;
  if (rope.requires_grad()) throw Error(Code::CALL_UNSUPPORTED, "a gradient of the RoPE table is asked for, the operation has none", {}, {}, "rope");
  for (const HeadStream& stream : streams) {
    if (stream.weight.requires_grad()) throw Error(Code::CALL_UNSUPPORTED, "a gradient of RMSNorm's weight is asked for, the operation has none", {}, {}, "weight");
    xs.push_back(stream.x.contiguous());
    weights.push_back(stream.weight);
    differentiated = differentiated || (torch::GradMode::is_enabled() && stream.x.requires_grad());
  }
  auto constants = c10::make_intrusive<Constants>(backend, std::move(weights), torch::view_as_real(rope).flatten(1), epsilon);
  if (!differentiated) return run_forward(*constants, xs);
  return NormedHeads::apply(at::TensorList(xs), std::move(constants));
}

}  // namespace squareq::training
