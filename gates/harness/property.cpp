#include "gates/harness/property.hpp"

#include <fmt/format.h>
#include <rapidcheck.h>
#include <rapidcheck/detail/TestListenerAdapter.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "squareq/text.hpp"

namespace squareq::gates {
namespace {

/// The value at distance rank `index` from the number of [low, high] that is nearest to 0: 0, 1, -1, 2, -2, ... as far as both sides go.
std::int64_t by_nearness(std::uint64_t index, std::int64_t low, std::int64_t high) {
  const std::int64_t target = std::clamp<std::int64_t>(0, low, high);
  const auto above = static_cast<std::uint64_t>(high - target), below = static_cast<std::uint64_t>(target - low),
             both = std::min(above, below);
  if (index <= 2 * both)
    return index % 2 ? target + static_cast<std::int64_t>(index / 2 + 1) : target - static_cast<std::int64_t>(index / 2);
  const auto beyond = static_cast<std::int64_t>(index - both);
  return above > below ? target + beyond : target - beyond;
}

/// How an example failed; the last one kept is the smallest, because shrinking goes on from failures only.
struct Failure {
  Status status = Status::fail;
  std::string message;
  Example example;
  std::optional<double> margin;
};

}  // namespace

std::string example_text(const Example& example) {
  std::string text;
  for (const auto& [name, value] : example) text += (text.empty() ? "" : ",") + name + "=" + std::to_string(value);
  return text;
}

std::map<std::string, std::int64_t> parse_example(const std::string& text) {
  std::map<std::string, std::int64_t> example;
  const auto bad = [&](const std::string& why) {
    return Error(Code::CFG_VALUE, "--example '" + printable(text) + "': " + why + ", expected name=integer,name=integer,...");
  };
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size()), equal = text.find('=', at);
    const std::string name = text.substr(at, std::min(equal, end) - at);
    if (equal == std::string::npos || equal >= end || name.empty() ||
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") != std::string::npos)
      throw bad("no name=integer at byte " + std::to_string(at));
    std::int64_t value = 0;
    const auto [rest, error] = std::from_chars(text.data() + equal + 1, text.data() + end, value);
    if (error != std::errc() || rest != text.data() + end) throw bad("no integer at byte " + std::to_string(equal + 1));
    if (!example.emplace(name, value).second) throw bad("a name stands twice");
    at = end + 1;
  }
  return example;
}

std::uint64_t Draws::index(std::string_view name, std::uint64_t count, How how, const std::function<std::int64_t(std::uint64_t)>& value) {
  for (const auto& [known, ignored] : drawn_)
    if (known == name) throw Error(Code::INTERNAL, "the property draws '" + std::string(name) + "' twice");
  std::uint64_t chosen = 0;
  if (given_) {
    const auto found = given_->find(std::string(name));
    if (found == given_->end()) fail("--example lacks '" + std::string(name) + "'");
    while (chosen < count && value(chosen) != found->second) ++chosen;
    if (chosen == count) fail(fmt::format("--example: {}={} is not among the values that this case draws", name, found->second));
  } else {
    const auto range = rc::gen::inRange<std::uint64_t>(0, count);
    const auto flat = rc::gen::resize(rc::kNominalSize, range);
    chosen = how == How::growing ? *range : how == How::flat ? *flat : *rc::gen::noShrink(flat);
  }
  drawn_.emplace_back(name, value(chosen));
  trial_.note_example(example_text(drawn_));
  return chosen;
}

std::int64_t Draws::integer(std::string_view name, std::int64_t low, std::int64_t high) {
  const auto value = [low, high](std::uint64_t i) { return by_nearness(i, low, high); };
  return value(index(name, static_cast<std::uint64_t>(high - low) + 1, How::growing, value));
}

std::int64_t Draws::choose(std::string_view name, std::initializer_list<std::int64_t> values) {
  const auto value = [values](std::uint64_t i) { return values.begin()[i]; };
  return value(index(name, values.size(), How::flat, value));
}

Random Draws::random(std::string_view purpose) {
  // Never shrunk: other numbers are not smaller numbers.
  const auto value = [](std::uint64_t i) { return static_cast<std::int64_t>(i); };
  if (data_ < 0) data_ = value(index("data", 1000, How::fixed, value));
  Random random = trial_.random(purpose);
  return Random(random.next() + static_cast<std::uint64_t>(data_), purpose);
}

void check_property(Trial& trial, int examples, const std::function<void(Draws&)>& law) {
  std::optional<Failure> failure;
  std::optional<Ended> stopped;  // not_supported: nothing to shrink
  std::optional<double> margin;  // largest of the good examples
  const auto outer = trial.exchange_margin({});
  const auto run = [&](Draws& draws) {
    trial.exchange_margin({});
    std::string message;
    Status status = Status::fail;
    try {
      law(draws);
      const std::optional<double> worst = trial.largest_margin();
      if (!worst || *worst <= 1) {
        if (worst && (!margin || *worst > *margin)) margin = worst;
        return;
      }
      message = fmt::format("error is {:.3g} times its bound", *worst);
    } catch (const Ended& end) {
      if (end.status == Status::not_supported) {
        stopped = end;
        return;
      }
      status = end.status;
      message = end.what();
    } catch (const Error& error) {
      message = std::string(code_name(error.code())) + ": " + error.what();
    } catch (const std::exception& error) {
      message = std::string("exception: ") + error.what();
    }
    failure = Failure{status, message, draws.drawn_, trial.largest_margin()};
    throw std::runtime_error(message);
  };

  std::string found;
  if (const auto& given = trial.take_example()) {
    Draws draws(trial, &*given);
    try {
      run(draws);
    } catch (const std::runtime_error&) {
      found = "the given example";
    }
    if (draws.drawn_.size() < given->size() && !failure)
      fail("--example names an input that this case does not draw; it draws " + example_text(draws.drawn_));
  } else {
    rc::detail::TestParams parameters;
    parameters.seed = trial.random("examples").next();
    parameters.maxSuccess = examples;
    rc::detail::TestListenerAdapter silent;
    const auto property = rc::detail::toProperty([&] {
      if (stopped) return;
      Draws draws(trial, nullptr);
      run(draws);
    });
    // With a map of its own the library neither reads RC_PARAMS nor prints a configuration.
    const auto result = rc::detail::checkProperty(property, rc::detail::TestMetadata(), parameters, silent, {});
    rc::detail::FailureResult falsified;
    if (result.match(falsified))
      found = fmt::format("smallest counterexample, after {} good examples and {} shrinks", falsified.numSuccess,
                          falsified.reproduce.shrinkPath.size());
    else if (!result.is<rc::detail::SuccessResult>())
      throw Error(Code::INTERNAL, "the property could not draw its examples");
  }
  trial.exchange_margin(outer);
  if (failure) {
    trial.counterexample(example_text(failure->example));
    if (failure->margin) trial.margin(*failure->margin);
    throw Ended(failure->status, failure->message + " [" + found + ": " + example_text(failure->example) + "]");
  }
  if (stopped) throw *stopped;
  if (margin) trial.margin(*margin);
}

}  // namespace squareq::gates
