#include "gates/harness/profile.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "gates/harness/embedded.hpp"
#include "gates/harness/registry.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {

Profile parse_profile(std::string_view text, const std::function<std::string_view(const std::string& name)>& text_of) {
  Profile p;
  try {
    const auto object = nlohmann::json::parse(text);
    p.name = object.at("profile").get<std::string>();
    p.purpose = object.at("purpose").get<std::string>();
    p.needs = object.at("needs").get<std::vector<std::string>>();
    p.mandatory = object.at("mandatory").get<std::set<std::string>>();
    for (const std::string& name : object.value("includes", std::vector<std::string>())) {
      const auto included = nlohmann::json::parse(text_of(name));
      if (included.contains("includes")) throw Error(Code::INTERNAL, "profile '" + p.name + "' includes '" + name + "', which includes others itself");
      p.mandatory.merge(included.at("mandatory").get<std::set<std::string>>());
    }
  } catch (const nlohmann::json::exception& e) {
    throw Error(Code::INTERNAL, "profile '" + p.name + "' is malformed: " + e.what());
  }
  const auto exists = [](const std::string& id) {
    return std::any_of(all_cases().begin(), all_cases().end(), [&](const Case& c) { return c.id == id; });
  };
  for (const std::string& id : p.mandatory)
    if (!exists(id)) throw Error(Code::INTERNAL, "profile '" + p.name + "' names the case '" + id + "', which does not exist");
  if (p.mandatory.empty()) throw Error(Code::INTERNAL, "profile '" + p.name + "' demands nothing");
  return p;
}

const std::vector<Profile>& all_profiles() {
  static const std::vector<Profile> profiles = [] {
    std::vector<Profile> out;
    for (const std::string_view name : embedded_names("profiles/")) out.push_back(parse_profile(embedded(name), [](const std::string& included) { return embedded("profiles/" + included + ".json"); }));
    return out;
  }();
  return profiles;
}

std::vector<Profile> choose_profiles(const std::vector<std::string>& names, const Description& description) {
  std::vector<Profile> chosen;
  for (const std::string& name : names) {
    const auto found = std::find_if(all_profiles().begin(), all_profiles().end(), [&](const Profile& p) { return p.name == name; });
    if (found == all_profiles().end()) {
      std::string known;
      for (const Profile& p : all_profiles()) known += (known.empty() ? "" : ", ") + p.name;
      throw Error(Code::CFG_VALUE, "unknown profile '" + printable(name) + "'; known: " + known);
    }
    chosen.push_back(*found);
  }
  if (names.empty())
    for (const Profile& p : all_profiles())
      if (std::all_of(p.needs.begin(), p.needs.end(), [&](const std::string& need) { return description.offers(need); })) chosen.push_back(p);
  return chosen;
}

}  // namespace squareq::gates
