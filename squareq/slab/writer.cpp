#include "squareq/slab/writer.hpp"

#include <algorithm>

#include "squareq/slab/digest.hpp"

namespace squareq {

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors, const Metadata& metadata, const Options& options)
    : layout_(make_layout(std::move(tensors), metadata)), file_(target, layout_.header.file_bytes, options.partial_name, options.seams) {
  if (file_.resumed()) {
    std::string found(layout_.prefix.size(), '\0');
    file_.read(0, found.data(), found.size());
    if (found == layout_.prefix) return;
    file_.restart();  // a partial file of something else that happens to have this size
  }
  file_.write(0, layout_.prefix.data(), layout_.prefix.size());
}

std::size_t SafetensorsWriter::index(std::string_view name) const {
  const TensorRecord* tensor = layout_.header.find(name);
  if (!tensor) throw Error(Code::CALL_VALUE, "the file under construction has no tensor " + in_quotes(name), file_.target().string());
  return static_cast<std::size_t>(tensor - layout_.header.tensors.data());
}

namespace {

const TensorRecord& checked_range(const FileLayout& layout, std::size_t index, std::uint64_t offset, std::uint64_t bytes) {
  if (index >= layout.header.tensors.size()) throw Error(Code::CALL_VALUE, "there is no tensor with index " + std::to_string(index));
  const TensorRecord& tensor = layout.header.tensors[index];
  if (offset > tensor.bytes() || bytes > tensor.bytes() - offset)
    throw Error(Code::CALL_VALUE, "bytes [" + std::to_string(offset) + ", +" + std::to_string(bytes) + ") lie outside tensor " + in_quotes(tensor.name) +
                                      " of " + std::to_string(tensor.bytes()) + " bytes");
  return tensor;
}

}  // namespace

void SafetensorsWriter::write(std::size_t index, std::uint64_t offset, const void* data, std::uint64_t bytes) {
  const TensorRecord& tensor = checked_range(layout_, index, offset, bytes);
  file_.write(layout_.header.data_start + tensor.begin + offset, data, bytes);
}

void SafetensorsWriter::read(std::size_t index, std::uint64_t offset, void* destination, std::uint64_t bytes) const {
  const TensorRecord& tensor = checked_range(layout_, index, offset, bytes);
  file_.read(layout_.header.data_start + tensor.begin + offset, destination, bytes);
}

std::uint64_t SafetensorsWriter::digest(std::size_t index) const {
  const std::uint64_t total = checked_range(layout_, index, 0, 0).bytes();
  Xxh3 hash;
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min<std::uint64_t>(total, 4u << 20)));
  for (std::uint64_t at = 0; at < total; at += piece.size()) {
    const std::uint64_t bytes = std::min<std::uint64_t>(piece.size(), total - at);
    read(index, at, piece.data(), bytes);
    hash.update(piece.data(), static_cast<std::size_t>(bytes));
  }
  return hash.digest();
}

void SafetensorsWriter::replace_metadata(const Metadata& metadata) {
  Header changed = layout_.header;
  changed.metadata = metadata;
  FileLayout layout = make_layout(changed);
  if (layout.prefix.size() != layout_.prefix.size())
    throw Error(Code::CALL_VALUE, "the new metadata makes a header of " + std::to_string(layout.prefix.size()) + " bytes, and the file has room for " +
                                      std::to_string(layout_.prefix.size()), file_.target().string());
  layout_ = std::move(layout);
  file_.write(0, layout_.prefix.data(), layout_.prefix.size());
}

void SafetensorsWriter::commit(std::chrono::milliseconds lock_timeout) {
  file_.finish();
  const FolderLock lock(file_.target().parent_path(), lock_timeout);
  file_.rename_into_place();
}

}  // namespace squareq
