#include "gates/harness/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "squareq/tensor.hpp"

namespace squareq::gates {
namespace {

std::string class_of(double v) { return std::isnan(v) ? "NaN" : std::isinf(v) ? (v > 0 ? "+Inf" : "-Inf") : "finite"; }

// Habit 6 of benchdnn: a kernel that leaves zeros can be within an absolute bound and still have done nothing.
bool suspiciously_trivial(std::span<const double> actual, std::span<const double> expected) {
  const auto zeros = [](std::span<const double> v) { return static_cast<double>(std::count(v.begin(), v.end(), 0.0)); };
  const auto limit = 0.3 * static_cast<double>(actual.size());
  return actual.size() >= 10 && zeros(actual) > limit && zeros(expected) <= limit;
}

struct Worst {
  double margin = 0;
  std::size_t at = 0;
};

/// The largest error in units of its bound. Fails where sizes, NaN or infinities do not agree.
Worst measure(const std::string& name, std::span<const double> actual, const Expected& expected) {
  require(actual.size() == expected.value.size() && actual.size() == expected.bound.size(),
          fmt::format("{}: {} elements against {} expected", name, actual.size(), expected.value.size()));
  for (std::size_t i = 0; i < actual.size(); ++i)
    require(class_of(actual[i]) == class_of(expected.value[i]),
            fmt::format("{}[{}] is {} ({}), expected {} ({})", name, i, class_of(actual[i]), actual[i], class_of(expected.value[i]), expected.value[i]));
  Worst worst;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(actual[i])) continue;
    const double error = std::fabs(actual[i] - expected.value[i]);
    const double margin = error == 0 ? 0 : expected.bound[i] > 0 ? error / expected.bound[i] : std::numeric_limits<double>::infinity();
    if (margin > worst.margin) worst = {margin, i};
  }
  return worst;
}

void judge(const std::string& name, std::span<const double> actual, const Expected& expected, const Worst& worst) {
  if (worst.margin > 1)
    fail(fmt::format("{}[{}] = {:.9g}, expected {:.9g} within {:.3g}: error is {:.3g} times its bound", name, worst.at, actual[worst.at],
                     expected.value[worst.at], expected.bound[worst.at], worst.margin));
  if (suspiciously_trivial(actual, expected.value)) mistrust(name + ": more than 30 % of the result is zero although the expectation is not");
}

}  // namespace

double compare(const std::string& name, std::span<const double> actual, const Expected& expected) {
  const Worst worst = measure(name, actual, expected);
  judge(name, actual, expected, worst);
  return worst.margin;
}

void compare(Trial& trial, const Guarded& actual, const Expected& expected) {
  const std::vector<double> values = actual.values();
  const std::string name = actual.name() + " " + shape_text(*actual.tensor());
  // Recorded first: the report of a failed case shows by how much.
  const Worst worst = measure(name, values, expected);
  trial.margin(worst.margin);
  judge(name, values, expected, worst);
}

void same_bytes(const std::string& what, std::span<const std::byte> a, std::span<const std::byte> b) {
  require(a.size() == b.size(), fmt::format("{}: {} bytes against {}", what, a.size(), b.size()));
  const auto difference = std::mismatch(a.begin(), a.end(), b.begin());
  if (difference.first != a.end()) {
    const auto at = static_cast<std::size_t>(difference.first - a.begin());
    const auto changed = std::inner_product(a.begin(), a.end(), b.begin(), std::size_t{0}, std::plus<>(), [](std::byte x, std::byte y) { return x != y ? 1u : 0u; });
    fail(fmt::format("{}: {} of {} bytes differ, first at byte {} ({:02x} against {:02x})", what, changed, a.size(), at, static_cast<int>(a[at]), static_cast<int>(b[at])));
  }
}

void same_bits(const std::string& what, const Guarded& a, const Guarded& b) {
  require(a.dtype() == b.dtype() && a.rows() == b.rows() && a.columns() == b.columns(), what + ": shapes or dtypes differ");
  const auto x = a.bytes(), y = b.bytes();
  if (std::equal(x.begin(), x.end(), y.begin(), y.end())) return;
  const std::size_t width = dtype_bytes(a.dtype());
  std::size_t changed = 0;
  std::int64_t first = -1;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    const std::size_t from = static_cast<std::size_t>(i) * width;
    if (std::equal(x.begin() + static_cast<std::ptrdiff_t>(from), x.begin() + static_cast<std::ptrdiff_t>(from + width), y.begin() + static_cast<std::ptrdiff_t>(from))) continue;
    if (first < 0) first = i;
    ++changed;
  }
  fail(fmt::format("{}: {} of {} elements of {} differ in bits, first [{}]: {:.9g} against {:.9g}", what, changed, a.count(), a.name(), first, a.at(first), b.at(first)));
}

}  // namespace squareq::gates
