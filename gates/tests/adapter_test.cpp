// The host's side of the adapter protocol against an adapter that misbehaves in one way at a time: each must end in a verdict that names it, never
// in a hang, and must touch no tensor of the caller.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "fixtures/places.hpp"
#include "gates/adapter/request.hpp"
#include "gates/adapter/table.hpp"
#include "gates/gates.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/report.hpp"
#include "squareq/contract.hpp"

namespace squareq::gates::adapter {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

std::string command(const std::string& mode, const std::string& more = {}) {
  return "exec python3 '" + (test::source_dir() / "gates/tests/odd_adapter.py").string() + "' " + mode + (more.empty() ? "" : " '" + more + "'");
}

/// A context from the table of an adapter, and a dequantize of W [2, 3] = 0.5 * (-2 ... 3) into `out` [2, 3] F32 to call on it.
struct Dequantize {
  const sq_implementation* table;
  sq_context* context = nullptr;
  sq_error error = make_error();
  sq_status created;
  Layer layer = two_by_three();
  DirectWeight direct{layer};
  Guarded out{"out", Role::out, SQ_F32, {2, 3}, 5};
  sq_dequantize_args args = sized<sq_dequantize_args>();

  explicit Dequantize(const sq_implementation* of) : table(of) {
    auto host = sized<sq_host>();
    host.abi_version = SQ_ABI_VERSION;
    args.weight = direct.ref();
    args.out = out.tensor();
    created = table->create(&host, &context, &error);
  }
  Dequantize(const Dequantize&) = delete;
  Dequantize& operator=(const Dequantize&) = delete;
  ~Dequantize() { table->destroy(context); }

  sq_status call() { return table->linear->dequantize(context, &args, &error); }

