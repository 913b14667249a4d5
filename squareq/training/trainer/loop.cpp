#include "squareq/training/trainer/loop.hpp"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "squareq/text.hpp"
#include "squareq/training/device.hpp"
#include "squareq/training/trainer/inputs.hpp"
#include "squareq/training/trainer/targets.hpp"

namespace squareq::training {

namespace {

std::vector<LoraLayer> starting_adapters(const RunConfig& c, const Transformer& model) {
  if (c.lora.start) return read_lora(*c.lora.start, lora_names(model));
  std::vector<TargetLayer> layers;
  for (const LinearInfo& l : model.linears()) layers.push_back({l.name, l.in, l.out, l.block});
  return initial_adapters(choose_targets(layers, c.lora.targets), c.lora.rank, c.lora.alpha, c.lora.init, c.train.seed);
}

std::string dtype_text(torch::Dtype dtype) { return std::string(c10::toString(dtype)); }

std::vector<float> values_of(const torch::Tensor& tensor) {
  const torch::Tensor host = tensor.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  return {host.data_ptr<float>(), host.data_ptr<float>() + host.numel()};
}

}  // namespace

void add_pass(sq_step_metrics& step, const sq_step_metrics& pass) {
  step.size = sizeof(sq_step_metrics);
  for (auto field :
       {&sq_step_metrics::h2d_bytes, &sq_step_metrics::d2h_bytes, &sq_step_metrics::stall_count, &sq_step_metrics::evictions,
        &sq_step_metrics::prefetch_hits, &sq_step_metrics::prefetch_misses, &sq_step_metrics::dtype_promotions, &sq_step_metrics::nan_count,
        &sq_step_metrics::inf_count, &sq_step_metrics::disk_read_bytes, &sq_step_metrics::launches})
    step.*field += pass.*field;
  for (auto field : {&sq_step_metrics::copy_time_ms, &sq_step_metrics::compute_time_ms, &sq_step_metrics::stall_time_ms,
                     &sq_step_metrics::wall_ms, &sq_step_metrics::slot_wait_ms, &sq_step_metrics::disk_read_ms})
    step.*field += pass.*field;
  for (auto field : {&sq_step_metrics::host_pool_free, &sq_step_metrics::host_pool_in_use, &sq_step_metrics::pinned_bytes})
    step.*field = pass.*field;
  step.vram_used_mb = pass.vram_used_mb;
  step.vram_reserved_mb = pass.vram_reserved_mb;
  step.vram_peak_bytes = std::max(step.vram_peak_bytes, pass.vram_peak_bytes);
}

TrainingLoop::TrainingLoop(const RunConfig& config, Transformer& model)
    : config_(config), model_(model), data_(Cache::open(config.data.train)) {
  const ModelConfig& m = model.config();
  const auto axes = static_cast<std::int64_t>(m.axes_dims_rope.size());
  const auto check = [&](const Cache& cache) {
    cache.require_sizes(m.in_channels, m.joint_attention_dim, m.pooled_projection_dim);
    return image_ids(token_grid(cache.shape().tokens, config.data.height, config.data.width), axes, model.device());
  };
  data_ids_ = check(data_);
  if (!config.data.validation.empty()) {
    validation_.emplace(Cache::open(config.data.validation));
    validation_ids_ = check(*validation_);
  }

  const std::int64_t elements = data_.shape().tokens * data_.shape().channels;
  if (config.train.draws) {
    draws_ = file_draws(*config.train.draws, data_.size(), config.train.batch, elements, config.train.steps * config.train.accumulation);
  } else {
    SeededDrawsOptions options{config.train.seed, data_.size(),           config.train.batch,
                               elements,          config.train.timesteps, config.data.caption_dropout};
    options.timesteps.image_tokens = data_.shape().tokens;
    draws_ = seeded_draws(options);
  }

  adapters_ = to_adapters(starting_adapters(config, model), model.device());
  adapters_.dropout = config.lora.dropout;
  adapters_.require_grad(true);
  model.set_adapters(&adapters_);
  optimizer_.emplace(adapters_.parameters(), AdamWOptions{config.optimizer.betas, config.optimizer.eps, config.optimizer.weight_decay});
}

TrainingLoop::~TrainingLoop() { model_.set_adapters(nullptr); }

/// mean((v - (eps - x0))^2) in FP32 at x_t = x0 + t (eps - x0).
torch::Tensor TrainingLoop::prediction_loss(const HostBatch& host, const torch::Tensor& ids) {
  const Draws& draws = host.draws;
  const auto batch = static_cast<std::int64_t>(draws.rows.size());
  const torch::Device device = model_.device();
  const torch::Tensor x0 = host.latents.to(device);
  const torch::Tensor eps =
      torch::from_blob(const_cast<float*>(draws.noise.data()), x0.sizes(), torch::kFloat32).clone().to(device);
  const torch::Tensor t = torch::from_blob(const_cast<float*>(draws.t.data()), {batch}, torch::kFloat32).clone().to(device);
  const torch::Tensor velocity = eps - x0;
  ForwardInputs in = make_inputs({host.text.tokens.to(device), host.text.pooled.to(device)}, ids, config_.train.guidance, model_);
  in.hidden_states = (x0 + t.view({batch, 1, 1}) * velocity).to(model_.dtype());
  in.timestep = t;
  return (model_.forward(in).to(torch::kFloat32) - velocity).pow(2).mean();
}

TrainingLoop::HostBatch TrainingLoop::read_batch(const Cache& cache, Draws draws) const {
  HostBatch batch;
  batch.latents = read_latents(cache, draws.rows, torch::kCPU);
  batch.text = read_text(cache, draws.rows, draws.keep, torch::kCPU, model_.dtype());
  batch.draws = std::move(draws);
  return batch;
}

TrainingLoop::HostBatch TrainingLoop::take_batch(std::uint64_t index) {
  const auto make = [this](std::uint64_t i) { return read_batch(data_, draws_->draw(i)); };
  // One thread at a time draws. What was begun for another index (a resumed run) is forgotten, its failure too.
  if (next_.valid()) next_.wait();
  HostBatch batch = next_.valid() && next_index_ == index ? next_.get() : make(index);
  next_ = {};
  const auto last = static_cast<std::uint64_t>(config_.train.steps * config_.train.accumulation);
  next_index_ = index + 1;
  if (next_index_ < last) next_ = std::async(std::launch::async, make, next_index_);
  return batch;
}

double TrainingLoop::micro_batch(std::uint64_t index, sq_step_metrics& metrics) {
  const HostBatch batch = take_batch(index);
  adapters_.dropout_seed = RandomStream(config_.train.seed, Purpose::dropout, index).bits64();
  PassScope pass(model_, Pass::train);
  const torch::Tensor loss = prediction_loss(batch, data_ids_);
  const double value = loss.item<double>();
  if (!std::isfinite(value)) {  // nothing to learn from: the pass ends here, abandoned
    metrics.nan_count += std::isnan(value);
    metrics.inf_count += std::isinf(value);
    return value;
  }
  (config_.train.accumulation == 1 ? loss : loss / static_cast<double>(config_.train.accumulation)).backward();
  pass.finish();
  add_pass(metrics, model_.last_step());
  return value;
}

TrainingLoop::StepResult TrainingLoop::step() {
  StepResult result;
  optimizer_->zero_grad();
  for (std::int64_t micro = 0; micro < config_.train.accumulation; ++micro) {
    const auto index = static_cast<std::uint64_t>(step_ * config_.train.accumulation + micro);
    result.loss += micro_batch(index, result.metrics) / static_cast<double>(config_.train.accumulation);
    if (!std::isfinite(result.loss)) break;
  }
  result.lr = learning_rate(config_.schedule.name, config_.optimizer.lr, step_, config_.schedule.warmup, config_.train.steps);
  const GradientCheck gradients = check_gradients(optimizer_->parameters());
  result.gradient_norm = gradients.norm;
  result.metrics.nan_count += gradients.nan;
  result.metrics.inf_count += gradients.infinite;
  result.skipped = !std::isfinite(result.loss) || !gradients.finite();
  if (result.skipped) {
    ++skipped_;
    ++skipped_in_a_row_;
  } else {
    clip_gradients(optimizer_->parameters(), gradients.norm, config_.train.clip);
    optimizer_->step(result.lr);
    skipped_in_a_row_ = 0;
  }
  optimizer_->zero_grad();
  losses_.push_back(result.skipped ? std::numeric_limits<double>::quiet_NaN() : result.loss);
  ++step_;
  result.metrics.step = step_ - 1;
  if (const auto memory = device_memory(model_.device().is_cuda())) {  // the pass knows of its slots only
    constexpr double mib = 1 << 20;
    result.metrics.vram_used_mb = static_cast<double>(memory->allocated) / mib;
    result.metrics.vram_reserved_mb = static_cast<double>(memory->reserved) / mib;
    result.metrics.vram_peak_bytes = static_cast<std::int64_t>(memory->peak_allocated);
  }
  if (skipped_in_a_row_ >= config_.train.max_skipped)
    throw Error(Code::NUM_NONFINITE,
                fmt::format("step {}: loss {}, {} NaN and {} infinite gradients; {} steps in a row were skipped (train.max_skipped {})",
                            step_, result.loss, gradients.nan, gradients.infinite, skipped_in_a_row_, config_.train.max_skipped));
  return result;
}

double TrainingLoop::validate() {
  const torch::NoGradGuard no_grad;
  const Cache& cache = *validation_;
  const std::int64_t elements = cache.shape().tokens * cache.shape().channels;
  const double dropout = std::exchange(adapters_.dropout, 0.0);
  double sum = 0;
  for (std::int64_t first = 0; first < cache.size(); first += config_.train.batch) {
    Draws draws;
    for (std::int64_t row = first; row < std::min(first + config_.train.batch, cache.size()); ++row) {
      draws.rows.push_back(row);
      draws.t.push_back((static_cast<float>(row % 8) + 0.5f) / 8.0f);
      draws.keep.push_back(1);
      draws.noise.resize(draws.noise.size() + static_cast<std::size_t>(elements));
      RandomStream(config_.train.seed, Purpose::validation, static_cast<std::uint64_t>(row))
          .fill_normal(std::span(draws.noise).last(static_cast<std::size_t>(elements)));
    }
    const HostBatch batch = read_batch(cache, std::move(draws));
    PassScope pass(model_, Pass::forward);
    sum += prediction_loss(batch, validation_ids_).item<double>() * static_cast<double>(batch.draws.rows.size());
    pass.finish();
  }
  adapters_.dropout = dropout;
  return sum / static_cast<double>(cache.size());
}

RunIdentity TrainingLoop::identity() const {
  RunIdentity id;
  id.base = model_.slab_id().empty() ? "float checkpoint " + printable(config_.model.slab.string()) : model_.slab_id();
  id.settings = {{"seed", std::to_string(config_.train.seed)},
                 {"batch", std::to_string(config_.train.batch)},
                 {"accumulation", std::to_string(config_.train.accumulation)},
                 {"rows", std::to_string(data_.size())},
                 {"dtype", dtype_text(model_.dtype())}};
  // Only what differs from the default: older checkpoints name neither.
  if (config_.train.compute != "w8a16") id.settings["compute"] = config_.train.compute;
  if (!config_.train.deterministic) id.settings["deterministic"] = "false";
  for (const auto& [name, a] : adapters_.all()) id.layers.push_back({name, a.rank(), a.a_t.size(1), a.b_t.size(0), a.alpha});
  return id;
}

Checkpoint TrainingLoop::snapshot() const {
  Checkpoint c{identity(), step_, optimizer_->steps, skipped_, skipped_in_a_row_, losses_, {}};
  std::size_t at = 0;
  const auto add = [&](const char* kind, const std::string& layer, const char* matrix, const torch::Tensor& t) {
    c.tensors.push_back({fmt::format("{}.{}.{}", kind, layer, matrix),
                         {static_cast<std::uint64_t>(t.size(0)), static_cast<std::uint64_t>(t.size(1))},
                         values_of(t)});
  };
  for (const auto& [name, a] : adapters_.all())
    for (const auto& [matrix, tensor] : {std::pair("a_t", a.a_t), std::pair("b_t", a.b_t)}) {
      add("adapter", name, matrix, tensor);
      add("moment1", name, matrix, optimizer_->moment1[at]);
      add("moment2", name, matrix, optimizer_->moment2[at]);
      ++at;
    }
  return c;
}

void TrainingLoop::restore(const Checkpoint& c, const std::string& file) {
  require_same(identity(), c.identity, file);
  std::map<std::string, const CheckpointTensor*> by_name;
  for (const CheckpointTensor& t : c.tensors) by_name[t.name] = &t;
  std::vector<std::pair<torch::Tensor, const CheckpointTensor*>> copies;
  const auto want = [&](const char* kind, const std::string& layer, const char* matrix, const torch::Tensor& target) {
    const auto at = by_name.find(fmt::format("{}.{}.{}", kind, layer, matrix));
    if (at == by_name.end() || at->second->values.size() != static_cast<std::size_t>(target.numel()))
      throw Error(Code::CK_TRUNCATED, fmt::format("{}: no {} of '{}' with {} numbers", file, kind, layer, target.numel()), file, layer);
    copies.emplace_back(target, at->second);
  };
  std::size_t at = 0;
  for (const auto& [name, a] : adapters_.all())
    for (const auto& [matrix, tensor] : {std::pair("a_t", a.a_t), std::pair("b_t", a.b_t)}) {
      want("adapter", name, matrix, tensor);
      want("moment1", name, matrix, optimizer_->moment1[at]);
      want("moment2", name, matrix, optimizer_->moment2[at]);
      ++at;
    }
  const torch::NoGradGuard no_grad;
  for (auto& [target, source] : copies)
    target.copy_(torch::from_blob(const_cast<float*>(source->values.data()), target.sizes(), torch::kFloat32));
  step_ = c.step;
  optimizer_->steps = c.optimizer_step;
  skipped_ = c.skipped;
  skipped_in_a_row_ = c.skipped_in_a_row;
  losses_ = c.losses;
}

}  // namespace squareq::training
