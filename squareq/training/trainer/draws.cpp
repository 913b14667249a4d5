#include "squareq/training/trainer/draws.hpp"

#include <fmt/format.h>

#include <numeric>
#include <utility>

#include "squareq/error.hpp"
#include "squareq/slab/safetensors.hpp"
#include "squareq/text.hpp"
#include "squareq/training/data/tensor_reader.hpp"

namespace squareq::training {

namespace {

class SeededDraws : public DrawSource {
 public:
  explicit SeededDraws(const SeededDrawsOptions& options) : o_(options) {}

  Draws draw(std::uint64_t index) const override {
    const auto batch = static_cast<std::size_t>(o_.batch);
    Draws d;
    d.noise.resize(batch * static_cast<std::size_t>(o_.elements));
    RandomStream timestep(o_.seed, Purpose::timestep, index), noise(o_.seed, Purpose::noise, index),
        caption(o_.seed, Purpose::caption, index);
    for (std::size_t b = 0; b < batch; ++b) {
      d.rows.push_back(row(index * batch + b));
      d.t.push_back(draw_timestep(o_.timesteps, timestep));
      d.keep.push_back(static_cast<double>(caption.uniform()) >= o_.caption_dropout);
    }
    noise.fill_normal(d.noise);
    return d;
  }

 private:
  /// Row number `position` of the endless sequence of epochs; the permutation of the current epoch is kept.
  std::int64_t row(std::uint64_t position) const {
    const auto rows = static_cast<std::uint64_t>(o_.rows);
    const std::uint64_t epoch = position / rows;
    if (order_.empty() || epoch != epoch_) {
      order_.resize(rows);
      std::iota(order_.begin(), order_.end(), std::int64_t{0});
      RandomStream random(o_.seed, Purpose::order, epoch);
      for (std::uint64_t i = rows; i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
      epoch_ = epoch;
    }
    return order_[position % rows];
  }

  SeededDrawsOptions o_;
  mutable std::vector<std::int64_t> order_;
  mutable std::uint64_t epoch_ = 0;
};

class FileDraws : public DrawSource {
 public:
  FileDraws(const std::filesystem::path& path, std::int64_t rows, std::int64_t batch, std::int64_t elements, std::int64_t count)
      : file_(SafetensorsFile::open(path)), batch_(static_cast<std::uint64_t>(batch)), elements_(static_cast<std::uint64_t>(elements)) {
    const std::string shown = printable_path(path);
    const TensorRecord& order = find("order", batch_);
    const TensorRecord& t = find("timestep", batch_);
    const TensorRecord& keep = find("keep", batch_);
    noise_ = &find("noise", batch_ * elements_);
    require(order, order.dtype == FileDtype::I64, "I64");
    require(keep, keep.dtype == FileDtype::U8, "U8");
    require(t, t.dtype == FileDtype::F32, "F32");
    require(*noise_, is_float_tensor(noise_->dtype), "F16 or F32");
    const std::uint64_t steps = order.shape[0];
    for (const TensorRecord* tensor : {&t, &keep, std::as_const(noise_)})
      if (tensor->shape[0] != steps)
        throw Error(Code::DS_COUNT,
                    fmt::format("{}: '{}' has {} micro-batches, 'order' has {}", shown, tensor->name, tensor->shape[0], steps), shown, {},
                    tensor->name);
    if (steps < static_cast<std::uint64_t>(count))
      throw Error(Code::DS_COUNT, fmt::format("{}: draws of {} micro-batches, the run needs {}", shown, steps, count), shown);

    order_.resize(steps * batch_);
    keep_.resize(steps * batch_);
    t_.resize(steps * batch_);
    file_.read(order, 0, order_.data(), order.bytes());
    file_.read(keep, 0, keep_.data(), keep.bytes());
    file_.read(t, 0, t_.data(), t.bytes());
    for (std::size_t i = 0; i < order_.size(); ++i) {
      if (order_[i] < 0 || order_[i] >= rows)
        throw Error(Code::DS_SHAPE, fmt::format("{}: 'order' names row {}, the data set has {}", shown, order_[i], rows), shown, {},
                    "order");
      if (!(t_[i] >= 0.0f && t_[i] <= 1.0f))
        throw Error(Code::DS_SHAPE, fmt::format("{}: 'timestep' holds {}, expected 0 .. 1", shown, t_[i]), shown, {}, "timestep");
    }
  }

  Draws draw(std::uint64_t index) const override {
    const auto begin = static_cast<std::ptrdiff_t>(index * batch_), end = begin + static_cast<std::ptrdiff_t>(batch_);
    Draws d;
    d.rows.assign(order_.begin() + begin, order_.begin() + end);
    d.t.assign(t_.begin() + begin, t_.begin() + end);
    d.keep.assign(keep_.begin() + begin, keep_.begin() + end);
    d.noise.resize(batch_ * elements_);
    read_floats(file_, *noise_, index * batch_ * elements_, batch_ * elements_, d.noise.data());
    return d;
  }

 private:
  const TensorRecord& find(const char* name, std::uint64_t per_step) const {
    const std::string shown = printable_path(file_.path());
    const TensorRecord* tensor = file_.header().find(name);
    if (!tensor) throw Error(Code::DS_TENSOR, fmt::format("{}: no tensor '{}'", shown, name), shown, {}, name);
    if (tensor->shape.size() < 2 || tensor->shape[1] != batch_ || tensor->elements() != tensor->shape[0] * per_step)
      throw Error(Code::DS_SHAPE,
                  fmt::format("{}: '{}' holds {} numbers for {} micro-batches of {}, expected {} each", shown, name, tensor->elements(),
                              tensor->shape.empty() ? 0 : tensor->shape[0], batch_, per_step),
                  shown, {}, name);
    return *tensor;
  }
  void require(const TensorRecord& tensor, bool good, const char* expected) const {
    const std::string shown = printable_path(file_.path());
    if (!good)
      throw Error(Code::DS_SHAPE, fmt::format("{}: '{}' is {}, expected {}", shown, tensor.name, dtype_name(tensor.dtype), expected), shown,
                  {}, tensor.name);
  }

  SafetensorsFile file_;
  std::uint64_t batch_, elements_;
  const TensorRecord* noise_ = nullptr;
  std::vector<std::int64_t> order_;
  std::vector<float> t_;
  std::vector<std::uint8_t> keep_;
};

}  // namespace

std::unique_ptr<DrawSource> seeded_draws(const SeededDrawsOptions& options) { return std::make_unique<SeededDraws>(options); }

std::unique_ptr<DrawSource> file_draws(const std::filesystem::path& path, std::int64_t rows, std::int64_t batch, std::int64_t elements,
                                       std::int64_t count) {
  return std::make_unique<FileDraws>(path, rows, batch, elements, count);
}

}  // namespace squareq::training
