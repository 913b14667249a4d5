#include "squareq/slab/contained_open.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "squareq/text.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void escape(const fs::path& directory, std::string_view name, const std::string& why) {
  throw Error(Code::IO_ESCAPE, "'" + printable(name) + "', named by a file in '" + printable_path(directory) + "', " + why, directory.string());
}

bool is_inside(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// The folder that a link may point into: this one, or the Hugging Face cache entry (models--org--name) that holds it.
fs::path allowed_root(const fs::path& folder) {
  fs::path root;
  for (const fs::path& part : folder) {
    root /= part;
    if (part.native().starts_with("models--")) return root;
  }
  return folder;
}

}  // namespace

InputFile contained_open(const fs::path& directory, std::string_view name) {
  if (name.empty() || name == "." || name == "..") escape(directory, name, "is not a file name");
  if (name.find_first_of(std::string_view("/\\:\0", 4)) != std::string_view::npos) escape(directory, name, "is not a plain file name");

  const fs::path folder = directory.empty() ? fs::path(".") : directory;
  const std::string base(name);
  UniqueFd folder_fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder_fd) throw_errno(errno, "open", folder);
  UniqueFd fd(::openat(folder_fd.get(), base.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) throw_errno(errno, "open", folder / base);

  // Where the descriptors really lead, asked of the kernel: nobody can swap the link between this check and the reading.
  std::error_code failed;
  const fs::path real_folder = fs::read_symlink("/proc/self/fd/" + std::to_string(folder_fd.get()), failed);
  const fs::path real_file = failed ? fs::path() : fs::read_symlink("/proc/self/fd/" + std::to_string(fd.get()), failed);
  if (failed) throw Error(Code::IO_ERROR, "cannot tell where '" + printable_path(folder / base) + "' leads: /proc is not readable", (folder / base).string());
  if (!is_inside(real_file, allowed_root(real_folder)))
    escape(directory, name, "leads to '" + printable_path(real_file) + "', outside that folder");
  return InputFile::adopt(std::move(fd), folder / base);
}

}  // namespace squareq
