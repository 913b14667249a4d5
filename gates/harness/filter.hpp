// The regular expression of --filter. In a file of its own: GCC 12 warns falsely inside <regex> when sanitizers are on.
#pragma once

#include <memory>
#include <string>

namespace squareq::gates {

class Filter {
 public:
  /// ECMAScript; throws CFG_VALUE, quoting the text, where it is none.
  explicit Filter(const std::string& text);
  /// Whether the expression occurs anywhere in `id`; an empty one always does.
  bool matches(const std::string& id) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace squareq::gates
