// Puts a finished build in place (SQ-FMT-093 to 096).

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "squareq/slab/slab.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;

void fsync_folder(const fs::path& folder) {
  const UniqueFd fd(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) throw_errno(errno, "fsync folder", folder);
}

void remove_old(const fs::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno(errno, "remove the old", path);
}

}  // namespace

void publish_slab(const SlabPaths& paths, SafetensorsWriter& slab, CompanionWriter* companion, std::string_view manifest, const PublishOptions& options) {
  // Everything is on the disk under temporary names before the first old file goes.
  AtomicFile manifest_file(paths.manifest, manifest.size(), {}, options.seams);
  manifest_file.write(0, manifest.data(), manifest.size());
  manifest_file.finish();
  slab.file().finish();
  if (companion) companion->file().file().finish();

  const fs::path folder = paths.manifest.parent_path();
  const FolderLock lock(folder, options.lock_timeout);
  if (options.seams.step) options.seams.step("remove manifest", paths.manifest);
  remove_old(paths.manifest);
  fsync_folder(folder);
  if (!companion) remove_old(paths.companion);
  slab.file().rename_into_place();
  if (companion) companion->file().file().rename_into_place();
  manifest_file.rename_into_place();
  for (const fs::path& path : {paths.slab, paths.companion, paths.manifest}) remove_stale_temporaries(folder, path.filename().string());
}

}  // namespace squareq
