#include "squareq/training/token_codes.hpp"

#include <array>

#include "squareq/training/torch_compat.hpp"

namespace squareq::training {

namespace {

std::array<sq_part, 2> parts_of(const TokenCodes& codes) { return {sq_part{"q", view_of(codes.q)}, sq_part{"scale", view_of(codes.scale)}}; }

}  // namespace

TokenCodes token_codes(const Context& backend, const torch::Tensor& x) {
  const TokenCodes codes{torch::empty(x.sizes(), x.options().dtype(torch::kInt8).requires_grad(false)),
                         torch::empty({x.size(0)}, x.options().dtype(torch::kFloat32).requires_grad(false))};
  if (x.size(0) == 0) return codes;
  const auto parts = parts_of(codes);
  const sq_tensor x_view = view_of(x);
  auto args = sized<sq_quantize_activation_args>();
  args.producer = SQ_PRODUCER_NONE;
  args.stream = stream_of(x.device());
  args.x = &x_view;
  args.format = "per_token_int8";
  args.out = parts.data();
  args.out_count = parts.size();
  squareq::call(backend.linear().quantize_activation, backend, args);
  return codes;
}

TokenCodesView::TokenCodesView(const TokenCodes& codes) : parts(parts_of(codes)) {
  activation.format = "per_token_int8";
  activation.parts = parts.data();
  activation.part_count = parts.size();
}

}  // namespace squareq::training
