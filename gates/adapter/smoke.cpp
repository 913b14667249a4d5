// The smoke test: is it the adapter that is broken, or the implementation behind it that is wrong? One rule of the protocol at a time, with
// calls so small that their right numbers can be read off the page.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <functional>

#include "gates/adapter/request.hpp"
#include "gates/adapter/session.hpp"
#include "gates/gates.hpp"
#include "gates/harness/guarded.hpp"
#include "gates/harness/subject.hpp"
#include "squareq/contract.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace adapter {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

enum class Outcome { kept, broken, not_reached };

struct Rule {
  std::string requirement, text;
  Outcome outcome = Outcome::not_reached;
  std::string detail;
};

struct Numbers {
  std::string operation;
  std::string wrong;  // empty: right
};

/// A rule that is not kept, by an adapter that can still be spoken to. A Fault is one that cannot.
struct Broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void broken(const std::string& text) { throw Broken(text); }

std::string told(const Answer& a) {
  if (a.kind == Answer::Kind::ok) return "answered ok";
  if (a.kind == Answer::Kind::unsupported) return "answered unsupported";
  return "refused with " + std::string(code_name(a.code)) + ": " + printable(a.message, 120);
}

Guarded tensor(const char* name, std::int32_t dtype, std::vector<std::int64_t> shape, const std::vector<double>& values) {
  Guarded g(name, Role::in, dtype, std::move(shape));
  for (std::size_t i = 0; i < values.size(); ++i) g.set(static_cast<std::int64_t>(i), values[i]);
  return g;
}

std::string difference(const Guarded& actual, const std::vector<double>& expected) {
  const std::vector<double> values = actual.values();
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (values[i] != expected[i]) return fmt::format("{}[{}] is {}, right is {}", actual.name(), i, values[i], expected[i]);
  return {};
}

/// W = [[127, -1, 64], [-254, 2, 6]]: scales 1 and 2, codes [[127, -1, 64], [-127, 1, 3]], one column of padding.
class Smoke {
 public:
  explicit Smoke(const std::string& command) : session_(command, {}) {}

  void run() {
    session_.launch();
    rule("SQ-ADP-012", "refuses a protocol version that it does not speak, naming it", [&] {
      const Answer a = session_.exchange(start_line(foreign_version), start_limit);
      if (a.kind != Answer::Kind::refused || a.code != Code::CALL_VERSION) broken(told(a) + ", must refuse with CALL_VERSION");
      if (a.message.find(std::to_string(foreign_version)) == std::string::npos) broken("the message does not name the version: " + printable(a.message, 120));
    });
    rule("SQ-ADP-013", "answers start with its description", [&] {
      const Answer a = session_.exchange(start_line(protocol_version), start_limit);
      if (a.kind != Answer::Kind::ok) broken(told(a));
      try {
        description_ = parse_description(a.result.dump());
      } catch (const Error& e) {
        broken(e.what());
      }
      for (const char* group : {"stream", "telemetry"})
        if (description_.groups.contains(group)) broken(std::string("describes the group '") + group + "', which the protocol does not carry");
    });
    rule("SQ-ADP-015", "answers an unknown command with unsupported", [&] {
      const Answer a = session_.exchange({{"command", "smoke.no_such_command"}}, limit);
      if (a.kind != Answer::Kind::unsupported) broken(told(a) + ", must answer unsupported");
    });
    rule("SQ-ADP-020", "creates two contexts with different numbers", [&] {
      first_ = created();
      const std::uint64_t second = created();
      if (first_ == second) broken("both contexts have the number " + std::to_string(first_));
      if (const Answer a = session_.exchange({{"command", "destroy"}, {"context", second}}, limit); a.kind != Answer::Kind::ok) broken("destroy: " + told(a));
      destroyed_ = second;
    });
    rule("SQ-ADP-021", "refuses a context that was destroyed", [&] {
      const Answer a = session_.exchange({{"command", "destroy"}, {"context", destroyed_}}, limit);
      if (a.kind != Answer::Kind::refused || a.code != Code::CALL_STATE) broken(told(a) + ", must refuse with CALL_STATE");
    });
    rule("SQ-ADP-016", "ignores a request field that it does not know", [&] {
      const std::uint64_t third = created();
      const Answer a = session_.exchange({{"command", "destroy"}, {"context", third}, {"of_a_later_version", true}}, limit);
      if (a.kind != Answer::Kind::ok) broken("destroy: " + told(a));
    });
    operations();
    rule("SQ-ADP-014", "refuses a wrong call with a code and a message, and lives on", [&] { refusal(); });
    rule("SQ-ADP-020", "destroys the context", [&] {
      if (const Answer a = session_.exchange({{"command", "destroy"}, {"context", first_}}, limit); a.kind != Answer::Kind::ok) broken(told(a));
    });
    rule("SQ-ADP-017", "answers stop and ends with exit status 0", [&] {
      if (const std::string wrong = session_.stop(); !wrong.empty()) broken(wrong);
    });
  }

