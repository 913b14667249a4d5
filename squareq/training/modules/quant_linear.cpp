#include "squareq/training/modules/quant_linear.hpp"

#include <fmt/format.h>

#include <cmath>

#include "squareq/error.hpp"
#include "squareq/text.hpp"
#include "squareq/training/modules/quantized_linear.hpp"
#include "squareq/training/tensor_bridge.hpp"

namespace squareq::training {

namespace {

using torch::Tensor;

/// Weights that lie in tensors of their own.
class ResidentSource final : public WeightSource {
 public:
  ResidentSource(LinearSpec spec, std::vector<std::pair<const char*, Tensor>> parts) : spec_(std::move(spec)), parts_(std::move(parts)) {}

  void bind(BoundWeight& bound) const override {
    bind_tensors(bound, spec_.name.c_str(), spec_.out, spec_.in, parts_);
  }

 private:
  LinearSpec spec_;
  std::vector<std::pair<const char*, Tensor>> parts_;
};

[[noreturn]] void refuse(const LinearSpec& spec, const std::string& what) {
  const std::string name = printable(spec.name);
  throw Error(Code::MD_LAYER, fmt::format("layer '{}': {}", name, what), {}, name);
}

void require(const LinearSpec& spec, const char* part, const Tensor& t, torch::Dtype dtype, std::vector<std::int64_t> shape) {
  if (!t.defined()) refuse(spec, fmt::format("{} is missing", part));
  if (t.scalar_type() != dtype)
    refuse(spec, fmt::format("{} must be {}, received {}", part, c10::toString(dtype), c10::toString(t.scalar_type())));
  bool same = t.dim() == static_cast<std::int64_t>(shape.size());
  std::string wanted = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    same = same && (shape[i] < 0 ? t.size(static_cast<std::int64_t>(i)) >= -shape[i] : t.size(static_cast<std::int64_t>(i)) == shape[i]);
    wanted += (i ? ", " : "") + (shape[i] < 0 ? ">= " + std::to_string(-shape[i]) : std::to_string(shape[i]));
  }
  if (!same) refuse(spec, fmt::format("{} has shape {}, the module needs {}]", part, shape_of(t), wanted));
}

}  // namespace

QuantLinear::QuantLinear(LinearSpec spec, std::optional<LoraSpec> lora, torch::Dtype compute_dtype)
    : spec_(std::move(spec)), lora_(std::move(lora)), compute_dtype_(compute_dtype) {
  qweight_ = register_buffer("qweight", torch::empty({0, 0}, torch::kInt8));
  scale_ = register_buffer("scale", torch::empty({0}, torch::kFloat32));
  zero_point_ = register_buffer("zero_point", torch::empty({0}, torch::kFloat32));
  if (spec_.bias) bias_ = register_parameter("bias", torch::zeros({spec_.out}), false);
  if (!lora_) return;
  if (lora_->rank <= 0) refuse(spec_, fmt::format("rank {} is not positive", lora_->rank));
  const double bound =
      lora_->init == LoraInit::peft ? 1.0 / std::sqrt(static_cast<double>(spec_.in)) : std::sqrt(6.0 / static_cast<double>(lora_->rank));
  lora_a_ = register_parameter("lora_A", torch::empty({lora_->rank, spec_.in}).uniform_(-bound, bound).t());
  lora_b_ = register_parameter("lora_B", torch::zeros({spec_.out, lora_->rank}).t());
}

void QuantLinear::set_quant_state(const Tensor& qweight, const Tensor& scale, const Tensor& zero_point, const Tensor& bias) {
  require(spec_, "qweight", qweight, torch::kInt8, {spec_.out, -spec_.in});
  require(spec_, "scale", scale, torch::kFloat32, {spec_.out});
  require(spec_, "zero_point", zero_point, torch::kFloat32, {spec_.out});
  if (spec_.bias) require(spec_, "bias", bias, torch::kFloat32, {spec_.out});
  if (!spec_.bias && bias.defined()) refuse(spec_, "a bias was given, the module has none");
  if (!scale.isfinite().all().item<bool>() || !scale.gt(0).all().item<bool>())
    refuse(spec_, "scale holds a value that is not finite and positive");
  if (!zero_point.eq(0).all().item<bool>()) refuse(spec_, "zero_point holds a value that is not 0");
  if (qweight.eq(-128).any().item<bool>()) refuse(spec_, "qweight holds -128");
  if (qweight.slice(1, spec_.in).ne(0).any().item<bool>()) refuse(spec_, "padding columns of qweight are not 0");
  torch::NoGradGuard no_grad;
  qweight_.set_data(qweight.contiguous());
  scale_.set_data(scale.contiguous());
  zero_point_.set_data(zero_point.contiguous());
  if (spec_.bias) bias_.set_data(bias.contiguous());
}

Tensor QuantLinear::forward(const Tensor& x, const Context& backend) const {
  const std::string name = printable(spec_.name);
  if (!loaded()) throw Error(Code::CALL_STATE, fmt::format("QuantLinear '{}' called before quantized state was set", name), {}, name);
  if (x.dim() == 0 || x.size(-1) != spec_.in)
    throw Error(Code::CALL_SHAPE, fmt::format("layer '{}': input has shape {}, the last dimension must be {}", name, shape_of(x), spec_.in),
                {}, name);
  std::vector<std::pair<const char*, Tensor>> parts{{"qweight", qweight_}, {"scale", scale_}, {"zero_point", zero_point_}};
  if (spec_.bias) parts.emplace_back("bias", bias_.detach());
  LinearCall call{backend, std::make_shared<ResidentSource>(spec_, std::move(parts)), spec_.out, SQ_ACT_NONE, 0};
  LowRank branch;
  if (lora_) {
    call.scaling = static_cast<float>(lora_->alpha / static_cast<double>(lora_->rank));
    branch = {lora_a_.t(), lora_b_.t(), {}};
  }
  const Tensor rows = x.to(torch::kFloat32).reshape({-1, spec_.in});
  const Tensor y = quantized_linear(rows, branch, std::make_shared<const LinearCall>(std::move(call)));
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape.back() = spec_.out;
  return y.view(shape).to(compute_dtype_);
}

void QuantLinear::to(torch::Device device, torch::Dtype, bool non_blocking) { to(device, non_blocking); }
void QuantLinear::to(torch::Dtype, bool) {}
void QuantLinear::to(torch::Device device, bool non_blocking) { torch::nn::Module::to(device, non_blocking); }

}  // namespace squareq::training
