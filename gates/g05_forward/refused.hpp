// Whole calls that a refusal damages in one place, and the tensors that it must leave alone.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "gates/g05_forward/g05_forward.hpp"

namespace squareq::gates::g05 {

using Codes = std::initializer_list<Code>;

/// The sentences that every case of refused calls covers, and what a case adds.
inline std::vector<std::string> refusal_ids(std::initializer_list<const char*> more = {}) {
  std::vector<std::string> ids = {"SQ-LIN-046", "SQ-ERR-007", "SQ-LIN-040", "SQ-LIN-041", "SQ-LIN-043", "SQ-LIN-044", "SQ-LIN-045", "SQ-LIN-048", "SQ-LIN-049"};
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

/// Tensors that one case hands over; all are checked after every call.
class Tensors {
 public:
  const sq_tensor* make(const char* name, std::int32_t dtype, std::vector<std::int64_t> shape, double value, Role role = Role::in) {
    Guarded& t = *all_.emplace_back(std::make_unique<Guarded>(name, role, dtype, std::move(shape)));
    if (role == Role::in) t.fill(value);
    return t.tensor();
  }
  void arm() {
    for (auto& t : all_) t->arm();
  }
  void untouched(const std::string& what) const {
    for (const auto& t : all_)
      if (const std::string damage = t->damage_after_refusal(); !damage.empty()) fail(what + ": " + damage);
  }

 private:
  std::vector<std::unique_ptr<Guarded>> all_;
};

/// quantize_activation of [rows, 8] behind LAYERNORM_MODULATE, with [groups, 8] shift and scale.
struct MakeCall {
  Tensors t;
  sq_quantize_activation_args args = sized<sq_quantize_activation_args>();
  std::vector<sq_part> parts;

  explicit MakeCall(std::int64_t rows = 6, std::int64_t groups = 2) {
    args.producer = SQ_PRODUCER_LAYERNORM_MODULATE;
    args.x = t.make("x", SQ_F32, {rows, 8}, 1.5);
    args.shift = t.make("shift", SQ_F32, {groups, 8}, 0.25);
    args.scale = t.make("modulation scale", SQ_F32, {groups, 8}, 0.5);
    args.epsilon = 1e-6f;
    args.format = "per_token_int8";
    parts = {{"q", *t.make("q", SQ_I8, {rows, 8}, 0, Role::out)}, {"scale", *t.make("scale", SQ_F32, {rows}, 0, Role::out)}};
    finish();
  }
  void finish() {
    args.out = parts.data();
    args.out_count = static_cast<std::uint32_t>(parts.size());
  }
  void plain() {
    args.producer = SQ_PRODUCER_NONE;
    args.shift = args.scale = nullptr;
  }
};

/// A layer of 4 rows and 10 columns with bias, and X [3, 10], all F32.
inline Problem small_problem(Trial& trial) {
  Random random = trial.random("data");
  Problem p(3, Layer("given", 4, 10, 4, true), SQ_F32);
  fill(p, random, {});
  return p;
}

/// linear_forward of int8 activations that the caller made; `lora` stands ready, but is not in the call.
struct GivenCall {
  Tensors t;
  Problem p;
  DirectWeight direct;
  std::vector<sq_part> parts;
  sq_quantized_activation xq = sized<sq_quantized_activation>();
  sq_lora lora = sized<sq_lora>();
  sq_linear_forward_args args = sized<sq_linear_forward_args>();

  explicit GivenCall(Trial& trial) : p(small_problem(trial)), direct(p.layer) {
    parts = {{"q", *t.make("xq q", SQ_I8, {3, 10}, 5)}, {"scale", *t.make("xq scale", SQ_F32, {3}, 0.5)}};
    xq.format = "per_token_int8";
    finish();
    lora.scaling = 1;
    lora.a_t = t.make("a_t", SQ_F32, {2, 10}, 1);
    lora.b_t = t.make("b_t", SQ_F32, {4, 2}, 1);
    lora.x = t.make("lora x", SQ_BF16, {3, 10}, 1);
    args.weight = direct.ref();
    args.xq = &xq;
    args.y = t.make("y", SQ_F32, {3, 4}, 0, Role::out);
  }
  void finish() {
    xq.parts = parts.data();
    xq.part_count = static_cast<std::uint32_t>(parts.size());
  }
};

/// linear_backward with a branch and every output but dx_lora; X is BF16, the rest F32.
struct BackCall {
  Tensors t;
  Problem p;
  DirectWeight direct;
  sq_lora lora = sized<sq_lora>();
  sq_linear_backward_args args = sized<sq_linear_backward_args>();

  explicit BackCall(Trial& trial) : p(small_problem(trial)), direct(p.layer) {
    lora.scaling = 1;
    lora.a_t = t.make("a_t", SQ_F32, {2, 10}, 1);
    lora.b_t = t.make("b_t", SQ_F32, {4, 2}, 1);
    args.weight = direct.ref();
    args.dy = t.make("dy", SQ_F32, {3, 4}, 1);
    args.x = t.make("x", SQ_BF16, {3, 10}, 1);
    args.lora = &lora;
    args.dx = t.make("dx", SQ_F32, {3, 10}, 0, Role::out);
    args.da_t = t.make("da_t", SQ_F32, {2, 10}, 0, Role::out);
    args.db_t = t.make("db_t", SQ_F32, {4, 2}, 0, Role::out);
  }
};

}  // namespace squareq::gates::g05
