#include "squareq/training/sampling/sample_run.hpp"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "squareq/slab/writer.hpp"
#include "squareq/text.hpp"
#include "squareq/training/sampling/picture.hpp"
#include "squareq/training/trainer/inputs.hpp"
#include "squareq/training/trainer/philox.hpp"
#include "squareq/training/trainer/timesteps.hpp"

namespace squareq::training {

namespace {

void require_running(const std::atomic<bool>* stop) {
  if (stop && stop->load()) throw Error(Code::IO_INTERRUPTED, "interrupted; nothing was written");
}

/// Start noise of prompts [first, first + count).
torch::Tensor start_noise(const Cache& cache, const SampleOptions& o, std::int64_t first, std::int64_t count, std::int64_t tokens,
                          std::int64_t channels) {
  torch::Tensor noise = torch::empty({count, tokens, channels});
  for (std::int64_t b = 0; b < count; ++b) {
    float* out = noise.data_ptr<float>() + b * tokens * channels;
    if (cache.has_noise() && !o.fresh_noise)
      cache.read_noise(first + b, out);
    else
      RandomStream(o.seed, Purpose::sample, static_cast<std::uint64_t>(first + b))
          .fill_normal({out, static_cast<std::size_t>(tokens * channels)});
  }
  return noise;
}

void write_latents(const std::filesystem::path& path, const torch::Tensor& latents) {
  std::vector<std::uint64_t> shape;
  for (const std::int64_t size : latents.sizes()) shape.push_back(static_cast<std::uint64_t>(size));
  SafetensorsWriter writer(path, {{"latents", FileDtype::F32, shape}}, {{"format", "pt"}});
  writer.write("latents", 0, latents.data_ptr<float>(), static_cast<std::uint64_t>(latents.numel()) * 4);
  writer.commit();
}

}  // namespace

torch::Tensor euler_sample(Transformer& model, const torch::Tensor& noise, const torch::Tensor& text, const torch::Tensor& pooled,
                           const torch::Tensor& img_ids, const EulerOptions& o) {
  const torch::NoGradGuard no_grad;
  const bool embedded = model.config().guidance_embeds;
  const bool two_passes = !embedded && o.guidance != 1.0;
  const std::int64_t n = noise.size(0), batch = two_passes ? 2 * n : n;
  TextBatch captions{text.to(model.device(), model.dtype()), pooled.to(model.device(), model.dtype())};
  if (two_passes) {
    captions.tokens = torch::cat({captions.tokens, torch::zeros_like(captions.tokens)});
    captions.pooled = torch::cat({captions.pooled, torch::zeros_like(captions.pooled)});
  }
  ForwardInputs in = make_inputs(captions, img_ids, o.guidance, model);
  const std::vector<double> times = euler_schedule(o.steps, o.mu);
  torch::Tensor x = noise.to(model.device(), torch::kFloat32);
  for (std::size_t i = 0; i + 1 < times.size(); ++i) {
    require_running(o.stop);
    in.hidden_states = (two_passes ? torch::cat({x, x}) : x).to(model.dtype());
    in.timestep = torch::full({batch}, times[i], torch::TensorOptions(model.device()).dtype(torch::kFloat32));
    PassScope pass(model, Pass::forward);
    torch::Tensor v = model.forward(in).to(torch::kFloat32);
    pass.finish();
    if (two_passes) {
      const std::vector<torch::Tensor> half = v.chunk(2);
      v = half[1] + o.guidance * (half[0] - half[1]);
    }
    x = x + (times[i + 1] - times[i]) * v;
    if (o.progress) o.progress(static_cast<std::int64_t>(i) + 1);
  }
  return x;
}

SampleReport sample(Transformer& model, const SampleOptions& o) {
  const auto start = std::chrono::steady_clock::now();
  const Cache cache = Cache::open({o.prompts}, CacheUse::prompts);
  const ModelConfig& m = model.config();
  cache.require_sizes(m.in_channels, m.joint_attention_dim, m.pooled_projection_dim);
  if (o.steps < 1) throw Error(Code::CFG_VALUE, fmt::format("{} sampling steps, expected at least 1", o.steps));
  if (o.batch < 1) throw Error(Code::CFG_VALUE, fmt::format("a batch of {} pictures, expected at least 1", o.batch));
  if (o.first < 0 || o.first >= cache.size())
    throw Error(Code::CFG_VALUE, fmt::format("first prompt is {}, the cache has {}", o.first, cache.size()));
  const std::int64_t count = o.count == 0 ? cache.size() - o.first : o.count;
  if (count < 1 || o.first + count > cache.size())
    throw Error(Code::CFG_VALUE, fmt::format("prompts {} .. {} asked for, the cache has {}", o.first, o.first + count - 1, cache.size()));
  std::int64_t tokens = cache.shape().tokens;
  if (tokens == 0) tokens = o.height * o.width;
  if (tokens == 0)
    throw Error(Code::CFG_VALUE,
                fmt::format("{} has neither noise nor latents: --height and --width (in tokens) are needed", printable_path(o.prompts)));
  const TokenGrid grid = token_grid(tokens, o.height, o.width);
  const Decoder decoder = choose_decoder(o.decoder, m.in_channels);

  EulerOptions euler;
  euler.steps = o.steps;
  euler.guidance = o.guidance;
  euler.mu = o.mu.value_or(m.guidance_embeds ? flux_mu(tokens) : 0.0);
  euler.stop = o.stop;
  const torch::Tensor ids = image_ids(grid, static_cast<std::int64_t>(m.axes_dims_rope.size()), model.device());
  torch::Tensor latents = torch::empty({count, tokens, m.in_channels});
  for (std::int64_t at = 0; at < count; at += o.batch) {
    const std::int64_t n = std::min(o.batch, count - at);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
    std::iota(rows.begin(), rows.end(), o.first + at);
    const TextBatch text = read_text(cache, rows, std::vector<std::uint8_t>(rows.size(), 1), model.device(), model.dtype());
    euler.progress = [&](std::int64_t done) {
      if (o.progress)
        o.progress(static_cast<std::uint64_t>(at * o.steps + n * done), static_cast<std::uint64_t>(count * o.steps),
                   fmt::format("picture {} of {}", at + n, count));
    };
    latents.slice(0, at, at + n)
        .copy_(euler_sample(model, start_noise(cache, o, o.first + at, n, tokens, m.in_channels), text.tokens, text.pooled, ids, euler));
  }

  SampleReport report;
  report.pictures = count;
  std::error_code error;
  std::filesystem::create_directories(o.out, error);
  if (error) throw_errno(error.value(), "create folder", o.out);
  const auto keep = [&](const std::string& name) {
    report.files.push_back((o.out / name).string());
    return o.out / name;
  };
  write_latents(keep("latents.safetensors"), latents);
  if (decoder == Decoder::rgb4x4) {
    std::vector<Picture> pictures;
    for (std::int64_t i = 0; i < count; ++i) {
      pictures.push_back(decode_rgb4x4(latents.data_ptr<float>() + i * tokens * m.in_channels, grid));
      write_png(keep(fmt::format("{:04}.png", o.first + i)), pictures.back());
    }
    write_png(keep("sheet.png"), contact_sheet(pictures, o.columns));
    report.decoded = true;
  }
  report.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace squareq::training
