// The third file: records, pairing, checksums. SQ-FMT-080 to 085.

#include <gtest/gtest.h>

#include "squareq/slab/tests/pair.hpp"

namespace squareq {
namespace {

using test::code_set;
using test::Pair;
using test::Scratch;

void flip(const std::filesystem::path& path, std::size_t at) {
  std::string bytes = test::read_file(path);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  test::write_file(path, bytes);
}

TEST(Companion, PublishedTripleIsGood) {
  const Scratch scratch;
  const Report report = validate(Pair{}.publish(scratch));
  EXPECT_EQ(code_set(report), "");
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(scratch.path())) ++files;
  EXPECT_EQ(files, 3);  // no temporaries
}

// The record of the 270-byte golden is the published one, member by member.
TEST(Companion, IntegrityRecordOfTheGolden) {
  const FileLayout layout = make_layout({{"a.qweight", FileDtype::I8, {1, 2}}, {"a.scale", FileDtype::F32, {1}}, {"a.zero_point", FileDtype::F32, {1}}, {"a.bias", FileDtype::F32, {1}}});
  ASSERT_EQ(layout.header.tensors[3].name, "a.qweight");
  const std::vector<std::uint64_t> digests = {0xfa8676a94087f05a, 0xc98dd7ed5d5dfd9b, 0x48b2c92616fc193d, 0x9f94ec5a6dec224b};
  const IntegrityRecord record = make_integrity(layout, "{}", digests);
  const auto json = nlohmann::ordered_json::parse(integrity_text(record));
  std::vector<std::string> keys;
  for (const auto& item : json.items()) keys.push_back(item.key());
  EXPECT_EQ(keys, (std::vector<std::string>{"version", "slab_bytes", "header_xxh3", "manifest_xxh3", "id_sha256", "tensors"}));
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["slab_bytes"], 270);
  EXPECT_EQ(json["header_xxh3"], "9260e4d7aaa98307");
  EXPECT_EQ(json["tensors"]["a.qweight"], "9f94ec5a6dec224b");
  EXPECT_EQ(json["tensors"].size(), 4u);
  // The identity, by its definition: header, manifest, big-endian digests in offset order.
  std::string bytes = layout.prefix + "{}";
  for (const char* hex : {"fa8676a94087f05a", "c98dd7ed5d5dfd9b", "48b2c92616fc193d", "9f94ec5a6dec224b"})
    for (int i = 0; i < 16; i += 2) bytes += static_cast<char>(std::stoi(std::string(hex + i, 2), nullptr, 16));
  EXPECT_EQ(json["id_sha256"], sha256_hex(bytes));
  Report report;
  EXPECT_EQ(parse_integrity(integrity_text(record), report, "f"), record);
}

TEST(Companion, EveryFlippedByteIsFound) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.publish(scratch);
  const std::size_t data = SafetensorsFile::open(paths.slab).header().data_start;
  const std::string slab = test::read_file(paths.slab), manifest = test::read_file(paths.manifest), companion = test::read_file(paths.companion);
  for (std::size_t at = data; at < slab.size(); ++at) {
    flip(paths.slab, at);
    EXPECT_NE(code_set(validate(paths)).find("DT_CHECKSUM"), std::string::npos) << at;
    test::write_file(paths.slab, slab);
  }
  for (std::size_t at = 0; at < data; at += 3) {
    flip(paths.slab, at);
    EXPECT_FALSE(validate(paths).ok()) << at;
    test::write_file(paths.slab, slab);
  }
  for (std::size_t at = 0; at < manifest.size(); at += 7) {
    flip(paths.manifest, at);
    EXPECT_FALSE(validate(paths).ok()) << at;
    test::write_file(paths.manifest, manifest);
  }
  flip(paths.companion, companion.size() - 1);
  EXPECT_EQ(code_set(validate(paths)), "DT_CHECKSUM");
  ValidateOptions quick;
  quick.quick = true;
  EXPECT_EQ(code_set(validate(paths, quick)), "");
}

