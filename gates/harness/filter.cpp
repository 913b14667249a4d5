#include "gates/harness/filter.hpp"

#include <regex>

#include "squareq/error.hpp"
#include "squareq/text.hpp"

namespace squareq::gates {

struct Filter::Compiled {
  std::regex expression;
};

Filter::Filter(const std::string& text) {
  try {
    compiled_ = std::make_shared<const Compiled>(Compiled{std::regex(text, std::regex::ECMAScript)});
  } catch (const std::regex_error&) {
    throw Error(Code::CFG_VALUE, "--filter is no valid regular expression: '" + printable(text) + "'");
  }
}

bool Filter::matches(const std::string& id) const { return std::regex_search(id, compiled_->expression); }

}  // namespace squareq::gates
