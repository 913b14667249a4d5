#include "squareq/slab/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "squareq/slab/digest.hpp"
#include "squareq/slab/limits.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

// What a file that is no safetensors file probably is. Only a hint: a legal length field can equal any of these by chance.
std::string content_hint(std::string_view start) {
  if (start.starts_with("PK\x03\x04")) return "; it looks like a zip archive, perhaps a torch .pt file";
  if (start.size() >= 2 && start[0] == '\x80' && start[1] >= 2 && start[1] <= 5) return "; it looks like a pickle, which is never read";
  if (start.starts_with("GGUF")) return "; it looks like a GGUF file";
  if (start.starts_with("version ")) return "; it looks like a git-lfs pointer: fetch the real file";
  if (start.starts_with("<")) return "; it looks like an HTML page";
  return {};
}

std::uint64_t little_endian(const unsigned char* bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = (value << 8) | bytes[i];
  return value;
}

}  // namespace

std::uint64_t TensorRecord::elements() const {
  std::uint64_t n = 1;
  for (const std::uint64_t d : shape) n *= d;
  return n;
}

const TensorRecord* Header::find(std::string_view name) const {
  const auto at = std::lower_bound(by_name.begin(), by_name.end(), name,
                                   [&](std::uint32_t i, std::string_view wanted) { return tensors[i].name < wanted; });
  return at != by_name.end() && tensors[*at].name == name ? &tensors[*at] : nullptr;
}

const std::string* Header::find_metadata(std::string_view key) const {
  for (const auto& [k, value] : metadata)
    if (k == key) return &value;
  return nullptr;
}

std::optional<SafetensorsFile> SafetensorsFile::open(InputFile input, Report& report) {
  const std::string name = input.path().string();
  const std::string shown = "'" + printable_path(input.path()) + "'";
  Report found;
  try {
    std::array<unsigned char, 8> length_field{};
    std::array<char, 64> start{};
    const std::uint64_t file_bytes = input.bytes();
    const auto start_bytes = static_cast<std::size_t>(std::min<std::uint64_t>(file_bytes, start.size()));
    input.read(0, start.data(), start_bytes);
    const std::string hint = content_hint({start.data(), start_bytes});
    if (file_bytes < 8) {
      report.add(Code::ST_TOO_SMALL, shown + " has " + std::to_string(file_bytes) + " bytes; a safetensors file has at least 8" + hint, name);
      return std::nullopt;
    }
    std::memcpy(length_field.data(), start.data(), 8);
    const std::uint64_t length = little_endian(length_field.data());
    if (length > limits::header_bytes) {
      report.add(Code::ST_HEADER_TOO_LARGE, shown + " declares a header of " + std::to_string(length) + " bytes; at most " +
                                                std::to_string(limits::header_bytes) + " are allowed" + hint, name);
      return std::nullopt;
    }
    if (length > file_bytes - 8) {
      report.add(Code::ST_HEADER_PAST_EOF, shown + " declares a header of " + std::to_string(length) + " bytes and has only " +
                                               std::to_string(file_bytes - 8) + " after the length field" + hint, name);
      return std::nullopt;
    }
    std::vector<std::byte> text(static_cast<std::size_t>(length));
    input.read(8, text.data(), length);
    Xxh3 hash;
    hash.update(length_field.data(), length_field.size());
    hash.update(text.data(), text.size());
    std::optional<Header> header = parse_header(text, file_bytes, found, name);
    if (!header) {
      report.append(std::move(found));
      return std::nullopt;
    }
    SafetensorsFile file(std::move(input), std::move(*header), hash.digest());
    file.warnings_ = found.warnings;
    report.append(std::move(found));
    return file;
  } catch (const Error& e) {
    report.add(e.problem());
    return std::nullopt;
  }
}

std::optional<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path, Report& report) {
  try {
    return open(InputFile::open(path), report);
  } catch (const Error& e) {
    report.add(e.problem());
    return std::nullopt;
  }
}

SafetensorsFile SafetensorsFile::open(InputFile input) {
  Report report;
  auto file = open(std::move(input), report);
  report.throw_first();
  return std::move(*file);
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) { return open(InputFile::open(path)); }

void SafetensorsFile::read(const TensorRecord& tensor, std::uint64_t offset, void* destination, std::uint64_t bytes) const {
  if (offset > tensor.bytes() || bytes > tensor.bytes() - offset)
    throw Error(Code::CALL_VALUE, "bytes [" + std::to_string(offset) + ", +" + std::to_string(bytes) + ") asked of tensor '" +
                                      printable(tensor.name) + "', which has " + std::to_string(tensor.bytes()), path().string(), {}, tensor.name);
  file_.read(header_.data_start + tensor.begin + offset, destination, bytes);
}

std::vector<std::byte> SafetensorsFile::read_all(std::string_view name) const {
  const TensorRecord* tensor = header_.find(name);
  if (!tensor)
    throw Error(Code::MD_TENSOR, "'" + printable_path(path()) + "' holds no tensor '" + printable(name) + "'", path().string(), {}, std::string(name));
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor->bytes()));
  read(*tensor, 0, bytes.data(), bytes.size());
  return bytes;
}

}  // namespace squareq