TEST(Companion, OtherSlabOrManifest) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.publish(scratch);
  Pair other;
  other.manifest.architecture_id = "another";
  test::write_file(paths.manifest, manifest_text(other.manifest));
  EXPECT_EQ(code_set(validate(paths)), "MF_PAIR");
  const SlabPaths fresh = Pair{}.publish(scratch, {}, "fresh");
  Pair larger;
  larger.tensors["marker"] = {FileDtype::U8, {1}, "x"};
  const SlabPaths replaced = larger.write(scratch, "fresh");
  EXPECT_EQ(code_set(validate(replaced)), "MF_PAIR w:MF_ORPHAN");
  std::filesystem::resize_file(fresh.slab, std::filesystem::file_size(fresh.slab) - 1);
  EXPECT_NE(code_set(validate(fresh)).find("MF_PAIR"), std::string::npos);
}

// Rewrites the companion's metadata text and looks at what the reader says.
std::string with_record(const std::function<void(nlohmann::ordered_json&)>& change, std::string_view key = integrity_key) {
  const Scratch scratch;
  const SlabPaths paths = Pair{}.publish(scratch);
  const SafetensorsFile old = SafetensorsFile::open(paths.companion);
  Metadata metadata = old.header().metadata;
  for (auto& [k, value] : metadata) {
    if (k != key) continue;
    auto json = nlohmann::ordered_json::parse(value);
    change(json);
    value = json.dump();
  }
  const auto norm = old.read_all("norm.weight");
  SafetensorsWriter writer(paths.companion, {{"norm.weight", FileDtype::BF16, {3}}}, metadata);
  writer.write("norm.weight", 0, norm.data(), norm.size());
  writer.commit();
  return code_set(validate(paths));
}

TEST(Companion, MalformedRecords) {
  using Json = nlohmann::ordered_json;
  EXPECT_EQ(with_record([](Json&) {}), "");
  for (const char* key : {"version", "slab_bytes", "header_xxh3", "manifest_xxh3", "id_sha256", "tensors"}) {
    EXPECT_EQ(with_record([&](Json& j) { j.erase(key); }), "MF_INTEGRITY") << key;
    EXPECT_EQ(with_record([&](Json& j) { j[key] = nullptr; }), "MF_INTEGRITY") << key;
    EXPECT_EQ(with_record([&](Json& j) { j[key] = "x"; }), "MF_INTEGRITY") << key;
  }
  EXPECT_EQ(with_record([](Json& j) { j["version"] = 2; }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["version"] = 1.0; }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["slab_bytes"] = 17; }), "MF_PAIR");
  EXPECT_EQ(with_record([](Json& j) { j["header_xxh3"] = "0000000000000000"; }), "MF_PAIR");
  EXPECT_EQ(with_record([](Json& j) { j["manifest_xxh3"] = "0000000000000000"; }), "MF_PAIR");
  EXPECT_EQ(with_record([](Json& j) { j["id_sha256"] = std::string(64, '0'); }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["id_sha256"] = std::string(64, 'G'); }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"].erase("a.scale"); }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"]["lost.scale"] = "0000000000000000"; }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"]["a.scale"] = "000000000000000"; }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"]["a.scale"] = "000000000000000A"; }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"]["a.scale"] = 17; }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"]["a.scale"] = "0000000000000000"; }), "DT_CHECKSUM MF_INTEGRITY");  // and the identity no longer follows
  EXPECT_EQ(with_record([](Json& j) { j["note"] = 1; }), "w:MF_UNKNOWN_FIELD");
  EXPECT_EQ(with_record([](Json& j) { j = Json::array(); }), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"].erase("norm.weight"); }, companion_integrity_key), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j["tensors"]["x"] = "0000000000000000"; }, companion_integrity_key), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j = 3; }, architecture_key), "MF_INTEGRITY");
  EXPECT_EQ(with_record([](Json& j) { j = Json::array(); }, source_key), "MF_INTEGRITY");
}

TEST(Companion, WriterRefusesWhatIsNoObject) {
  const Scratch scratch;
  const FileLayout slab = make_layout({{"a", FileDtype::U8, {1}}});
  for (const char* text : {"[]", "{", "{\"a\":1,\"a\":2}", "17"}) EXPECT_THROW(CompanionWriter(scratch / "c", {}, slab, text, ""), Error) << text;
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
}

}  // namespace
}  // namespace squareq
