#include "bench/cuda/arguments.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "squareq/error.hpp"

namespace squareq::bench {
namespace {

std::string joined(const std::vector<std::string_view>& words) {
  std::string text;
  for (const std::string_view word : words) text += (text.empty() ? "" : ", ") + std::string(word);
  return text;
}

}  // namespace

Arguments::Arguments(int argc, char** argv, const std::vector<std::string_view>& known) {
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (std::find(known.begin(), known.end(), flag) == known.end())
      throw Error(Code::CFG_FLAG, "unknown argument '" + flag + "'; known are " + joined(known));
    if (i + 1 == argc) throw Error(Code::CFG_FLAG, flag + " needs a value");
    if (!values_.emplace(flag, argv[i + 1]).second) throw Error(Code::CFG_FLAG, flag + " is given twice");
  }
}

std::string Arguments::text(std::string_view flag, std::string_view otherwise) const {
  const auto found = values_.find(flag);
  return found == values_.end() ? std::string(otherwise) : found->second;
}

std::string Arguments::choice(std::string_view flag, const std::vector<std::string_view>& choices, std::string_view otherwise) const {
  std::string value = text(flag, otherwise);
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    throw Error(Code::CFG_VALUE, std::string(flag) + " is '" + value + "', must be one of " + joined(choices));
  return value;
}

std::vector<std::string> Arguments::items(std::string_view flag, std::string_view otherwise) const {
  const std::string list = text(flag, otherwise);
  std::vector<std::string> items;
  for (std::size_t from = 0; from <= list.size();) {
    const std::size_t comma = std::min(list.find(',', from), list.size());
    items.push_back(list.substr(from, comma - from));
    if (items.back().empty()) throw Error(Code::CFG_VALUE, std::string(flag) + " is '" + list + "', which holds an empty item");
    from = comma + 1;
  }
  return items;
}

std::vector<std::int64_t> Arguments::numbers(std::string_view flag, std::string_view otherwise, std::int64_t low, std::int64_t high) const {
  std::vector<std::int64_t> numbers;
  for (const std::string& item : items(flag, otherwise)) numbers.push_back(parse_number(flag, item, low, high));
  return numbers;
}

std::int64_t Arguments::number(std::string_view flag, std::string_view otherwise, std::int64_t low, std::int64_t high) const {
  return parse_number(flag, text(flag, otherwise), low, high);
}

std::int64_t parse_number(std::string_view what, std::string_view text, std::int64_t low, std::int64_t high) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    throw Error(Code::CFG_VALUE, std::string(what) + " is '" + std::string(text) + "', must be a whole number from " + std::to_string(low) + " to " +
                                     std::to_string(high));
  return value;
}

ResultFile::ResultFile(std::string path) : path_(std::move(path)), partial_(path_ + ".part") {
  if (!path_.empty() && !std::ofstream(partial_)) throw Error(Code::IO_ERROR, "cannot write '" + partial_ + "': " + std::strerror(errno), path_);
}

ResultFile::~ResultFile() {
  if (!path_.empty()) std::remove(partial_.c_str());
}

void ResultFile::write(const nlohmann::ordered_json& result) {
  if (path_.empty()) return;
  std::ofstream out(partial_);
  out << result.dump(1) << "\n";
  out.close();
  if (!out || std::rename(partial_.c_str(), path_.c_str()) != 0)
    throw Error(Code::IO_ERROR, "cannot write '" + path_ + "': " + std::strerror(errno), path_);
}

int run_program(int argc, char** argv, std::string_view name, std::string_view usage, void (*body)(int, char**)) {
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]) == "--help") {
      std::fwrite(usage.data(), 1, usage.size(), stdout);
      return 0;
    }
  const std::string program(name);
  try {
    body(argc, argv);
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "%s: %s: %s\n", program.c_str(), std::string(code_name(e.code())).c_str(), e.what());
    return exit_status(e.code());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", program.c_str(), e.what());
    return exit_status(Code::INTERNAL);
  }
}

}  // namespace squareq::bench
