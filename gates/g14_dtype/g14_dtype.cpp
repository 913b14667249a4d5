// Gate 14: casts. Scales are kept bit for bit and not sent through 16 bits and back; masters stay masters; the layer computes what it did.
#include "gates/g00_format/g00_format.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/linear_cases.hpp"
#include "gates/harness/module.hpp"
#include "gates/harness/registry.hpp"
#include "gates/harness/tensor_file.hpp"

namespace squareq::gates {
namespace {

using nlohmann::json;

constexpr const char* layers[] = {"blocks.2.proj", "blocks.10.proj", "norm_out.linear"};

bool belongs(const json& entry) {
  const std::string name = entry.at("name").get<std::string>();
  for (const char* layer : layers)
    if (name.starts_with(std::string(layer) + ".")) return true;
  return false;
}

/// A golden tree with adapters that no 16-bit float holds, B not zero.
struct Loaded {
  ModuleTree tree;
  explicit Loaded(Trial& trial, std::int64_t rank = 2) : tree(trial, ModuleTree::golden_request(rank)) {
    Random random = trial.random("adapters");
    const json listed = tree.list();
    for (const json& p : listed.at("parameters"))
      if (p.at("name").get<std::string>().find("lora") != std::string::npos) {
        Guarded value(p.at("name").get<std::string>(), Role::in, SQ_F32, p.at("shape").get<std::vector<std::int64_t>>());
        value.fill([&] { return random.normal(); });
        tree.write(p, value);
      }
  }
};

using Bits = std::vector<std::pair<json, std::vector<std::byte>>>;
Bits bits_of(ModuleTree& tree) {
  Bits all;
  const json listed = tree.list();
  for (const char* kind : {"parameters", "buffers"})
    for (const json& entry : listed.at(kind))
      if (belongs(entry)) all.emplace_back(entry, tree.read(entry).bytes());
  // Three layers of three buffers, two biases, and two matrices each where there are adapters.
  require(all.size() == 11 || all.size() == 17, std::to_string(all.size()) + " tensors belong to the three layers");
  return all;
}

void same(const std::string& when, const Bits& after, const Bits& before) {
  require(after.size() == before.size(), when + ": another number of tensors");
  for (std::size_t i = 0; i < before.size(); ++i) {
    const std::string name = before[i].first.at("name").get<std::string>();
    require(after[i].first == before[i].first, when + ": '" + name + "' has another dtype, shape or flag");
    same_bytes(when + ": '" + name + "'", after[i].second, before[i].second);
  }
}

std::string slab_of(Trial& trial) { return g00::write_pair(trial, g00::golden_pair("three_layers")).string(); }

/// Any sequence of casts, on the modules and on their parent.
void run_sequence(Trial& trial) {
  Loaded loaded(trial);
  loaded.tree.load(slab_of(trial));
  const Bits before = bits_of(loaded.tree);
  for (const auto& [dtype, scope] : {std::pair<const char*, const char*>{"bf16", "module"}, {"f16", "parent"}, {"f64", "module"}, {"bf16", "parent"}, {"bf16", "parent"}, {"f32", "module"}, {"f16", "module"}, {"f32", "parent"}}) {
    loaded.tree.cast(dtype, scope);
    same(std::string("after a cast of the ") + scope + " to " + dtype, bits_of(loaded.tree), before);
  }
}

/// A cast before loading must not change what is loaded later.
void run_cast_then_load(Trial& trial, const char* dtype) {
  Loaded plain(trial), cast(trial);
  cast.tree.cast(dtype, "parent");
  const std::string slab = slab_of(trial);
  plain.tree.load(slab);
  cast.tree.load(slab);
  same(std::string("loaded after a cast to ") + dtype, bits_of(cast.tree), bits_of(plain.tree));
  // And a second load over a cast module gives the file's bits again.
  cast.tree.cast("f16", "module");
  cast.tree.load(slab);
  same("loaded again", bits_of(cast.tree), bits_of(plain.tree));
}

/// The adapters contribute, and the output after casts is that of before, bit for bit, inside the oracle's bound.
void run_forward(Trial& trial, const char* dtype, const char* scope) {
  const g00::Pair pair = g00::golden_pair("three_layers");
  Loaded loaded(trial);
  loaded.tree.load(g00::write_pair(trial, pair).string());
  const auto tensors = read_tensors(pair.slab);
  Problem p(4, Layer("blocks.2.proj", 3, 5, 8, true), SQ_F32);
  p.layer.qweight.set_bytes(tensors.at("blocks.2.proj.qweight").bytes);
  p.layer.scale.set_bytes(tensors.at("blocks.2.proj.scale").bytes);
  p.layer.bias.set_bytes(tensors.at("blocks.2.proj.bias").bytes);
  Random random = trial.random("x");
  p.x.fill([&] { return random.normal(); });
  Adapter& adapter = p.adapter.emplace(2, 3, 5, 1.5f);  // alpha 3, rank 2
  const json listed = loaded.tree.list();
  for (const json& entry : listed.at("parameters")) {
    const std::string name = entry.at("name").get<std::string>();
    if (!name.starts_with("blocks.2.proj.lora")) continue;
    const Guarded value = loaded.tree.read(entry);  // [in, rank] and [rank, out]; memory here holds the transposes
    Guarded& target = name.ends_with("lora_A") ? adapter.a_t : adapter.b_t;
    for (std::int64_t r = 0; r < value.rows(); ++r)
      for (std::int64_t c = 0; c < value.columns(); ++c) target.set(c, r, value.at(r, c));
  }
  p.y_dtype = SQ_BF16;
  const Expected expected = oracle_forward(p).y;
  Guarded before("y", Role::out, SQ_F32, {4, 3}), after("y", Role::out, SQ_F32, {4, 3});
  loaded.tree.forward("blocks.2.proj", p.x, before);
  compare(trial, before, expected);
  loaded.tree.cast(dtype, scope);
  loaded.tree.forward("blocks.2.proj", p.x, after);
  same_bits("y after a cast", after, before);
  const double scaling = adapter.scaling;
  adapter.scaling = 0;
  const Expected base = oracle_forward(p).y;
  bool moved = false;
  for (std::size_t i = 0; i < base.value.size(); ++i) moved = moved || std::fabs(base.value[i] - expected.value[i]) > base.bound[i] + expected.bound[i];
  require(moved && scaling != 0, "the suite's own adapters contribute nothing");
}

/// Inputs and outputs of every float dtype: one rounding to the compute dtype, whatever the input was.
void run_io(Trial& trial, std::int32_t dtype) {
  Loaded loaded(trial, 0);
  loaded.tree.load(slab_of(trial));
  Guarded x("x", Role::in, dtype, {3, 8}), widened("x", Role::in, SQ_F32, {3, 8});
  Random random = trial.random("x");
  x.fill([&] { return random.normal(); });
  for (std::int64_t i = 0; i < x.count(); ++i) widened.set(i, x.at(i));
  Guarded y("y", Role::out, SQ_F32, {3, 2}), wide("y", Role::out, SQ_F32, {3, 2}), narrow("y", Role::out, SQ_BF16, {3, 2});
  loaded.tree.forward("blocks.10.proj", x, y);
  loaded.tree.forward("blocks.10.proj", widened, wide);
  loaded.tree.forward("blocks.10.proj", x, narrow);
  same_bits("y of a 16-bit input and of the same numbers in F32", y, wide);
  for (std::int64_t i = 0; i < y.count(); ++i) require(y.at(i) == narrow.at(i), "y is not a number of the compute dtype, bf16: rounded at another place");
}

void run_refused(Trial& trial) {
  Loaded loaded(trial);
  loaded.tree.load(slab_of(trial));
  const Bits before = bits_of(loaded.tree);
  for (const auto& [dtype, scope] : {std::pair<const char*, const char*>{"i8", "parent"}, {"fp8", "parent"}, {"", "module"}, {"bf16", "everything"}}) {
    loaded.tree.cast_refused(dtype, scope, {Code::CALL_VALUE, Code::CALL_DTYPE});
    same(std::string("after a refused cast to '") + dtype + "'", bits_of(loaded.tree), before);
  }
}

}  // namespace

void add_g14_dtype(Cases& cases) {
  const std::vector<std::string> needs = {"module"};
  cases.push_back({14, "dtype.sequence", Kind::property, {"SQ-MOD-005"}, needs, "bits lost in a sequence of casts", run_sequence});
  for (const char* dtype : {"bf16", "f16", "f64"}) {
    cases.push_back({14, std::string("dtype.cast_then_load.") + dtype, Kind::property, {"SQ-MOD-005", "SQ-MOD-012"}, needs, "a slab converted to the dtype of an earlier cast", [=](Trial& t) { run_cast_then_load(t, dtype); }});
    for (const char* scope : {"module", "parent"})
      cases.push_back({14, std::string("dtype.forward.") + dtype + "." + scope, Kind::vector, {"SQ-MOD-005", "SQ-MOD-008"}, needs, "a cast adapter or scale that shows in the output", [=](Trial& t) { run_forward(t, dtype, scope); }});
  }
  for (const auto& [dtype, name] : activation_dtypes)
    cases.push_back({14, std::string("dtype.io.") + name, Kind::property, {"SQ-MOD-008"}, needs, "rounding that depends on the input's dtype", [dtype = dtype](Trial& t) { run_io(t, dtype); }});
  cases.push_back({14, "dtype.refused", Kind::vector, {"SQ-MOD-005", "SQ-CNV-003"}, needs, "a cast to integers that happens", run_refused});
}

}  // namespace squareq::gates
