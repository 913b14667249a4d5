#include "squareq/builder/checkpoint.hpp"

#include <fcntl.h>

#include <algorithm>
#include <array>

#include "squareq/builder/weight_index.hpp"
#include "squareq/slab/contained_open.hpp"
#include "squareq/text.hpp"

namespace squareq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view index_suffix = ".safetensors.index.json";
constexpr std::string_view file_suffix = ".safetensors";
constexpr std::array<std::string_view, 2> usual_stems = {"diffusion_pytorch_model", "model"};
constexpr std::array<std::string_view, 2> subfolders = {"transformer", "unet"};
constexpr std::uint64_t max_config_bytes = 1u << 20;

struct Listing {
  std::vector<std::string> indexes, files, foreign;
};

Listing list(const fs::path& folder) {
  Listing found;
  std::error_code error;
  fs::directory_iterator at(folder, error), end;
  if (error) throw_errno(error.value(), "list", folder);
  for (; at != end; at.increment(error)) {
    if (error) throw_errno(error.value(), "list", folder);
    const std::string name = at->path().filename().string();
    if (name.starts_with('.')) continue;
    const std::string kind = at->path().extension().string();
    if (name.ends_with(index_suffix))
      found.indexes.push_back(name);
    else if (name.ends_with(file_suffix))
      found.files.push_back(name);
    else if (kind == ".bin" || kind == ".ckpt" || kind == ".pt" || kind == ".pth" || kind == ".gguf" || kind == ".npz")
      found.foreign.push_back(name);
  }
  for (auto* names : {&found.indexes, &found.files, &found.foreign}) std::sort(names->begin(), names->end());
  return found;
}

/// The one name to take, empty when there is none. Of several the usual one; else an error that lists them.
std::string choose(const std::vector<std::string>& names, std::string_view suffix, const fs::path& folder) {
  if (names.size() <= 1) return names.empty() ? "" : names[0];
  for (const std::string_view stem : usual_stems)
    if (std::binary_search(names.begin(), names.end(), std::string(stem) + std::string(suffix)))
      return std::string(stem) + std::string(suffix);
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + printable(name);
  throw Error(Code::MD_TENSOR, printable_path(folder) + " holds several checkpoints: " + text + "; name one", folder.string());
}

fs::path find_in_folder(const fs::path& folder) {
  const Listing found = list(folder);
  if (const std::string index = choose(found.indexes, index_suffix, folder); !index.empty()) return folder / index;
  if (const std::string file = choose(found.files, file_suffix, folder); !file.empty()) return folder / file;
  std::error_code ignored;
  for (const std::string_view name : subfolders)
    if (fs::is_directory(folder / name, ignored)) return find_in_folder(folder / name);
  std::string hint;
  if (!found.foreign.empty())
    hint = "; " + printable(found.foreign[0]) + " is not read (pickles, GGUF and zip archives never are): convert it to safetensors";
  throw Error(Code::IO_MISSING, "no .safetensors and no *.safetensors.index.json in " + printable_path(folder) + hint, folder.string());
}

std::string read_config(const fs::path& folder) {
  std::error_code ignored;
  const fs::path path = folder / "config.json";
  if (!fs::exists(fs::symlink_status(path, ignored))) return "";
  return read_text(contained_open(folder.empty() ? fs::path(".") : folder, "config.json"), max_config_bytes, Code::MD_ARCH);
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& source) {
  Checkpoint checkpoint;
  checkpoint.source_ = source;
  std::error_code ignored;
  const fs::path path = fs::is_directory(source, ignored) ? find_in_folder(source) : source;
  const fs::path folder = path.parent_path().empty() ? fs::path(".") : path.parent_path();
  if (path.filename().string().ends_with(index_suffix) || path.extension() == ".json") {
    const WeightIndex index = read_weight_index(path);
    for (const std::string& shard : index.files) {
      SafetensorsFile file = SafetensorsFile::open(contained_open(folder, shard));
      check_shard(index, shard, file, path);
      checkpoint.add_file(std::move(file));
    }
  } else {
    checkpoint.add_file(SafetensorsFile::open(path));
  }
  checkpoint.config_json_ = read_config(folder);
  checkpoint.finish();
  return checkpoint;
}

void Checkpoint::add_file(SafetensorsFile file) {
  const auto& records = file.header().tensors;
  for (std::size_t i = 0; i < records.size(); ++i)
    tensors_.push_back({records[i].name, records[i].dtype, records[i].shape, records[i].bytes(), files_.size(), i});
  files_.push_back(std::move(file));
}

void Checkpoint::finish() {
  prefix_ = detect_prefix(shapes());
  if (!prefix_.empty()) {
    const std::size_t before = tensors_.size();
    std::erase_if(tensors_, [&](const Tensor& t) { return !t.name.starts_with(prefix_); });
    outside_ = before - tensors_.size();
    for (Tensor& t : tensors_) t.name.erase(0, prefix_.size());
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i)
    if (const auto [at, fresh] = by_name_.emplace(tensors_[i].name, i); !fresh)
      throw Error(Code::MD_TENSOR,
                  "tensor " + printable(tensors_[i].name) + " is in " + printable_path(files_[tensors_[at->second].file].path()) +
                      " and again in " + printable_path(files_[tensors_[i].file].path()),
                  files_[tensors_[i].file].path().string(), "", printable(tensors_[i].name));
}

const Checkpoint::Tensor* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

std::vector<TensorShape> Checkpoint::shapes() const {
  std::vector<TensorShape> all;
  all.reserve(tensors_.size());
  for (const Tensor& t : tensors_) all.push_back({t.name, t.shape});
  return all;
}

void Checkpoint::read(const Tensor& tensor, std::uint64_t offset, void* destination, std::uint64_t bytes) const {
  const SafetensorsFile& file = files_[tensor.file];
  file.read(file.header().tensors[tensor.record], offset, destination, bytes);
}

void Checkpoint::prefetch(const Tensor& tensor, std::uint64_t offset, std::uint64_t bytes) const {
  if (offset >= tensor.bytes) return;
  const SafetensorsFile& file = files_[tensor.file];
  const std::uint64_t position = file.position(file.header().tensors[tensor.record]) + offset;
  (void)::posix_fadvise(file.file().fd(), static_cast<off_t>(position), static_cast<off_t>(std::min(bytes, tensor.bytes - offset)),
                        POSIX_FADV_WILLNEED);
}

std::vector<Problem> Checkpoint::warnings() const {
  std::vector<Problem> all;
  for (const SafetensorsFile& file : files_) all.insert(all.end(), file.warnings().begin(), file.warnings().end());
  return all;
}

}  // namespace squareq