  std::vector<Rule> rules;
  std::vector<Numbers> numbers;
  const Description& description() const { return description_; }

 private:
  static constexpr std::uint64_t foreign_version = 4294967295;
  static constexpr std::chrono::milliseconds start_limit{120'000}, limit{45'000};

  static ordered_json start_line(std::uint64_t version) {
    return {{"command", "start"}, {"protocol", version}, {"host", {{"name", "squareq gates --smoke"}, {"abi_version", SQ_ABI_VERSION}, {"max_answer_bytes", max_answer_bytes}}}};
  }

  /// After a fault the process cannot be believed any more: the rest is not reached.
  void rule(const std::string& requirement, const std::string& text, const std::function<void()>& check) {
    rules.push_back({requirement, text, Outcome::not_reached, {}});
    if (lost_) return;
    try {
      check();
      rules.back().outcome = Outcome::kept;
    } catch (const Fault& fault) {
      rules.back().outcome = Outcome::broken;
      rules.back().detail = fault.what() + session_.post_mortem();
      lost_ = true;
    } catch (const Broken& wrong) {
      rules.back().outcome = Outcome::broken;
      rules.back().detail = wrong.what();
    } catch (const Refusal& r) {
      rules.back().outcome = Outcome::broken;
      rules.back().detail = "refused with " + std::string(code_name(r.code)) + ": " + printable(r.message, 200);
    }
  }

  std::uint64_t created() {
    const Answer a = session_.exchange({{"command", "create"}, {"threads", 1}, {"deterministic", true}}, limit);
    if (a.kind != Answer::Kind::ok) broken("create: " + told(a));
    if (!a.result.contains("context") || !a.result["context"].is_number_unsigned()) broken("create: the result has no whole number 'context'");
    return a.result["context"].get<std::uint64_t>();
  }

  json send(const char* command, Request request) {
    ordered_json line = {{"command", command}, {"context", first_}};
    line.update(request.fields);
    return session_.call(std::move(line), request.inputs, request.outputs);
  }

  void operations() {
    for (const char* name : {"quantize", "dequantize", "linear_forward", "linear_backward", "quantize_activation", "numeric_guard", "rms_norm_rope_forward", "rms_norm_rope_backward",
                             "explain"}) {
      if (!description_.operations.contains(name)) {
        rule("SQ-ADP-015", std::string("answers ") + name + ", which it does not describe, with unsupported", [&] {
          try {
            call(name);
          } catch (const Refusal& r) {
            if (r.code == Code::CALL_UNSUPPORTED) return;
            broken("refused with " + std::string(code_name(r.code)) + ": " + printable(r.message, 120));
          }
          broken("answered ok: an operation that is offered must be described");
        });
        continue;
      }
      rule("SQ-ADP-030", std::string("answers ") + name + " with every output, dtype and shape asked for", [&] {
        const std::string wrong = call(name);
        numbers.push_back({name, wrong});
      });
    }
  }

