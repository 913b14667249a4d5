// Mutants of the group `format`. The reference has none to wrap, so these are wrong from the ground up: each makes one promise of gate 0 and
// breaks it. That the right implementation passes the same cases is what gate 0 shows on our own library.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "gates/mutants/tables.hpp"

namespace squareq::mutants {
namespace {

using nlohmann::json;

void answer(const json& object, sq_text_sink sink, void* user) {
  const std::string text = object.dump();
  sink(user, text.data(), text.size());
}

json problems(std::initializer_list<const char*> codes) {
  json list = json::array();
  for (const char* code : codes) list.push_back({{"code", code}, {"message", "said by a mutant"}, {"file", "slab"}, {"layer", nullptr}, {"tensor", nullptr}});
  return {{"ok", codes.size() == 0}, {"problems", list}, {"warnings", json::array()}};
}

sq_status accept(sq_context*, const char*, sq_text_sink sink, void* user, sq_error*) {
  answer(problems({}), sink, user);
  return SQ_OK;
}
sq_status refuse(sq_context*, const char*, sq_text_sink sink, void* user, sq_error*) {
  answer(problems({"MF_COUNT"}), sink, user);
  return SQ_OK;
}
/// Claims success and leaves no file.
sq_status build_nothing(sq_context*, const char*, sq_text_sink sink, void* user, sq_error*) {
  answer(json::object(), sink, user);
  return SQ_OK;
}
/// Refuses the weight, but after the slab was begun.
sq_status build_half(sq_context*, const char* text, sq_text_sink, void*, sq_error* e) {
  const json request = json::parse(text);
  std::ofstream(std::filesystem::path(request["out"].get<std::string>()) / (request["name"].get<std::string>() + ".safetensors")) << "half";
  if (e) {
    e->code = SQ_DT_WEIGHT_NONFINITE;
    std::snprintf(e->message, sizeof e->message, "row 0, column 0 is NaN");
  }
  return SQ_DT_WEIGHT_NONFINITE;
}

sq_status describe(sq_context* context, sq_text_sink sink, void* user, sq_error* e) {
  std::string text;
  if (const sq_status status = base().describe(context, append_text, &text, e); status != SQ_OK) return status;
  json object = json::parse(text);
  object["groups"].push_back("format");
  answer(object, sink, user);
  return SQ_OK;
}

void offer(Tables& t, decltype(sq_format_group::build) build, decltype(sq_format_group::validate) validate) {
  static sq_format_group group = {sizeof(sq_format_group), 0, nullptr, nullptr, nullptr};
  group.build = build;
  group.validate = validate;
  t.implementation.format = &group;
  t.implementation.describe = describe;
}

}  // namespace

const Mutation format_mutations[] = {
    {"format_accepts_everything", [](Tables& t) { offer(t, build_nothing, accept); }},
    {"format_reports_one_problem", [](Tables& t) { offer(t, build_nothing, refuse); }},
    {"format_refuses_good_files", [](Tables& t) { offer(t, build_nothing, refuse); }},
    {"format_builds_nothing", [](Tables& t) { offer(t, build_nothing, accept); }},
    {"format_accepts_nan", [](Tables& t) { offer(t, build_nothing, accept); }},
    {"format_leaves_half_a_file", [](Tables& t) { offer(t, build_half, accept); }},
};
const unsigned format_mutation_count = std::size(format_mutations);

}  // namespace squareq::mutants
