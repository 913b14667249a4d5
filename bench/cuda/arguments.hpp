// Command lines of the benches: --flag value pairs, each known and given once; and the JSON file at the end.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace squareq::bench {

class Arguments {
 public:
  /// Throws CFG_FLAG for a flag that `known` does not hold, one given twice, or one without a value.
  Arguments(int argc, char** argv, const std::vector<std::string_view>& known);

  bool given(std::string_view flag) const { return values_.contains(std::string(flag)); }
  std::string text(std::string_view flag, std::string_view otherwise) const;
  /// One of `choices`; else CFG_VALUE naming them.
  std::string choice(std::string_view flag, const std::vector<std::string_view>& choices, std::string_view otherwise) const;
  /// Whole numbers within [low, high], separated by commas; else CFG_VALUE naming flag, value and bounds.
  std::vector<std::int64_t> numbers(std::string_view flag, std::string_view otherwise, std::int64_t low, std::int64_t high) const;
  std::int64_t number(std::string_view flag, std::string_view otherwise, std::int64_t low, std::int64_t high) const;
  /// The items of a list separated by commas, none of them empty.
  std::vector<std::string> items(std::string_view flag, std::string_view otherwise) const;

 private:
  std::map<std::string, std::string, std::less<>> values_;
};

/// A whole number within [low, high]; else CFG_VALUE naming `what`, the text and the bounds.
std::int64_t parse_number(std::string_view what, std::string_view text, std::int64_t low, std::int64_t high);

/// Where a result goes: whole JSON or what stood there before. Opened before anything is measured, so that a wrong path costs no run.
class ResultFile {
 public:
  /// Empty: no file is wanted. Throws IO_ERROR naming the file.
  explicit ResultFile(std::string path);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;
  /// May be called again with more. Throws IO_ERROR.
  void write(const nlohmann::ordered_json& result);

 private:
  std::string path_, partial_;
};

/// Runs a bench's body: prints `usage` for --help, and errors as one line with the exit status of their class.
int run_program(int argc, char** argv, std::string_view name, std::string_view usage, void (*body)(int, char**));

}  // namespace squareq::bench