  /// One small call. Returns which of its numbers is wrong, if one is.
  std::string call(const std::string& name) {
    Guarded w = tensor("w", SQ_F32, {2, 3}, {127, -1, 64, -254, 2, 6});
    Guarded codes = tensor("qweight", SQ_I8, {2, 4}, {127, -1, 64, 0, -127, 1, 3, 0}), scale = tensor("scale", SQ_F32, {2}, {1, 2}), zero = tensor("zero_point", SQ_F32, {2}, {0, 0});
    Guarded bias = tensor("bias", SQ_F32, {2}, {0.5, -1}), x = tensor("x", SQ_F32, {1, 3}, {1, 2, 3}), dy = tensor("dy", SQ_F32, {1, 2}, {1, 2});
    const sq_part parts[] = {{"qweight", *codes.tensor()}, {"scale", *scale.tensor()}, {"zero_point", *zero.tensor()}, {"bias", *bias.tensor()}};
    auto weight = sized<sq_weight>();
    weight.part_count = 4;
    weight.format = "bp8_v2";
    weight.name = "smoke";
    weight.out_features = 2;
    weight.in_features = 3;
    weight.parts = parts;
    auto ref = sized<sq_weight_ref>();
    ref.weight = &weight;
    Request request;
    if (name == "quantize") {
      Guarded q("qweight", Role::out, SQ_I8, {2, 4}), s("scale", Role::out, SQ_F32, {2}), z("zero_point", Role::out, SQ_F32, {2});
      const sq_part out[] = {{"qweight", *q.tensor()}, {"scale", *s.tensor()}, {"zero_point", *z.tensor()}};
      auto args = sized<sq_quantize_args>();
      args.pack_k = 4;
      args.format = "bp8_v2";
      args.name = "smoke";
      args.w = w.tensor();
      args.out = out;
      args.out_count = 3;
      request.quantize(&args);
      const json result = send("quantize", std::move(request));
      if (!result.contains("floored_rows") || !result["floored_rows"].is_number_unsigned()) broken("the result has no whole number 'floored_rows'");
      std::string wrong = difference(q, codes.values());
      if (wrong.empty()) wrong = difference(s, scale.values());
      if (wrong.empty()) wrong = difference(z, zero.values());
      if (wrong.empty() && result["floored_rows"] != 0) wrong = "floored_rows is not 0";
      return wrong;
    }
    if (name == "dequantize") {
      Guarded out("out", Role::out, SQ_F32, {2, 3});
      auto args = sized<sq_dequantize_args>();
      args.weight = &ref;
      args.out = out.tensor();
      request.dequantize(&args);
      send("dequantize", std::move(request));
      return difference(out, w.values());
    }
    if (name == "linear_backward") {
      Guarded dx("dx", Role::out, SQ_F32, {1, 3});
      auto args = sized<sq_linear_backward_args>();
      args.weight = &ref;
      args.dy = dy.tensor();
      args.dx = dx.tensor();
      request.linear_backward(&args);
      send("linear_backward", std::move(request));
      return difference(dx, {-381, 3, 76});
    }
    if (name == "quantize_activation") {
      Guarded q("q", Role::out, SQ_I8, {1, 3}), s("scale", Role::out, SQ_F32, {1}), rows = tensor("x", SQ_F32, {1, 3}, {127, -1, 64});
      const sq_part out[] = {{"q", *q.tensor()}, {"scale", *s.tensor()}};
      auto args = sized<sq_quantize_activation_args>();
      args.format = "per_token_int8";
      args.x = rows.tensor();
      args.out = out;
      args.out_count = 2;
      request.quantize_activation(&args);
      send("quantize_activation", std::move(request));
      const std::string wrong = difference(q, {127, -1, 64});
      return wrong.empty() ? difference(s, {1}) : wrong;
    }
    if (name == "numeric_guard") {
      Guarded odd = tensor("x", SQ_F32, {1, 3}, {NAN, INFINITY, 1}), counts("counts", Role::inout, SQ_I64, {2});
      auto args = sized<sq_numeric_guard_args>();
      args.x = odd.tensor();
      args.counts = counts.tensor();
      request.numeric_guard(&args);
      send("numeric_guard", std::move(request));
      return difference(counts, {1, 1});
    }
    if (name == "rms_norm_rope_forward" || name == "rms_norm_rope_backward") {
      // A quarter turn, (a, b) -> (-b, a). The mean square is 1 and epsilon 3: r = 1/2, n = (1, -2), y = (2, 1).
      // Back: g = (6, -16), w g = (12, -64), mean(x w g) = 38, dx = (12 - 38/4, -64 + 38/4) / 2.
      Guarded head = tensor("x", SQ_F32, {1, 2}, {1, -1}), norm = tensor("weight", SQ_F32, {2}, {2, 4}), rope = tensor("rope", SQ_F32, {1, 2}, {0, 1});
      if (name == "rms_norm_rope_forward") {
        Guarded y("y", Role::out, SQ_F32, {1, 2});
        auto args = sized<sq_rms_norm_rope_forward_args>();
        args.epsilon = 3;
        args.x = head.tensor();
        args.weight = norm.tensor();
        args.rope = rope.tensor();
        args.y = y.tensor();
        request.rms_norm_rope_forward(&args);
        send("rms_norm_rope_forward", std::move(request));
        return difference(y, {2, 1});
      }
      Guarded gradient = tensor("dy", SQ_F32, {1, 2}, {16, 6}), dx("dx", Role::out, SQ_F32, {1, 2});
      auto args = sized<sq_rms_norm_rope_backward_args>();
      args.epsilon = 3;
      args.dy = gradient.tensor();
      args.x = head.tensor();
      args.weight = norm.tensor();
      args.rope = rope.tensor();
      args.dx = dx.tensor();
      request.rms_norm_rope_backward(&args);
      send("rms_norm_rope_backward", std::move(request));
      return difference(dx, {1.25, -27.25});
    }
    Guarded y("y", Role::out, SQ_F32, {1, 2});
    auto args = sized<sq_linear_forward_args>();
    args.weight = &ref;
    args.x = x.tensor();
    args.y = y.tensor();
    if (name == "explain") {
      request.operation(SQ_OP_LINEAR_FORWARD, &args);
      request.outputs.clear();
      request.fields["outputs"] = {{"y", {{"dtype", "F32"}, {"shape", {1, 2}}}}};
      const json result = send("explain", std::move(request));
      for (const char* key : {"op", "kernel", "rejected"})
        if (!result.contains(key)) return std::string("the explanation has no '") + key + "'";
      return {};
    }
    request.linear_forward(&args);
    send("linear_forward", std::move(request));
    return difference(y, {317.5, -233});
  }

