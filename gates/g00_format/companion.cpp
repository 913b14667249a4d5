// The third file: digests, identity, pairing, and what a flipped byte anywhere leads to.
#include <algorithm>

#include "gates/g00_format/damage.hpp"
#include "gates/harness/goldens.hpp"
#include "gates/harness/linear.hpp"
#include "gates/harness/tensor_file.hpp"

namespace squareq::gates::g00 {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct Triple {
  std::filesystem::path slab, manifest, companion;
};

/// The worked example of spec/20-slab-format.md: one layer `a`, 2 -> 1 with bias, and a norm for the companion.
Triple build_example(Trial& trial) {
  Guarded w("w", Role::in, SQ_F32, {1, 2}), b("b", Role::in, SQ_F32, {1}), norm("norm", Role::in, SQ_F32, {4});
  w.set(0, 63.5);
  w.set(1, -63.5);
  b.set(0, -1.0);
  norm.fill(0.25);
  const std::filesystem::path model = trial.folder() / "model.safetensors", out = trial.folder() / "out";
  std::filesystem::create_directory(out);
  write_file(model, write_tensors({{"a.weight", &w}, {"a.bias", &b}, {"norm.weight", &norm}}));
  call_format(trial, "build", {{"model", model.string()}, {"out", out.string()}, {"name", "one"}, {"arch", "none"}, {"pack_k", 1}});
  return {out / "one.safetensors", out / "one.manifest.json", out / "one.companion.safetensors"};
}

std::vector<std::string> codes_of(Trial& trial, const Triple& t) { return problem_codes(call_format(trial, "validate", {{"slab", t.slab.string()}})); }

void expect(Trial& trial, const Triple& t, const std::string& what, const std::string& code) {
  const auto codes = codes_of(trial, t);
  require(std::find(codes.begin(), codes.end(), code) != codes.end(), what + ": expected " + code + ", found " + (codes.empty() ? std::string("nothing") : codes[0]));
}

std::string header_of(const std::string& file) {
  Pair p{file, ""};
  return file.substr(8, header_bytes(p));
}

json metadata_of(const std::string& companion) { return json::parse(header_of(companion)).at("__metadata__"); }

/// The file again, with another text under one metadata key.
std::string with_metadata(const std::string& companion, const std::string& key, const std::string& text) {
  Pair p{companion, ""};
  auto header = ordered_json::parse(header_of(companion));
  header["__metadata__"][key] = text;
  set_header(p, header.dump());
  return p.slab;
}

/// Digests of the worked example are the published ones; the identity is the SHA-256 of its definition.
void run_record(Trial& trial) {
  const Triple t = build_example(trial);
  require(codes_of(trial, t).empty(), "a triple that was just built is not accepted");
  const std::string slab = read_file(t.slab), text = read_file(t.manifest);
  require(slab.size() == 270 && sha256_hex(slab.data(), slab.size()) == "ac31f3471ca7631850c4d68628fe74958f381cb43458a482cba47594b885c221", "the slab of the worked example is not that of spec/20-slab-format.md");
  const json record = json::parse(metadata_of(read_file(t.companion)).at("squareq.integrity").get<std::string>());
  require(record.at("version") == 1 && record.at("slab_bytes") == 270, "version or slab_bytes of the record are wrong");
  require(record.at("header_xxh3") == "9260e4d7aaa98307", "header_xxh3 is " + record.at("header_xxh3").dump());
  const std::pair<const char*, const char*> published[] = {{"a.bias", "fa8676a94087f05a"}, {"a.scale", "c98dd7ed5d5dfd9b"}, {"a.zero_point", "48b2c92616fc193d"}, {"a.qweight", "9f94ec5a6dec224b"}};
  std::string identity = slab.substr(0, 8 + header_of(slab).size()) + text;
  for (const auto& [name, digest] : published) {  // in offset order
    require(record.at("tensors").at(name) == digest, std::string("the digest of ") + name + " is " + record.at("tensors").at(name).dump());
    for (int i = 0; i < 16; i += 2) identity += static_cast<char>(std::stoi(std::string(digest + i, 2), nullptr, 16));
  }
  require(record.at("tensors").size() == 4, "the record names another set of tensors");
  require(record.at("id_sha256") == sha256_hex(identity.data(), identity.size()), "id_sha256 is not the SHA-256 of header, manifest and digests");
}

/// One bit in every byte of every tensor of both files: found.
void run_flipped(Trial& trial) {
  const Triple t = build_example(trial);
  for (const std::filesystem::path& path : {t.slab, t.companion}) {
    const std::string good = read_file(path);
    for (std::size_t at = 8 + header_of(good).size(); at < good.size(); ++at) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      write_file(path, bad);
      expect(trial, t, "byte " + std::to_string(at) + " of " + path.filename().string() + " flipped", "DT_CHECKSUM");
    }
    write_file(path, good);
  }
  require(codes_of(trial, t).empty(), "the good triple is not accepted again");
}

/// Slab, header or manifest of another build beside this companion.
void run_pairing(Trial& trial) {
  const Triple t = build_example(trial);
  const std::string slab = read_file(t.slab), text = read_file(t.manifest);
  std::string other = text;
  other.replace(other.find("\"unknown\""), 9, "\"another\"");
  write_file(t.manifest, other);
  expect(trial, t, "another manifest", "MF_PAIR");
  write_file(t.manifest, text);
  Pair longer{slab, ""};
  set_header(longer, header_of(slab) + "        ");
  write_file(t.slab, longer.slab);
  expect(trial, t, "another header", "MF_PAIR");
  write_file(t.slab, slab);
  require(codes_of(trial, t).empty(), "the good triple is not accepted again");
}

