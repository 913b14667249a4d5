// In a file of its own: elf.h has macros under the names of error codes.
#include "gates/g11_cleanup/exports.hpp"

#include <elf.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace squareq::gates {
namespace {

template <class T>
T read_at(const std::string& file, std::size_t offset) {
  if (offset > file.size() || sizeof(T) > file.size() - offset) throw std::runtime_error("a library ends inside its own tables");
  T value{};
  std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

}  // namespace

std::vector<std::string> exported_symbols(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  const auto header = read_at<Elf64_Ehdr>(file, 0);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64) throw std::runtime_error(path + " is no 64-bit ELF file");
  std::vector<std::string> names;
  for (std::size_t s = 0; s < header.e_shnum; ++s) {
    const auto section = read_at<Elf64_Shdr>(file, header.e_shoff + s * header.e_shentsize);
    if (section.sh_type != SHT_DYNSYM) continue;
    const auto strings = read_at<Elf64_Shdr>(file, header.e_shoff + section.sh_link * header.e_shentsize);
    for (std::size_t i = 1; i < section.sh_size / sizeof(Elf64_Sym); ++i) {
      const auto symbol = read_at<Elf64_Sym>(file, section.sh_offset + i * sizeof(Elf64_Sym));
      // Undefined here, local, hidden, or a version's own name.
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx == SHN_ABS || ELF64_ST_BIND(symbol.st_info) == STB_LOCAL || ELF64_ST_VISIBILITY(symbol.st_other) == STV_HIDDEN) continue;
      const std::size_t name = strings.sh_offset + symbol.st_name;
      read_at<char>(file, name);
      names.emplace_back(file.c_str() + name);
    }
  }
  return names;
}

}  // namespace squareq::gates
