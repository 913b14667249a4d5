// Any bytes as an adapter's answer, split at the first newline: the line, and what lies in its output file. What is wrong ends in Fault, whatever it is;
// what is right has a known kind and, for the file, exactly the tensor asked for.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "gates/adapter/answer.hpp"
#include "gates/adapter/exchange_files.hpp"
#include "squareq/tensor.hpp"

using namespace squareq;
using namespace squareq::gates::adapter;

namespace {

void require(bool good) {
  if (!good) std::abort();
}

void answer(std::string_view line) {
  try {
    const Answer a = parse_answer(line, 7);
    require(a.result.is_object());
    require((a.kind == Answer::Kind::ok) == (a.code == Code::OK));
    require(a.kind != Answer::Kind::refused || code_name(a.code) != "UNKNOWN");
  } catch (const Fault& fault) {
    require(fault.kind == Fault::Kind::protocol);
    for (const char* c = fault.what(); *c; ++c) require(static_cast<unsigned char>(*c) >= 0x20 && *c != 0x7f);
  }
}

void outputs(std::string_view file) {
  static const std::filesystem::path path = std::filesystem::temp_directory_path() / ("squareq-fuzz-adapter-" + std::to_string(::getpid()));
  std::ofstream(path, std::ios::binary).write(file.data(), static_cast<std::streamsize>(file.size()));
  float values[5] = {-1, -1, -1, -1, -1};
  sq_tensor a = make_tensor(values, SQ_F32, {2, 2});
  a.strides[0] = 3;
  try {
    read_outputs(path, {{"a", &a}});
    require(values[2] == -1);  // between the rows
  } catch (const Fault& fault) {
    require(fault.kind == Fault::Kind::protocol);
    for (const float v : values) require(v == -1);  // refused: nothing was copied
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t end = text.find('\n');
  answer(text.substr(0, end));
  if (end != std::string_view::npos) outputs(text.substr(end + 1));
  return 0;
}
