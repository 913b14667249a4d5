#include "gates/harness/trial.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdlib>

namespace squareq::gates {

Trial::Trial(const Subject& subject, const Description& description, std::uint64_t seed, std::string case_id, ExampleOptions examples)
    : subject_(subject), description_(description), seed_(seed), case_id_(std::move(case_id)), examples_(std::move(examples)) {}

Trial::~Trial() {
  instances_.clear();
  if (!folder_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
}

Instance& Trial::instance(std::string_view group, std::uint32_t threads) {
  instances_.push_back(std::make_unique<Instance>(subject_.of_group(group), threads));
  return *instances_.back();
}

Instance& Trial::instance(std::string_view group, const sq_host& host) {
  instances_.push_back(std::make_unique<Instance>(subject_.of_group(group), host));
  return *instances_.back();
}

Instance& Trial::reference() {
  if (!reference_implementation_) reference_implementation_.emplace(Implementation::load(find_backend("reference")));
  instances_.push_back(std::make_unique<Instance>(*reference_implementation_, 2));
  return *instances_.back();
}

Random Trial::random(std::string_view purpose) const {
  Random random(seed_, case_id_);
  return Random(random.next(), purpose);
}

void Trial::margin(double value) {
  if (!margin_ || value > *margin_ || std::isnan(value)) margin_ = value;
}

const std::optional<std::map<std::string, std::int64_t>>& Trial::take_example() {
  example_taken_ = true;
  return examples_.given;
}

const std::filesystem::path& Trial::folder() {
  if (folder_.empty()) {
    std::string pattern = (std::filesystem::temp_directory_path() / "squareq-gate-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw Error(Code::IO_ERROR, "cannot make a temporary folder: " + pattern);
    folder_ = pattern;
  }
  return folder_;
}

void Trial::finish() {
  for (auto& instance : instances_) {
    const std::string name = instance->context()->name;
    instance->destroy();
    Meter& meter = instance->meter();
    if (const std::string misuse = meter.misuse(); !misuse.empty()) fail("allocator of '" + name + "': " + misuse);
    if (meter.held() != 0) fail("'" + name + "' still holds " + std::to_string(meter.held()) + " bytes after destroy");
  }
}

void must_name(const std::string& what, const sq_error& error, const std::vector<std::string_view>& words) {
  const auto lower = [](std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  };
  const std::string told = lower(std::string(error.message) + " | " + error.layer + " | " + error.tensor + " | " + error.file);
  for (const std::string_view word : words) {
    bool found = false;
    for (std::size_t from = 0; from <= word.size();) {
      const std::size_t to = std::min(word.find('|', from), word.size());
      found = found || told.find(lower(std::string(word.substr(from, to - from)))) != std::string::npos;
      from = to + 1;
    }
    require(found, what + ": the error does not name '" + std::string(word) + "': " + error.message);
  }
}

Verdict run_here(const Case& gate_case, const Subject& subject, const Description& description, std::uint64_t seed, const ExampleOptions& examples) {
  Verdict verdict;
  const auto start = std::chrono::steady_clock::now();
  std::optional<double> margin;
  try {
    Trial trial(subject, description, seed, gate_case.id, examples);
    try {
      gate_case.run(trial);
      if (trial.example_left()) fail("--example: the case draws no examples");
      trial.finish();
    } catch (...) {
      margin = trial.largest_margin();
      verdict.example = trial.counterexample();
      throw;
    }
    margin = trial.largest_margin();
    const bool within = !margin || *margin <= 1.0;  // false for NaN
    verdict.status = within ? Status::pass : Status::fail;
    if (!within) verdict.message = "error is " + std::to_string(*margin) + " times its bound";
  } catch (const Ended& end) {
    verdict.status = end.status;
    verdict.message = end.what();
  } catch (const Error& error) {
    verdict.status = Status::fail;
    verdict.message = std::string(code_name(error.code())) + ": " + error.what();
  } catch (const std::exception& error) {
    verdict.status = Status::fail;
    verdict.message = std::string("exception: ") + error.what();
  }
  verdict.margin = margin;
  verdict.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return verdict;
}

}  // namespace squareq::gates
