#include "squareq/training/models/block_function.hpp"

#include <torch/torch.h>

namespace squareq::training {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// A block's own small graph: leaves cut off from the graph outside, and what run() made of them.
struct Subgraph {
  variable_list leaves, outputs;
};

/// `needs[i]`: leaf i takes part in differentiation.
Subgraph record(BlockTask& task, const variable_list& inputs, const std::vector<bool>& needs) {
  torch::AutoGradMode grad(true);
  Subgraph graph;
  for (std::size_t i = 0; i < inputs.size(); ++i) graph.leaves.push_back(inputs[i].detach().requires_grad_(needs[i]));
  graph.outputs = task.run(graph.leaves);
  return graph;
}

struct State : torch::CustomClassHolder {
  std::shared_ptr<BlockTask> task;
  std::vector<bool> needs;
  Subgraph graph;  // only without checkpointing
};

struct BlockFunction : torch::autograd::Function<BlockFunction> {
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, std::shared_ptr<BlockTask> task, bool checkpointing) {
    const variable_list inputs(tensors.begin(), tensors.end());
    auto state = c10::make_intrusive<State>();
    state->task = task;
    for (const torch::Tensor& input : inputs) state->needs.push_back(input.requires_grad());
    ctx->set_materialize_grads(false);
    const auto hold = task->hold();
    variable_list outputs;
    if (checkpointing) {
      ctx->save_for_backward(inputs);
      outputs = task->run(inputs);
    } else {
      state->graph = record(*task, inputs, state->needs);
      for (const torch::Tensor& output : state->graph.outputs) outputs.push_back(output.detach());
    }
    ctx->saved_data["state"] = c10::IValue::make_capsule(std::move(state));
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto capsule = ctx->saved_data["state"].toCapsule();
    auto& state = *static_cast<State*>(capsule.get());
    const auto hold = state.task->hold();
    const Subgraph graph =
        state.graph.outputs.empty() ? record(*state.task, ctx->get_saved_variables(), state.needs) : std::move(state.graph);
    state.graph = {};

    variable_list outputs, output_grads, wanted;
    for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
      if (!grads[i].defined() || !graph.outputs[i].requires_grad()) continue;
      outputs.push_back(graph.outputs[i]);
      output_grads.push_back(grads[i]);
    }
    std::vector<std::size_t> positions;
    for (std::size_t i = 0; i < graph.leaves.size(); ++i) {
      if (!graph.leaves[i].requires_grad() || !ctx->needs_input_grad(i)) continue;
      wanted.push_back(graph.leaves[i]);
      positions.push_back(i);
    }
    variable_list result(graph.leaves.size() + 2);  // two more for the arguments that are no tensors
    if (outputs.empty() || wanted.empty()) return result;
    const variable_list computed = torch::autograd::grad(outputs, wanted, output_grads, false, false, true);
    for (std::size_t i = 0; i < positions.size(); ++i) result[positions[i]] = computed[i];
    return result;
  }
};

}  // namespace

std::vector<torch::Tensor> run_block(const std::shared_ptr<BlockTask>& task, const std::vector<torch::Tensor>& inputs, bool checkpointing) {
  bool differentiated = false;
  if (torch::GradMode::is_enabled())
    for (const torch::Tensor& input : inputs) differentiated = differentiated || input.requires_grad();
  if (!differentiated) {
    const auto hold = task->hold();
    return task->run(inputs);
  }
  return BlockFunction::apply(at::TensorList(inputs), task, checkpointing);
}

}  // namespace squareq::training
