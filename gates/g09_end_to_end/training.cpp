#include "gates/g09_end_to_end/training.hpp"

#include <cmath>
#include <cstring>
#include <memory>

#include "gates/harness/quantize_call.hpp"

namespace squareq::gates::g09 {
namespace {

std::vector<std::vector<Layer>> make_blocks(Trial& trial, const std::vector<std::int64_t>& hidden_widths) {
  Instance& instance = trial.instance();
  Random random = trial.random("weights");
  std::vector<std::vector<Layer>> blocks;
  for (std::size_t b = 0; b < hidden_widths.size(); ++b) {
    std::vector<Layer>& layers = blocks.emplace_back();
    const std::pair<std::int64_t, std::int64_t> shapes[] = {{hidden_widths[b], width}, {width, hidden_widths[b]}};
    for (std::uint32_t i = 0; i < layers_per_block; ++i) {
      const std::int64_t n = shapes[i].first, k = shapes[i].second;
      Layer layer("blocks." + std::to_string(b) + ".fc" + std::to_string(i + 1), n, k, 64, true);
      Guarded w("w", Role::in, SQ_F32, {n, k});
      w.fill([&] { return random.normal() / std::sqrt(static_cast<double>(k)); });
      load(layer, quantize(instance, w, 64, layer.name));
      layer.bias.fill([&] { return 0.1 * random.normal(); });
      layers.push_back(std::move(layer));
    }
  }
  return blocks;
}

void put(Guarded& tensor, const std::vector<float>& values) { tensor.set_bytes(std::as_bytes(std::span(values))); }

std::vector<float> floats(const Guarded& tensor) {
  const std::vector<std::byte> bytes = tensor.bytes();
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

/// AdamW (Loshchilov and Hutter 2019), lr 1e-2, betas 0.9 and 0.999, eps 1e-8, weight decay 1e-2.
void adamw(Trained& t, const std::vector<float>& gradient, int step) {
  constexpr float lr = 1e-2f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, decay = 1e-2f;
  const float c1 = 1 - std::pow(beta1, static_cast<float>(step)), c2 = 1 - std::pow(beta2, static_cast<float>(step));
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    t.first[i] = beta1 * t.first[i] + (1 - beta1) * gradient[i];
    t.second[i] = beta2 * t.second[i] + (1 - beta2) * gradient[i] * gradient[i];
    t.value[i] -= lr * (t.first[i] / c1 / (std::sqrt(t.second[i] / c2) + eps) + decay * t.value[i]);
  }
}

/// One linear call's problem: the layer's data is only a description here, the weight comes from the source.
struct Step {
  Step(Model& m, std::uint32_t block, std::uint32_t layer, const AdapterState& adapter, const std::vector<float>& x)
      : problem(rows, Layer(m.blocks.layer(block, layer).name, m.blocks.layer(block, layer).n, m.blocks.layer(block, layer).k, 64, true), SQ_F32) {
    put(problem.x, x);
    Adapter& a = problem.adapter.emplace(rank, problem.layer.n, problem.layer.k, 2.0f);
    put(a.a_t, adapter.a_t.value);
    put(a.b_t, adapter.b_t.value);
    problem.activation = layer == 0 ? SQ_ACT_GELU_TANH : SQ_ACT_NONE;
  }
  Problem problem;
};

std::size_t linear_index(std::uint32_t block, std::uint32_t layer) { return block * layers_per_block + layer; }

}  // namespace

Model::Model(Trial& trial, std::uint32_t block_count) : Model(trial, std::vector<std::int64_t>(block_count, hidden)) {}

Model::Model(Trial& trial, const std::vector<std::int64_t>& hidden_widths) : blocks(make_blocks(trial, hidden_widths)) {
  Random random = trial.random("data");
  const auto normal = [&](std::int64_t count, double size) {
    std::vector<float> out;
    for (std::int64_t i = 0; i < count; ++i) out.push_back(static_cast<float>(size * random.normal()));
    return out;
  };
  input = normal(rows * width, 1);
  target = normal(rows * width, 1);
  for (std::uint32_t b = 0; b < blocks.count(); ++b)
    for (std::uint32_t i = 0; i < layers_per_block; ++i) {
      const Layer& layer = blocks.layer(b, i);
      const auto trained = [](std::vector<float> value) {
        const std::vector<float> zeros(value.size(), 0.f);
        return Trained{std::move(value), zeros, zeros};
      };
      start.adapters.push_back({trained(normal(rank * layer.k, 1 / std::sqrt(static_cast<double>(layer.k)))), trained(std::vector<float>(static_cast<std::size_t>(layer.n * rank), 0.f))});
    }
}

WeightSource direct_source(Model& model) {
  auto weights = std::make_shared<std::vector<std::unique_ptr<DirectWeight>>>();
  for (std::uint32_t b = 0; b < model.blocks.count(); ++b)
    for (std::uint32_t i = 0; i < layers_per_block; ++i) weights->push_back(std::make_unique<DirectWeight>(model.blocks.layer(b, i)));
  const auto nothing = [] {};
  const auto no_block = [](std::uint32_t) {};
  return {nothing, nothing, no_block, no_block, [weights](std::uint32_t b, std::uint32_t i) { return (*weights)[linear_index(b, i)]->ref(); }};
}

WeightSource leased_source(StreamSession& session) {
  struct Held {
    std::unique_ptr<Lease> lease;
    sq_weight_ref refs[layers_per_block];
  };
  auto held = std::make_shared<Held>();
  return {[&session] { session.begin_step(0); }, [&session] { session.end_step(); },
          [held, &session](std::uint32_t block) {
            held->lease = std::make_unique<Lease>(session, block);
            for (std::uint32_t i = 0; i < layers_per_block; ++i) held->refs[i] = held->lease->layer(i);
          },
          [held](std::uint32_t) {
            held->lease->release();
            held->lease.reset();
          },
          [held](std::uint32_t, std::uint32_t layer) { return &held->refs[layer]; }};
}

std::vector<StepTrace> train(Instance& instance, Model& model, const WeightSource& source, TrainState& state, int steps) {
  const std::uint32_t count = model.blocks.count();
  std::vector<StepTrace> traces;
  for (int s = 0; s < steps; ++s) {
    StepTrace trace;
    trace.da.resize(state.adapters.size());
    trace.db.resize(state.adapters.size());
    std::vector<std::vector<float>> gradients_a(state.adapters.size()), gradients_b(state.adapters.size());
    const auto adapter = [&](std::uint32_t b, std::uint32_t i) -> const AdapterState& { return state.adapters[linear_index(b, i)]; };

    source.begin_step();
    std::vector<std::vector<float>> x(count + 1);
    x[0] = model.input;
    for (std::uint32_t b = 0; b < count; ++b) {
      source.enter(b);
      Step first(model, b, 0, adapter(b, 0), x[b]);
      const std::vector<float> h = floats(forward(instance, first.problem, {}, source.weight(b, 0)).y);
      Step second(model, b, 1, adapter(b, 1), h);
      const std::vector<float> y = floats(forward(instance, second.problem, {}, source.weight(b, 1)).y);
      x[b + 1].resize(y.size());
      for (std::size_t j = 0; j < y.size(); ++j) x[b + 1][j] = x[b][j] + y[j];
      source.leave(b);
    }
    std::vector<float> dx(x[count].size());
    for (std::size_t j = 0; j < dx.size(); ++j) {
      const double difference = static_cast<double>(x[count][j]) - static_cast<double>(model.target[j]);
      trace.loss += difference * difference / static_cast<double>(dx.size());
      dx[j] = static_cast<float>(2 * difference / static_cast<double>(dx.size()));
    }
    trace.output.assign(std::as_bytes(std::span(x[count])).begin(), std::as_bytes(std::span(x[count])).end());

    for (std::uint32_t b = count; b-- > 0;) {
      source.enter(b);
      Step first(model, b, 0, adapter(b, 0), x[b]);
      ForwardOutputs inner = forward(instance, first.problem, {.preactivation = true, .h = true}, source.weight(b, 0));
      Step second(model, b, 1, adapter(b, 1), floats(inner.y));
      ForwardOutputs outer = forward(instance, second.problem, {.h = true}, source.weight(b, 1));
      const auto run_backward = [&](std::uint32_t layer, Problem& p, const std::vector<float>& dy_values, Guarded* pre, const Guarded& saved_h) {
        Guarded dy("dy", Role::in, SQ_F32, {rows, p.layer.n}), h("h", Role::in, SQ_F32, {rows, rank});
        put(dy, dy_values);
        h.set_bytes(saved_h.bytes());
        BackwardOutputs out = backward(instance, p, dy, pre, &h, {}, source.weight(b, layer));
        const std::size_t index = linear_index(b, layer);
        trace.da[index] = out.da_t->bytes();
        trace.db[index] = out.db_t->bytes();
        gradients_a[index] = floats(*out.da_t);
        gradients_b[index] = floats(*out.db_t);
        return floats(*out.dx);
      };
      const std::vector<float> dh = run_backward(1, second.problem, dx, nullptr, *outer.h);
      Guarded pre("preactivation", Role::in, SQ_F32, {rows, first.problem.layer.n});
      pre.set_bytes(inner.preactivation->bytes());
      const std::vector<float> through = run_backward(0, first.problem, dh, &pre, *inner.h);
      for (std::size_t j = 0; j < dx.size(); ++j) dx[j] += through[j];
      source.leave(b);
    }
    source.end_step();
    trace.input_gradient.assign(std::as_bytes(std::span(dx)).begin(), std::as_bytes(std::span(dx)).end());

    ++state.step;
    for (std::size_t i = 0; i < state.adapters.size(); ++i) {
      adamw(state.adapters[i].a_t, gradients_a[i], state.step);
      adamw(state.adapters[i].b_t, gradients_b[i], state.step);
    }
    require(std::isfinite(trace.loss), "step " + std::to_string(state.step) + ": the loss is not finite");
    traces.push_back(std::move(trace));
  }
  return traces;
}

void same_traces(const std::string& what, const std::vector<StepTrace>& a, const std::vector<StepTrace>& b) {
  require(a.size() == b.size(), what + ": different numbers of steps");
  for (std::size_t s = 0; s < a.size(); ++s) {
    const std::string where = what + ", step " + std::to_string(s + 1) + ": ";
    same_bytes(where + "output", a[s].output, b[s].output);
    require(a[s].loss == b[s].loss, where + "losses differ");
    for (std::size_t i = 0; i < a[s].da.size(); ++i) {
      same_bytes(where + "dA of linear " + std::to_string(i), a[s].da[i], b[s].da[i]);
      same_bytes(where + "dB of linear " + std::to_string(i), a[s].db[i], b[s].db[i]);
    }
    same_bytes(where + "gradient of the input", a[s].input_gradient, b[s].input_gradient);
  }
}

void same_state(const std::string& what, const TrainState& a, const TrainState& b) {
  for (std::size_t i = 0; i < a.adapters.size(); ++i) {
    same_bytes(what + ", A of linear " + std::to_string(i), std::as_bytes(std::span(a.adapters[i].a_t.value)), std::as_bytes(std::span(b.adapters[i].a_t.value)));
    same_bytes(what + ", B of linear " + std::to_string(i), std::as_bytes(std::span(a.adapters[i].b_t.value)), std::as_bytes(std::span(b.adapters[i].b_t.value)));
  }
}

}  // namespace squareq::gates::g09
