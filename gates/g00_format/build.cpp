// Built pairs against the Python builder's, byte for byte.
#include <algorithm>
#include <cmath>
#include <deque>

#include "gates/g00_format/g00_format.hpp"
#include "gates/harness/goldens.hpp"
#include "gates/harness/tensor_file.hpp"

namespace squareq::gates::g00 {
namespace {

using nlohmann::json;

/// The golden's model as a checkpoint file: NAME.weight and NAME.bias in F32.
std::filesystem::path write_checkpoint(Trial& trial, const json& model, const std::string& damage) {
  std::deque<Guarded> tensors;
  std::vector<std::pair<std::string, const Guarded*>> named;
  for (const json& layer : model) {
    const auto& rows = layer["weight_f32_hex"];
    Guarded& w = tensors.emplace_back("w", Role::in, SQ_F32, std::vector<std::int64_t>{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows[0].size())});
    const std::vector<double> values = matrix_of_hex(rows);
    for (std::size_t i = 0; i < values.size(); ++i) w.set(static_cast<std::int64_t>(i), values[i]);
    if (!damage.empty() && named.empty()) w.set(0, damage == "nan" ? NAN : INFINITY);
    named.emplace_back(layer["name"].get<std::string>() + ".weight", &w);
    if (layer["bias_f32_hex"].is_null()) continue;
    Guarded& b = tensors.emplace_back("b", Role::in, SQ_F32, std::vector<std::int64_t>{static_cast<std::int64_t>(layer["bias_f32_hex"].size())});
    for (std::size_t i = 0; i < layer["bias_f32_hex"].size(); ++i) b.set(static_cast<std::int64_t>(i), float_of_hex(layer["bias_f32_hex"][i].get<std::string>()));
    named.emplace_back(layer["name"].get<std::string>() + ".bias", &b);
  }
  const std::filesystem::path path = trial.folder() / "model.safetensors";
  write_file(path, write_tensors(named));
  return path;
}

json build_request(Trial& trial, const json& golden, const std::string& damage = "") {
  const std::filesystem::path model = write_checkpoint(trial, golden["model"], damage), out = trial.folder() / "out";
  std::filesystem::create_directory(out);
  json request = {{"model", model.string()}, {"out", out.string()}, {"name", "golden"}, {"arch", "none"}, {"companion", false},
                  {"pack_k", golden["pack_k"]}, {"arch_id", golden["architecture_id"]}};
  if (!golden["include_prefixes"].is_null()) request["include_prefix"] = golden["include_prefixes"];
  return request;
}

std::vector<std::string> files_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

void run_golden(Trial& trial, const json& golden) {
  const json request = build_request(trial, golden);
  call_format(trial, "build", request);
  const std::filesystem::path out = request["out"].get<std::string>();
  require(files_in(out) == std::vector<std::string>{"golden.manifest.json", "golden.safetensors"}, "the folder must hold exactly the slab and its manifest");
  const Pair expected = golden_pair(golden["name"].get<std::string>());
  const std::string manifest = read_file(out / "golden.manifest.json"), slab = read_file(out / "golden.safetensors");
  const auto same = [](const std::string& what, const std::string& a, const std::string& b) {
    const auto at = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
    require(a == b, what + " differs from the golden at byte " + std::to_string(at) + " (" + std::to_string(a.size()) + " bytes against " + std::to_string(b.size()) + ")");
  };
  same("manifest", manifest, expected.manifest);
  same("slab", slab, expected.slab);
}

/// NaN or infinity in a weight: refused by its code, and no file is left.
void run_refused(Trial& trial, const json& golden, const std::string& damage) {
  const json request = build_request(trial, golden, damage);
  Instance& instance = trial.instance("format");
  const sq_format_group* group = instance.context()->format;
  require(group && group->build, "format.build is absent");
  std::string answer;
  const std::string text = request.dump();
  call_refused("format.build of a weight with " + damage, {Code::DT_WEIGHT_NONFINITE}, {}, [&](sq_error* e) { return group->build(instance.get(), text.c_str(), append_text, &answer, e); });
  const auto files = files_in(request["out"].get<std::string>());
  for (const std::string& f : files) require(!f.ends_with(".safetensors") && !f.ends_with(".json"), "a refused build left '" + f + "'");
}

}  // namespace

void add_build(Cases& cases) {
  for (const json& golden : goldens()["slabs"]) {
    const std::string name = golden["name"].get<std::string>();
    // A model without linears is a golden of the file writer only: no reader accepts it.
    if (name == "empty") continue;
    cases.push_back({0, "format.build." + name, Kind::vector, {"SQ-FMT-031", "SQ-FMT-032", "SQ-FMT-033", "SQ-FMT-035", "SQ-FMT-040", "SQ-FMT-050", "SQ-FMT-057"}, {"format"}, "tensor order, header padding, manifest spelling, signature order, arithmetic",
                     [&golden](Trial& t) { run_golden(t, golden); }});
  }
  for (const char* damage : {"nan", "inf"})
    cases.push_back({0, std::string("format.build.refused.") + damage, Kind::vector, {"SQ-QNT-007", "SQ-ERR-005"}, {"format"}, "a slab of NaN scales; files left behind",
                     [damage](Trial& t) { run_refused(t, goldens()["slabs"][0], damage); }});
}

}  // namespace squareq::gates::g00