/// Records that are no records.
void run_malformed(Trial& trial) {
  const Triple t = build_example(trial);
  const std::string good = read_file(t.companion);
  const std::string record = metadata_of(good).at("squareq.integrity").get<std::string>();
  const auto edited = [&](const std::function<void(ordered_json&)>& edit) {
    auto object = ordered_json::parse(record);
    edit(object);
    return object.dump();
  };
  const std::pair<const char*, std::string> wrong[] = {
      {"no JSON", "{"},
      {"an array", "[]"},
      {"version 2", edited([](ordered_json& o) { o["version"] = 2; })},
      {"no version", edited([](ordered_json& o) { o.erase("version"); })},
      {"a tensor missing", edited([](ordered_json& o) { o["tensors"].erase("a.scale"); })},
      {"a tensor too many", edited([](ordered_json& o) { o["tensors"]["b.scale"] = "0123456789abcdef"; })},
      {"upper-case hex", edited([](ordered_json& o) { o["tensors"]["a.scale"] = "C98DD7ED5D5DFD9B"; })},
      {"a short digest", edited([](ordered_json& o) { o["tensors"]["a.scale"] = "c98dd7ed"; })},
      {"a digest that is a number", edited([](ordered_json& o) { o["tensors"]["a.scale"] = 7; })},
      {"a key twice", record.substr(0, record.size() - 1) + ",\"version\":1}"},
  };
  for (const auto& [what, text] : wrong) {
    write_file(t.companion, with_metadata(good, "squareq.integrity", text));
    expect(trial, t, what, "MF_INTEGRITY");
  }
  const std::string own = metadata_of(good).at("squareq.companion_integrity").get<std::string>();
  auto less = ordered_json::parse(own);
  less["tensors"].erase("norm.weight");
  write_file(t.companion, with_metadata(good, "squareq.companion_integrity", less.dump()));
  expect(trial, t, "a companion tensor without its digest", "MF_INTEGRITY");
}

/// The report names what the files hold; the source signature is that of the manifest.
void run_report(Trial& trial) {
  const Triple t = build_example(trial);
  const json report = call_format(trial, "report", {{"slab", t.slab.string()}});
  const json text = json::parse(read_file(t.manifest));
  require(report.at("model_signature") == text.at("model_signature") && text.at("model_signature") == "cae82acdd4ca58f8", "the signature is not that of 'a:2:1:True'");
  require(report.at("layers").size() == 1 && report.at("layers")[0].at("name") == "a" && report.at("layers")[0].at("orig_shape") == json({1, 2}) && report.at("layers")[0].at("bias") == true, "the report describes another layer");
  require(report.at("total_qweight_bytes") == 2, "the report counts " + report.at("total_qweight_bytes").dump() + " bytes of codes");
  const json record = json::parse(metadata_of(read_file(t.companion)).at("squareq.integrity").get<std::string>());
  require(report.at("companion").at("id_sha256") == record.at("id_sha256"), "the report names another identity");
}

/// A second build of the same name replaces the whole triple; no temporary is left by either.
void run_rebuild(Trial& trial) {
  const Triple t = build_example(trial);
  const std::string first = read_file(t.companion);
  const std::filesystem::path out = t.slab.parent_path();
  call_format(trial, "build", {{"model", (trial.folder() / "model.safetensors").string()}, {"out", out.string()}, {"name", "one"}, {"arch", "none"}, {"pack_k", 8}});
  require(codes_of(trial, t).empty(), "the second build is not accepted");
  require(json::parse(read_file(t.manifest)).at("layers")[0].at("packed_shape") == json({1, 8}), "the second build did not replace the manifest");
  require(read_file(t.companion) != first, "the second build did not replace the companion");
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(out)) ++files;
  require(files == 3, std::to_string(files) + " files are left where three belong");
  call_format(trial, "build", {{"model", (trial.folder() / "model.safetensors").string()}, {"out", out.string()}, {"name", "one"}, {"arch", "none"}, {"pack_k", 8}, {"companion", false}});
  require(!std::filesystem::exists(t.companion), "a bare build leaves the companion of an older one");
}

}  // namespace

void add_companion(Cases& cases) {
  const std::vector<std::string> needs = {"format"};
  cases.push_back({0, "format.companion.record", Kind::vector, {"SQ-FMT-080", "SQ-FMT-081", "SQ-FMT-032", "SQ-FMT-035"}, needs, "another hash, seed, order of digits or order of tensors", run_record});
  cases.push_back({0, "format.companion.flipped", Kind::property, {"SQ-FMT-084"}, needs, "a flipped bit that nobody sees", run_flipped});
  cases.push_back({0, "format.companion.pairing", Kind::vector, {"SQ-FMT-083"}, needs, "a manifest of one build beside the slab of another", run_pairing});
  cases.push_back({0, "format.companion.malformed", Kind::vector, {"SQ-FMT-082"}, needs, "a record that protects less than it seems to", run_malformed});
  cases.push_back({0, "format.companion.report", Kind::vector, {"SQ-FMT-040", "SQ-FMT-081"}, needs, "a report of something else than the files", run_report});
  cases.push_back({0, "format.rebuild", Kind::property, {"SQ-FMT-094", "SQ-FMT-093", "SQ-ERR-005"}, needs, "files of two builds under one name, temporaries left behind", run_rebuild});
}

}  // namespace squareq::gates::g00