  /// The first operation that it offers, without its main input.
  void refusal() {
    const char* name = nullptr;
    for (const char* candidate : {"linear_forward", "linear_backward", "dequantize", "quantize", "quantize_activation", "numeric_guard", "rms_norm_rope_forward", "rms_norm_rope_backward"})
      if (!name && description_.operations.contains(candidate)) name = candidate;
    if (!name) return;  // it offers none: there is nothing to refuse
    Guarded out("y", Role::out, SQ_F32, {1, 2});
    Request request;
    request.fields = {{"activation", "none"}, {"compute", "default"}, {"accumulate", false}, {"format", "bp8_v2"}, {"name", "smoke"}, {"pack_k", 4}, {"first_row", 0}, {"producer", "none"}, {"epsilon", 0}};
    request.output("y", out.tensor());
    try {
      send(name, std::move(request));
    } catch (const Refusal& r) {
      if (r.message.empty()) broken(std::string(name) + " was refused without a message");
      call(name);
      return;
    }
    broken(std::string(name) + " without a weight and an input was accepted");
  }

  Session session_;
  Description description_;
  std::uint64_t first_ = 0, destroyed_ = 0;
  bool lost_ = false;
};

}  // namespace
}  // namespace adapter

int smoke_adapter(const std::string& command, bool as_json) {
  using adapter::Outcome;
  adapter::Smoke smoke(command);
  smoke.run();
  bool sound = true;
  std::string wrong;
  nlohmann::ordered_json rules = nlohmann::ordered_json::array(), numbers = nlohmann::ordered_json::array();
  for (const adapter::Rule& r : smoke.rules) {
    sound = sound && r.outcome == Outcome::kept;
    const char* verdict = r.outcome == Outcome::kept ? "kept" : r.outcome == Outcome::broken ? "BROKEN" : "not reached";
    rules.push_back({{"requirement", r.requirement}, {"rule", r.text}, {"verdict", verdict}, {"detail", r.detail}});
    if (!as_json) fmt::print("{:<12} {}  {}{}\n", verdict, r.requirement, r.text, r.detail.empty() ? "" : "\n    " + r.detail);
  }
  for (const adapter::Numbers& n : smoke.numbers) {
    numbers.push_back({{"operation", n.operation}, {"right", n.wrong.empty()}, {"detail", n.wrong}});
    if (!n.wrong.empty()) wrong += (wrong.empty() ? "" : ", ") + n.operation;
    if (!as_json && !n.wrong.empty()) fmt::print("{:<12} numbers of {}\n    {}\n", "WRONG", n.operation, n.wrong);
  }
  const bool good = sound && wrong.empty();
  const std::string verdict = !sound ? "the adapter is broken: nothing can be said of the implementation behind it"
                              : wrong.empty() ? "the adapter is sound; the numbers of " + std::to_string(smoke.numbers.size()) + " operations are right"
                                              : "the adapter is sound; the implementation is wrong in " + wrong;
  if (as_json)
    fmt::print("{}\n", nlohmann::ordered_json{{"ok", good}, {"adapter", command}, {"sound", sound}, {"implementation", smoke.description().name}, {"rules", rules}, {"numbers", numbers}, {"verdict", verdict}}.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
  else
    fmt::print("{}\n", verdict);
  std::fflush(stdout);
  return good ? 0 : 1;
}

}  // namespace squareq::gates
