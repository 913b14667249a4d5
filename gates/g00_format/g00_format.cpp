#include "gates/g00_format/g00_format.hpp"

#include <openssl/evp.h>

#include <fstream>
#include <iterator>

#include "gates/harness/goldens.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {
namespace g00 {

using nlohmann::json;

Pair golden_pair(const std::string& name) {
  for (const json& slab : goldens()["slabs"]) {
    if (slab["name"] != name) continue;
    const std::string text = slab["safetensors_base64"].get<std::string>();
    std::string bytes(text.size() / 4 * 3, '\0');
    EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()), reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
    bytes.resize(slab["safetensors_bytes"].get<std::size_t>());
    require(sha256_hex(bytes.data(), bytes.size()) == slab["safetensors_sha256"].get<std::string>(), "the suite's golden '" + name + "' is damaged");
    return {bytes, slab["manifest_text"].get<std::string>()};
  }
  fail("no golden pair '" + name + "'");
}

void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) throw Error(Code::IO_ERROR, "cannot write " + path.string(), path.string());
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  require(in.good(), path.filename().string() + " does not exist");
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::filesystem::path write_pair(Trial& trial, const Pair& pair) {
  const std::filesystem::path slab = trial.folder() / "pair.safetensors";
  write_file(slab, pair.slab);
  write_file(trial.folder() / "pair.manifest.json", pair.manifest);
  return slab;
}

json call_format(Trial& trial, const char* operation, const json& request) {
  Instance& instance = trial.instance("format");
  const sq_format_group* group = instance.context()->format;
  require(group != nullptr, "group 'format' is described but absent");
  const std::string name = operation;
  const auto entry = name == "build" ? group->build : name == "validate" ? group->validate : group->report;
  require(entry != nullptr, "format." + name + " is absent");
  std::string answer;
  const std::string text = request.dump();
  call_ok("format." + name, {}, [&](sq_error* e) { return entry(instance.get(), text.c_str(), append_text, &answer, e); });
  const json object = json::parse(answer, nullptr, false);
  require(object.is_object(), "format." + name + " answered no JSON object: '" + printable(answer, 80) + "'");
  return object;
}

std::vector<std::string> problem_codes(const json& answer) {
  require(answer.contains("ok") && answer["ok"].is_boolean() && answer.contains("problems") && answer["problems"].is_array(), "format.validate: the answer lacks 'ok' or 'problems'");
  std::vector<std::string> codes;
  for (const json& p : answer["problems"]) {
    require(p.contains("code") && p["code"].is_string() && p.contains("message") && p["message"].is_string() && !p["message"].get<std::string>().empty(), "a problem lacks its code or message");
    codes.push_back(p["code"].get<std::string>());
  }
  require(answer["ok"].get<bool>() == codes.empty(), "'ok' contradicts the list of problems");
  return codes;
}

}  // namespace g00

void add_g00_format(Cases& cases) {
  g00::add_build(cases);
  g00::add_cut(cases);
  g00::add_companion(cases);
  g00::add_reader(cases);
  g00::add_validate(cases);
}

}  // namespace squareq::gates
