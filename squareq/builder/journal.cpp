#include "squareq/builder/journal.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <optional>
#include <sstream>

#include "squareq/slab/digest.hpp"

namespace squareq {
namespace {

constexpr std::uint64_t max_journal_bytes = 64ull << 20;

std::string sealed(const std::string& body) { return body + " " + digest_hex(xxh3(body.data(), body.size())) + "\n"; }

/// The line without its checksum, or nothing where the checksum is wrong.
std::optional<std::string> unsealed(const std::string& line) {
  const std::size_t space = line.rfind(' ');
  if (space == std::string::npos) return std::nullopt;
  const std::string body = line.substr(0, space);
  if (parse_digest(line.substr(space + 1)) != xxh3(body.data(), body.size())) return std::nullopt;
  return body;
}

std::string line_of(std::size_t layer, const JournalEntry& entry) {
  std::string body = std::to_string(layer) + " " + std::to_string(entry.floored_rows);
  for (const std::uint64_t digest : entry.digests) body += " " + digest_hex(digest);
  return sealed(body);
}

}  // namespace

Journal::Journal(const std::filesystem::path& path, const std::string& identity)
    : path_(path), identity_("squareq-build-journal 1 " + identity) {
  fd_ = UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd_) throw_errno(errno, "open", path);
  load();
  rewrite();
}

void Journal::load() {
  std::istringstream text(read_text(path_, max_journal_bytes, Code::IO_ERROR));
  std::string line;
  if (!std::getline(text, line) || unsealed(line) != identity_) return;
  while (std::getline(text, line)) {
    const auto body = unsealed(line);
    if (!body) return;  // cut by a kill, or not ours from here on
    std::istringstream fields(*body);
    std::size_t layer = 0;
    JournalEntry entry;
    std::string digest;
    if (!(fields >> layer >> entry.floored_rows)) return;
    while (fields >> digest) entry.digests.push_back(parse_digest(digest).value_or(0));
    entries_[layer] = std::move(entry);
  }
}

/// Only what was read: a line that a kill cut must not swallow the next one.
void Journal::rewrite() {
  if (ftruncate(fd_.get(), 0) != 0) throw_errno(errno, "truncate", path_);
  std::string text = sealed(identity_);
  for (const auto& [layer, entry] : entries_) text += line_of(layer, entry);
  write(text);
}

void Journal::restart() {
  entries_.clear();
  rewrite();
}

void Journal::append(std::size_t layer, const JournalEntry& entry) {
  const std::string line = line_of(layer, entry);
  const std::lock_guard lock(mutex_);
  write(line);
}

void Journal::write(const std::string& line) {
  for (std::size_t done = 0; done < line.size();) {
    const ssize_t n = ::write(fd_.get(), line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno(errno, "write", path_);
    done += static_cast<std::size_t>(n);
  }
}

void Journal::remove() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

}  // namespace squareq
