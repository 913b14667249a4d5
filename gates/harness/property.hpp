// Properties: a law, and the inputs that it draws. rapidcheck generates, starts small and shrinks what fails; the verdict then names the
// smallest counterexample found, and `squareq gates ... --example` runs exactly that one again.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gates/harness/trial.hpp"

namespace squareq::gates {

/// A named input of one example: m=3.
using Example = std::vector<std::pair<std::string, std::int64_t>>;

/// "m=3,k=17" as --example takes it.
std::string example_text(const Example& example);
/// The reverse. Throws CFG_VALUE, quoting the text, where it is no such list or holds a name twice.
std::map<std::string, std::int64_t> parse_example(const std::string& text);

/// Hands out the inputs of one example. A law calls the same functions in the same order for equal earlier answers; names are unique
/// within an example, lower case and without '=' or ','.
class Draws {
 public:
  /// In [low, high], both included; small examples keep near 0 (or near the end that is nearest to 0), and shrinking goes there.
  std::int64_t integer(std::string_view name, std::int64_t low, std::int64_t high);
  /// One of `values`; shrinking goes to the first.
  std::int64_t choose(std::string_view name, std::initializer_list<std::int64_t> values);
  bool coin(std::string_view name) { return choose(name, {0, 1}) == 1; }
  /// Numbers that depend on the run's seed, the case, `purpose` and the example's own `data` only. The same in every call of one example.
  Random random(std::string_view purpose);

 private:
  friend void check_property(Trial& trial, int examples, const std::function<void(Draws&)>& law);
  Draws(Trial& trial, const std::map<std::string, std::int64_t>* given) : trial_(trial), given_(given) {}
  enum class How {
    growing,  ///< small in early examples, shrinks to 0
    flat,     ///< all alike, shrinks to 0
    fixed,    ///< all alike, never shrunk
  };
  /// An index below `count`, or under --example the one that stands for the given value.
  std::uint64_t index(std::string_view name, std::uint64_t count, How how, const std::function<std::int64_t(std::uint64_t)>& value);

  Trial& trial_;
  const std::map<std::string, std::int64_t>* given_;  ///< --example; null: drawn
  Example drawn_;
  std::int64_t data_ = -1;
};

/// Runs `law` on `examples` examples of growing size, or, under --example, on that one. A law fails by fail(), require(), a margin above
/// 1 or any exception; the smallest failure found ends the case, with the example recorded in the trial.
void check_property(Trial& trial, int examples, const std::function<void(Draws&)>& law);

}  // namespace squareq::gates
