#include "squareq/builder/identity.hpp"

#include <nlohmann/json.hpp>

#include "squareq/slab/digest.hpp"
#include "squareq/text.hpp"

namespace squareq {

std::string build_identity(const Checkpoint& checkpoint, const Selection& selection, const BuildOptions& options) {
  nlohmann::ordered_json identity;
  identity["journal"] = 1;
  for (const SafetensorsFile& file : checkpoint.files()) {
    const FileStamp& stamp = file.file().stamp();
    std::error_code ignored;
    identity["files"].push_back({std::filesystem::weakly_canonical(file.path(), ignored).string(), stamp.device, stamp.inode, stamp.bytes,
                                 stamp.modified_s, stamp.modified_ns, digest_hex(file.header_xxh3())});
  }
  for (const LinearSource& l : selection.quantized) identity["layers"].push_back(l.name);
  identity["pack_k"] = options.pack_k;
  identity["backend"] = options.backend;
  return sha256_hex(identity.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
}

std::string source_record(const Checkpoint& checkpoint, const Selection& selection) {
  nlohmann::ordered_json record;
  record["files"] = nlohmann::ordered_json::array();
  for (const SafetensorsFile& file : checkpoint.files())
    record["files"].push_back({{"name", printable(file.path().filename().string())},
                               {"bytes", file.header().file_bytes},
                               {"header_xxh3", digest_hex(file.header_xxh3())}});
  record["prefix"] = checkpoint.prefix();
  record["signature"] = selection.signature;
  record["tensors"] = checkpoint.tensors().size();
  record["linears"] = selection.quantized.size();
  return record.dump();
}

}  // namespace squareq