  static Layer two_by_three() {
    Layer layer("layer", 2, 3, 4, false);
    for (int i = 0; i < 6; ++i) layer.qweight.set(i / 3, i % 3, i - 2);
    layer.scale.fill(0.5);
    return layer;
  }
};

/// One dequantize through the table of an adapter: status, message, and whether the output is untouched.
struct Outcome {
  Code code;
  std::string message, layer, tensor;
  bool untouched;
  std::vector<double> values;
  Verdict verdict;
};

Outcome call_once(const std::string& mode, Session::Limits limits = {30s, 20s}) {
  Session session(command(mode), limits);
  session.start();
  Outcome outcome;
  {
    Dequantize one(table_of(session));
    one.out.arm();
    if (mode == "unasked") std::this_thread::sleep_for(500ms);  // until the line that nobody asked for is there
    const sq_status status = one.created == SQ_OK ? one.call() : one.created;
    outcome = {static_cast<Code>(status), one.error.message, one.error.layer, one.error.tensor, one.out.damage_after_refusal().empty(), one.out.values(), {}};
    if (status == SQ_OK) {
      EXPECT_EQ(one.out.damage_after_success(), "");
    }
  }
  session.after_case(outcome.verdict);
  return outcome;
}

TEST(Adapter, no_tensor_file_outlives_its_answer) {  // SQ-ADP-032
  const auto tensor_files = [] {
    std::set<std::filesystem::path> found;
    for (const auto& folder : std::filesystem::directory_iterator(std::filesystem::temp_directory_path())) {
      if (!folder.path().filename().string().starts_with("squareq-adapter-")) continue;
      std::error_code gone;  // another run's folder may vanish under us
      for (std::filesystem::recursive_directory_iterator at(folder, gone), end; !gone && at != end; at.increment(gone))
        if (at->path().extension() == ".safetensors") found.insert(at->path());
    }
    return found;
  };
  const std::set<std::filesystem::path> before = tensor_files();
  Session session(command("sound"), {30s, 20s});
  session.start();
  Dequantize one(table_of(session));
  ASSERT_EQ(one.created, SQ_OK) << one.error.message;
  ASSERT_EQ(one.call(), SQ_OK) << one.error.message;
  for (const std::filesystem::path& file : tensor_files()) EXPECT_TRUE(before.contains(file)) << file;
}

TEST(Adapter, tensors_travel_both_ways) {  // SQ-ADP-010, SQ-ADP-020, SQ-ADP-030
  const Outcome o = call_once("sound");
  EXPECT_EQ(o.code, Code::OK) << o.message;
  EXPECT_EQ(o.values, (std::vector<double>{-1, -0.5, 0, 0.5, 1, 1.5}));
}

/// What the host answers itself, because no request carries it: each under its code, and the process never hears of it (page 95, Strides).
TEST(Adapter, wrong_hosts_contexts_and_sinks_are_refused_by_the_host) {
  Session session(command("sound"), {30s, 20s});
  session.start();
  const sq_implementation* table = table_of(session);
  sq_error e = make_error();
  sq_context* context = nullptr;
  const auto created = [&](const auto& change) {
    auto host = sized<sq_host>();
    host.abi_version = SQ_ABI_VERSION;
    change(host);
    return static_cast<Code>(table->create(&host, &context, &e));
  };
  sq_allocator half = sized<sq_allocator>();
  half.allocate = [](void*, std::int32_t, std::uint64_t, std::uint64_t, sq_stream_handle, const char*) -> void* { return nullptr; };
  EXPECT_EQ(created([](sq_host& h) { h.abi_version = SQ_ABI_VERSION + 1; }), Code::CALL_VERSION);
  EXPECT_EQ(created([](sq_host& h) { h.device.kind = SQ_CUDA; }), Code::CALL_DEVICE);
  EXPECT_EQ(created([](sq_host& h) { h.device.index = 99; }), Code::CALL_DEVICE);
  EXPECT_NE(std::string(e.message).find("index 99"), std::string::npos) << e.message;
  EXPECT_EQ(created([&](sq_host& h) { h.allocator = &half; }), Code::CALL_NULL);
  EXPECT_EQ(context, nullptr);
  const auto args = sized<sq_dequantize_args>();
  EXPECT_EQ(table->linear->dequantize(nullptr, &args, &e), SQ_CALL_NULL);
  ASSERT_EQ(created([](sq_host&) {}), Code::OK) << e.message;
  EXPECT_EQ(table->linear->dequantize(context, nullptr, &e), SQ_CALL_NULL);
  // An error record of an older contract ends before `layer`.
  std::memset(&e, 0x5A, sizeof e);
  e.size = offsetof(sq_error, layer);
  EXPECT_EQ(table->linear->dequantize(context, nullptr, &e), SQ_CALL_NULL);
  EXPECT_NE(std::memchr(e.message, 0, sizeof e.message), nullptr);
  for (const char* c = e.layer; c != reinterpret_cast<const char*>(&e + 1); ++c) ASSERT_EQ(*c, 0x5A) << "byte " << c - reinterpret_cast<const char*>(&e) << " was written";
  table->destroy(context);
}

struct Misbehaviour {
  const char* mode;
  Status status;
  const char* says;  // what the verdict must name
};

class misbehaving : public testing::TestWithParam<Misbehaviour> {};

TEST_P(misbehaving, is_named_and_touches_nothing) {  // SQ-ADP-010, SQ-ADP-011, SQ-ADP-030, SQ-ADP-041
  const auto& [mode, status, says] = GetParam();
  const Outcome o = call_once(mode, {30s, status == Status::timeout ? 1s : 20s});
  EXPECT_EQ(o.code, Code::INTERNAL);
  EXPECT_TRUE(o.untouched) << "a fault wrote into the caller's tensor";
  EXPECT_EQ(o.verdict.status, status) << o.verdict.message;
  EXPECT_NE(o.verdict.message.find(says), std::string::npos) << "does not say '" << says << "': " << o.verdict.message;
}

INSTANTIATE_TEST_SUITE_P(every, misbehaving,
                         testing::ValuesIn(std::vector<Misbehaviour>{
                             {"garbage", Status::fail, "not JSON: 'Hello, I am ready!'"},
                             {"hang", Status::timeout, "did not answer in time; its process was still running"},
                             {"crash", Status::crash, "ended by signal 11 (Segmentation fault); its stderr ends with: about to fall"},
                             {"exit", Status::crash, "ended with exit status 1; its stderr ends with: no such layer"},
                             {"half_line", Status::crash, "in the middle of an answer"},
                             {"wrong_id", Status::fail, "the answer's id is"},
                             {"two_lines", Status::fail, "more than one answer line; the second begins with 'and more"},
                             {"unasked", Status::fail, "context made"},
                             {"too_long", Status::fail, "longer than 1048576 bytes"},
                             {"endless", Status::fail, "longer than 1048576 bytes"},
                             {"unknown_code", Status::fail, "refuses with 'CALL_ME', which is no code"},
                             {"unknown_key", Status::fail, "unknown key 'reslut'"},
                             {"bad_context", Status::fail, "no whole number 'context'"},
                             {"no_file", Status::fail, "output file is missing"},
                             {"fifo", Status::fail, "IO_NOT_REGULAR"},
                             {"short_file", Status::fail, "ST_TRUNCATED"},
                             {"large_file", Status::fail, "holds 1073741824 bytes"},
                             {"wrong_shape", Status::fail, "'out' with shape [3, 2], asked for [2, 3]"},
                             {"wrong_dtype", Status::fail, "'out' with dtype I32, asked for F32"},
                             {"wrong_name", Status::fail, "'y' that was not asked for"},
                             {"extra_tensor", Status::fail, "'extra' that was not asked for"},
                         }),
                         [](const auto& tested) { return std::string(tested.param.mode); });

TEST(Adapter, refusals_are_answers) {  // SQ-ADP-014, SQ-ADP-015
  const Outcome refused = call_once("refuses");
  EXPECT_EQ(refused.code, Code::CALL_DTYPE);
  EXPECT_EQ(refused.message, "not this one");
  EXPECT_EQ(refused.layer, "l");
  EXPECT_EQ(refused.tensor, "t");
  EXPECT_TRUE(refused.untouched);
  EXPECT_EQ(refused.verdict.status, Status::not_run) << "a refusal is no fault: " << refused.verdict.message;
  EXPECT_EQ(call_once("unsupported").code, Code::CALL_UNSUPPORTED);
}

std::string start_fault(const std::string& mode) {
  Session session(command(mode), {mode == "hangs_at_start" ? 1s : 30s, 20s});
  try {
    session.start();
    return "started";
  } catch (const Fault& fault) {
    return fault.what();
  }
}

TEST(Adapter, a_start_that_fails_says_why) {  // SQ-ADP-012, SQ-ADP-013, SQ-ADP-042
  EXPECT_NE(start_fault("other_version").find("protocol 1 is not spoken here"), std::string::npos);
  EXPECT_NE(start_fault("dies_at_start").find("cannot import name"), std::string::npos);
  EXPECT_NE(start_fault("hangs_at_start").find("did not answer in time"), std::string::npos);
  EXPECT_NE(start_fault("describes_stream").find("'stream', which the protocol does not carry"), std::string::npos);
  Session missing("/no/such/adapter", {30s, 20s});
  try {
    missing.start();
    FAIL() << "started";
  } catch (const Fault& fault) {
    EXPECT_NE(std::string(fault.what()).find("exit status 127"), std::string::npos) << fault.what();
  }
}

/// A head of one pair: the mean square is 1 and epsilon 3, so r = 1/2; row 1 is turned by a quarter, (a, b) -> (-b, a). By hand: n = (1, -2);
/// without a turn w g = (32, 24), mean(x w g) = 4, dx = (32 - 1, 24 + 1) / 2; turned w g = (12, -64), mean 38, dx = (12 - 9.5, -64 + 9.5) / 2.
TEST(Adapter, norms_of_heads_travel_with_and_without_a_rotation) {  // SQ-ADP-030
  Session session(command("norms"), {30s, 20s});
  session.start();
  Dequantize made(table_of(session));
  ASSERT_EQ(made.created, SQ_OK) << made.error.message;
  const sq_linear_group& group = *made.table->linear;
  ASSERT_TRUE(offered(group, &sq_linear_group::rms_norm_rope_forward) && offered(group, &sq_linear_group::rms_norm_rope_backward));
  const auto filled = [](const char* name, std::vector<std::int64_t> shape, const std::vector<double>& values) {
    Guarded g(name, Role::in, SQ_F32, std::move(shape));
    for (std::size_t i = 0; i < values.size(); ++i) g.set(static_cast<std::int64_t>(i), values[i]);
    return g;
  };
  Guarded x = filled("x", {2, 2}, {1, -1, 1, -1}), dy = filled("dy", {2, 2}, {16, 6, 16, 6}), weight = filled("weight", {2}, {2, 4}), rope = filled("rope", {2, 2}, {1, 0, 0, 1});
  for (const bool turned : {false, true}) {
    Guarded y("y", Role::out, SQ_F32, {2, 2}), dx("dx", Role::out, SQ_F32, {2, 2});
    auto forward = sized<sq_rms_norm_rope_forward_args>();
    forward.epsilon = 3, forward.x = x.tensor(), forward.weight = weight.tensor(), forward.rope = turned ? rope.tensor() : nullptr, forward.y = y.tensor();
    ASSERT_EQ(group.rms_norm_rope_forward(made.context, &forward, &made.error), SQ_OK) << made.error.message;
    EXPECT_EQ(y.values(), turned ? (std::vector<double>{1, -2, 2, 1}) : (std::vector<double>{1, -2, 1, -2}));
    auto backward = sized<sq_rms_norm_rope_backward_args>();
    backward.epsilon = 3, backward.dy = dy.tensor(), backward.x = x.tensor(), backward.weight = weight.tensor(), backward.rope = forward.rope, backward.dx = dx.tensor();
    ASSERT_EQ(group.rms_norm_rope_backward(made.context, &backward, &made.error), SQ_OK) << made.error.message;
    EXPECT_EQ(dx.values(), turned ? (std::vector<double>{15.5, 12.5, 1.25, -27.25}) : (std::vector<double>{15.5, 12.5, 15.5, 12.5}));
  }
}

TEST(Adapter, norms_of_heads_are_in_the_table_only_where_offered) {  // SQ-ADP-015
  Session session(command("sound"), {30s, 20s});
  session.start();
  const sq_linear_group& group = *table_of(session)->linear;
  EXPECT_FALSE(offered(group, &sq_linear_group::rms_norm_rope_forward));
  EXPECT_FALSE(offered(group, &sq_linear_group::rms_norm_rope_backward));
}

/// Exit status, and the report's line per case, of a run of the adapter.
std::pair<int, std::map<std::string, json>> run(const std::string& adapter, const std::string& filter, std::vector<std::string> profiles = {}) {
  GateOptions options;
  options.adapter = adapter;
  options.filter = filter;
  options.profiles = std::move(profiles);
  options.quiet = true;
  options.report = std::filesystem::temp_directory_path() / ("squareq-adapter-test-" + std::to_string(::getpid()) + ".jsonl");
  const int status = run_gates(options);
  std::map<std::string, json> lines;
  std::ifstream report(options.report);
  for (std::string line; std::getline(report, line);) {
    const json object = json::parse(line);
    lines[object.value("case", "summary")] = object;
  }
  std::filesystem::remove(options.report);
  return {status, lines};
}

TEST(AdapterRun, cases_pass_unchanged_through_a_sound_adapter) {  // SQ-ADP-040, SQ-ADP-043
  const auto [status, lines] = run(command("sound"), "^dequantize\\.(golden\\.f32|rows\\.f32|refusals)$");
  for (const char* id : {"dequantize.golden.f32", "dequantize.rows.f32", "dequantize.refusals"}) EXPECT_EQ(lines.at(id)["status"], "pass") << lines.at(id)["message"];
  EXPECT_NE(lines.at("dequantize.golden.f32")["repro"].get<std::string>().find("squareq gates --adapter 'exec python3 "), std::string::npos);
  EXPECT_TRUE(lines.at("summary")["adapter"].get<bool>());
  EXPECT_EQ(status, 0);
}

TEST(AdapterRun, mutant_wrong_number_is_killed) {
  const auto [status, lines] = run(command("wrong_number"), "^dequantize\\.rows\\.f32$");
  EXPECT_EQ(lines.at("dequantize.rows.f32")["status"], "fail");
  EXPECT_EQ(status, 1);
}

TEST(AdapterRun, a_crash_is_one_verdict_and_the_run_goes_on) {  // SQ-ADP-041
  const std::filesystem::path flag = std::filesystem::temp_directory_path() / ("squareq-adapter-flag-" + std::to_string(::getpid()));
  const auto [status, lines] = run(command("crash_once", flag.string()), "^dequantize\\.(golden\\.f32|rows\\.f32)$");
  std::filesystem::remove(flag);
  EXPECT_EQ(lines.at("dequantize.golden.f32")["status"], "crash");
  EXPECT_NE(lines.at("dequantize.golden.f32")["message"].get<std::string>().find("signal 11"), std::string::npos);
  EXPECT_EQ(lines.at("dequantize.rows.f32")["status"], "pass") << lines.at("dequantize.rows.f32")["message"];
  EXPECT_EQ(status, 1);
}

TEST(AdapterRun, one_that_does_not_start_offers_nothing) {  // SQ-ADP-042
  const auto [status, lines] = run(command("dies_at_start"), "^dequantize\\.");
  EXPECT_EQ(lines.at("dequantize.rows.f32")["status"], "not_supported");
  EXPECT_EQ(run(command("bad_description"), "^dequantize\\.").first, 1);
  EXPECT_EQ(status, 1);
}

TEST(AdapterRun, what_only_the_process_shows_is_not_judged) {  // SQ-ADP-050
  const auto [status, lines] = run(command("sound"), "^(memory\\.workspace\\.forward|dequantize\\.rows\\.f32)$", {"linear"});
  EXPECT_EQ(lines.at("memory.workspace.forward")["status"], "not_supported");
  bool listed = false, demanded = false;
  for (const json& d : lines.at("summary")["not_judged"]) listed = listed || d["case"] == "memory.workspace.forward";
  for (const json& d : lines.at("summary")["unmet"]) demanded = demanded || d["case"] == "memory.workspace.forward";
  EXPECT_TRUE(listed);
  EXPECT_FALSE(demanded);
}

TEST(Smoke, tells_a_broken_adapter_from_a_wrong_implementation) {  // SQ-ADP-051, SQ-ADP-016, SQ-ADP-021
  const auto smoke = [](const std::string& mode) {
    testing::internal::CaptureStdout();
    const int status = smoke_adapter(command(mode), true);
    return std::pair(status, json::parse(testing::internal::GetCapturedStdout()));
  };
  const auto [sound_status, sound] = smoke("sound");
  EXPECT_EQ(sound_status, 0) << sound;
  EXPECT_TRUE(sound["ok"].get<bool>());
  const auto [norms_status, norms] = smoke("norms");
  EXPECT_EQ(norms_status, 0) << norms;
  EXPECT_EQ(norms["numbers"].size(), 3u) << norms;
  const auto [wrong_status, wrong] = smoke("wrong_number");
  EXPECT_EQ(wrong_status, 1);
  EXPECT_TRUE(wrong["sound"].get<bool>());
  EXPECT_NE(wrong["verdict"].get<std::string>().find("the implementation is wrong in dequantize"), std::string::npos) << wrong["verdict"];
  const auto [broken_status, broken] = smoke("wrong_shape");
  EXPECT_EQ(broken_status, 1);
  EXPECT_FALSE(broken["sound"].get<bool>());
  EXPECT_NE(broken["verdict"].get<std::string>().find("the adapter is broken"), std::string::npos);
  const auto rule = [](const json& report, const std::string& id) {
    for (const json& r : report["rules"])
      if (r["requirement"] == id && r["verdict"] != "kept") return r["verdict"].get<std::string>();
    return std::string("kept");
  };
  EXPECT_EQ(rule(broken, "SQ-ADP-030"), "BROKEN");
  EXPECT_EQ(rule(broken, "SQ-ADP-017"), "not reached");
  const auto [version_status, version] = smoke("other_version");
  EXPECT_EQ(rule(version, "SQ-ADP-013"), "BROKEN");
  EXPECT_EQ(version_status, 1);
}

sq_tensor view(const void* data, std::int32_t dtype, std::initializer_list<std::int64_t> shape) { return make_tensor(data, dtype, shape); }

/// What does not travel is refused before anything is sent (page 95, Strides).
TEST(Request, refuses_what_a_copy_would_hide) {
  std::vector<float> data(64, 1.f);
  const auto code = [&](const auto& change) {
    sq_tensor t = view(data.data(), SQ_F32, {4, 8});
    change(t);
    try {
      Request request;
      request.output("y", &t);
      return Code::OK;
    } catch (const Refusal& r) {
      return r.code;
    }
  };
  EXPECT_EQ(code([](sq_tensor&) {}), Code::OK);
  EXPECT_EQ(code([](sq_tensor& t) { t.strides[1] = 2; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor& t) { t.strides[0] = 7; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor& t) { t.rank = 9; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor& t) { t.shape[0] = -1; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor& t) { t.shape[0] = t.shape[1] = std::int64_t{1} << 40; }), Code::CALL_SHAPE);
  EXPECT_EQ(code([](sq_tensor& t) { t.dtype = 99; }), Code::CALL_DTYPE);
  EXPECT_EQ(code([](sq_tensor& t) { t.device.kind = SQ_CUDA; }), Code::CALL_DEVICE);
  EXPECT_EQ(code([](sq_tensor& t) { t.data = nullptr; }), Code::CALL_NULL);
  EXPECT_EQ(code([](sq_tensor& t) { t.data = static_cast<char*>(t.data) + 1; }), Code::CALL_ALIGN);
}

/// A part that lies about its dtype is sent as zeros: its memory is not read on its word.
TEST(Request, a_part_that_cannot_be_right_travels_blank) {
  Layer layer("layer", 2, 3, 4, true);
  DirectWeight direct(layer);
  direct.parts()[0].tensor.dtype = SQ_F32;
  direct.parts().push_back(direct.parts()[1]);
  direct.weight().parts = direct.parts().data();
  direct.weight().part_count = static_cast<std::uint32_t>(direct.parts().size());
  auto args = sized<sq_dequantize_args>();
  args.weight = direct.ref();
  Request request;
  request.dequantize(&args);
  ASSERT_EQ(request.inputs.size(), 4u);  // the scale, named twice, is sent once
  EXPECT_EQ(request.fields["weight"]["parts"].size(), 5u);
  for (const NamedTensor& t : request.inputs) EXPECT_EQ(t.blank, t.name == "weight.qweight") << t.name;
}

Refusal refusal_of(const auto& build) {
  try {
    Request request;
    build(request);
  } catch (const Refusal& r) {
    return r;
  }
  return {Code::OK, {}, {}, {}};
}

/// The host's own refusals name the layer as an implementation's must (SQ-ERR-007); a file holds each tensor once.
TEST(Request, refusals_name_the_layer) {
  Layer layer("blocks.0.fc", 2, 3, 4, true);
  DirectWeight direct(layer);
  std::vector<float> data(64, 1.f);
  sq_tensor out = view(data.data(), SQ_F32, {2, 3});
  out.strides[0] = 2;
  auto args = sized<sq_dequantize_args>();
  args.weight = direct.ref();
  args.out = &out;
  const Refusal overlap = refusal_of([&](Request& r) { r.dequantize(&args); });
  EXPECT_EQ(overlap.code, Code::CALL_SHAPE);
  EXPECT_EQ(overlap.layer, "blocks.0.fc");
  EXPECT_EQ(overlap.tensor, "out");
  EXPECT_NE(overlap.message.find("rows of 3 elements with stride 2"), std::string::npos) << overlap.message;
  const sq_tensor w = view(data.data(), SQ_F32, {2, 3}), scale = view(data.data(), SQ_F32, {2});
  const sq_part parts[] = {{"scale", scale}, {"scale", scale}};
  auto quantize = sized<sq_quantize_args>();
  quantize.name = "blocks.1.fc";
  quantize.w = &w;
  quantize.out = parts;
  quantize.out_count = 2;
  const Refusal twice = refusal_of([&](Request& r) { r.quantize(&quantize); });
  EXPECT_EQ(twice.code, Code::CALL_VALUE);
  EXPECT_EQ(twice.layer, "blocks.1.fc");
  EXPECT_EQ(twice.tensor, "scale");
}

/// accumulate travels as a truth value, a number that is none as text, so that the adapter can refuse it.
TEST(Request, forwards_an_accumulate_that_is_no_truth_value) {
  auto args = sized<sq_linear_backward_args>();
  const auto sent = [&](std::uint32_t accumulate) {
    args.accumulate = accumulate;
    Request request;
    request.linear_backward(&args);
    return request.fields["accumulate"];
  };
  EXPECT_EQ(sent(0), false);
  EXPECT_EQ(sent(1), true);
  EXPECT_EQ(sent(2), "#2");
}

/// A caller that was compiled with a shorter struct: nothing beyond its size is read (SQ-CNV-001).
TEST(Request, reads_no_field_beyond_the_callers_size) {
  sq_tensor t = view(nullptr, SQ_F32, {0, 3});
  auto args = sized<sq_linear_forward_args>();
  args.y = &t;
  args.h = &t;
  args.size = offsetof(sq_linear_forward_args, h);
  Request request;
  request.linear_forward(&args);
  ASSERT_EQ(request.outputs.size(), 1u);
  EXPECT_EQ(request.outputs[0].name, "y");
}

/// What explain sends: the fields and tensors of the call, under its name.
TEST(Request, names_both_directions_of_the_norm_of_heads) {
  const float one[2] = {1, 1};
  const sq_tensor t = view(one, SQ_F32, {1, 2});
  auto forward = sized<sq_rms_norm_rope_forward_args>();
  forward.epsilon = 0.5f, forward.x = &t, forward.rope = &t, forward.y = &t;
  Request request;
  request.operation(SQ_OP_RMS_NORM_ROPE_FORWARD, &forward);
  EXPECT_EQ(json(request.fields), (json{{"operation", "rms_norm_rope_forward"}, {"epsilon", 0.5}}));
  ASSERT_EQ(request.inputs.size(), 2u);
  EXPECT_EQ(request.inputs[1].name, "rope");
  auto backward = sized<sq_rms_norm_rope_backward_args>();
  backward.epsilon = INFINITY, backward.dy = &t, backward.dx = &t;
  Request back;
  back.operation(SQ_OP_RMS_NORM_ROPE_BACKWARD, &backward);
  EXPECT_EQ(json(back.fields), (json{{"operation", "rms_norm_rope_backward"}, {"epsilon", "inf"}}));
  ASSERT_EQ(back.outputs.size(), 1u);
  EXPECT_EQ(back.outputs[0].name, "dx");
}

TEST(ExchangeFiles, views_travel_as_contiguous_copies) {  // page 95, Strides
  const std::filesystem::path path = std::filesystem::temp_directory_path() / ("squareq-exchange-" + std::to_string(::getpid()));
  std::filesystem::remove(path);
  float data[12];
  for (int i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
  sq_tensor transposed = view(data, SQ_F32, {4, 3});  // of [3, 4]
  transposed.strides[0] = 1;
  transposed.strides[1] = 4;
  const sq_tensor scalar = view(data + 5, SQ_F32, std::initializer_list<std::int64_t>{}), none = view(nullptr, SQ_I8, {0, 7});
  write_inputs(path, {{"t", &transposed}, {"s", &scalar}, {"n", &none}});
  float back[4 * 5] = {}, one = 0;
  sq_tensor strided = view(back, SQ_F32, {4, 3});
  strided.strides[0] = 5;
  const sq_tensor target = view(&one, SQ_F32, std::initializer_list<std::int64_t>{});
  read_outputs(path, {{"t", &strided}, {"s", &target}, {"n", &none}});
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 5; ++c) EXPECT_EQ(back[r * 5 + c], c < 3 ? data[c * 4 + r] : 0.f);
  EXPECT_EQ(one, 5.f);
  std::filesystem::remove(path);
}

std::string answer_fault(std::string_view line) {
  try {
    parse_answer(line, 7);
    return {};
  } catch (const Fault& fault) {
    return fault.what();
  }
}

TEST(Answer, is_parsed_strictly) {  // SQ-ADP-011
  EXPECT_EQ(answer_fault(R"({"id":7,"answer":"ok"})"), "");
  EXPECT_EQ(parse_answer(R"({"id":7,"answer":"ok","result":{"context":3}})", 7).result["context"], 3);
  EXPECT_EQ(parse_answer(R"({"id":7,"answer":"refused","code":"CALL_SHAPE","message":"m"})", 7).code, Code::CALL_SHAPE);
  EXPECT_NE(answer_fault(""), "");
  EXPECT_NE(answer_fault("null"), "");
  EXPECT_NE(answer_fault(R"([{"id":7,"answer":"ok"}])"), "");
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"ok"} trailing)"), "");
  EXPECT_NE(answer_fault(R"({"id":7.0,"answer":"ok"})"), "");
  EXPECT_NE(answer_fault(R"({"id":"7","answer":"ok"})"), "");
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"ok","answer":"ok"})").find("'answer' twice"), std::string::npos);
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"maybe"})").find("'maybe'"), std::string::npos);
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"ok","result":[]})").find("'result' is no object"), std::string::npos);
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"refused","code":"OK","message":"m"})"), "");
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"refused","code":"CALL_SHAPE"})").find("no string 'message'"), std::string::npos);
  EXPECT_NE(answer_fault("{\"id\":7,\"answer\":\"ok\",\"result\":{\"a\":\"\xC0\xAF\"}}").find("not UTF-8"), std::string::npos);
  EXPECT_NE(answer_fault(std::string("{\"id\":7,\"answer\":\"ok\"}\0", 23)).find("control byte"), std::string::npos);
  EXPECT_NE(answer_fault(R"({"id":7,"answer":"ok","result":)" + std::string(100, '[') + std::string(100, ']') + "}").find("too deep"), std::string::npos);
}

}  // namespace
}  // namespace squareq::gates::adapter
