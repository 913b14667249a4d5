// Profiles: which cases an implementation must pass to be called conformant for a purpose. The lists are data, gates/profiles/*.json.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gates/harness/subject.hpp"

namespace squareq::gates {

struct Profile {
  std::string name;
  std::string purpose;
  std::vector<std::string> needs;  ///< groups (or "device:NAME") that an implementation of this profile offers
  std::set<std::string> mandatory; ///< case ids, those of the included profiles among them
};

/// One profile file, with the files of the profiles that it `includes` added by `text_of`. Throws Error(INTERNAL) where it is malformed,
/// names a case that does not exist, or demands nothing.
Profile parse_profile(std::string_view text, const std::function<std::string_view(const std::string& name)>& text_of);

/// All profiles, by name. Throws Error(INTERNAL) where a file is malformed or names a case that does not exist.
const std::vector<Profile>& all_profiles();

/// The named profiles, or, when `names` is empty, those whose needs `description` offers. Throws CFG_VALUE for an unknown name.
std::vector<Profile> choose_profiles(const std::vector<std::string>& names, const Description& description);

}  // namespace squareq::gates
