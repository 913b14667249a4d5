// The library through the contract's own table, as a stranger would be called.
#include "squareq/builder/format_group.hpp"

#include "squareq/contract.hpp"
#include "support.hpp"

namespace squareq::builder_test {
namespace {

using nlohmann::json;

using Call = sq_status (*)(sq_context*, const char*, sq_text_sink, void*, sq_error*);

struct Outcome {
  Code code;
  json answer;
  std::string message;
};

Outcome ask(Call call, const json& request) {
  const Context context(Implementation(format_implementation()), sized<sq_host>());
  std::string text;
  sq_error error = make_error();
  const sq_status status = call(context.get(), request.dump().c_str(), append_text, &text, &error);
  return {static_cast<Code>(status), json::parse(text, nullptr, false), error.message};
}

TEST(FormatGroup, BuildValidateReport) {
  Scratch s;
  const sq_format_group& format = *format_implementation()->format;
  const Outcome built =
      ask(format.build, {{"model", emoji()}, {"out", s.folder("out")}, {"name", "e"}, {"arch_id", "test_flux"}, {"backend", "reference"}});
  ASSERT_EQ(built.code, Code::OK) << built.message;
  EXPECT_EQ(built.answer["layers"], 86);
  EXPECT_EQ(built.answer["architecture"]["id"], "flux1-schnell");
  const std::string slab = built.answer["slab"];
  const Outcome valid = ask(format.validate, {{"slab", slab}, {"model", emoji()}});
  EXPECT_EQ(valid.answer["ok"], true) << valid.answer.dump();
  EXPECT_EQ(ask(format.validate, {{"container", slab}}).answer["ok"], true);
  const Outcome report = ask(format.report, {{"slab", slab}});
  EXPECT_EQ(report.code, Code::OK) << report.message;
  EXPECT_TRUE(report.answer.is_object());
  std::string bytes = slurp(slab);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  spit(slab, bytes);
  const Outcome damaged = ask(format.validate, {{"slab", slab}});
  EXPECT_EQ(damaged.code, Code::OK);
  EXPECT_EQ(damaged.answer["ok"], false);
}

TEST(FormatGroup, BadRequestsAreNamed) {
  Scratch s;
  const sq_format_group& format = *format_implementation()->format;
  EXPECT_EQ(ask(format.build, {{"model", "m"}}).code, Code::CFG_KEY);
  EXPECT_EQ(ask(format.build, {{"model", 3}, {"out", "o"}, {"name", "n"}}).code, Code::CFG_TYPE);
  EXPECT_EQ(ask(format.build, {{"model", "m"}, {"out", s.path()}, {"name", "n"}, {"colour", 1}}).code, Code::CFG_KEY);
  EXPECT_EQ(ask(format.build, {{"model", "m"}, {"out", s.path()}, {"name", "n"}, {"pack_k", -1}}).code, Code::CFG_TYPE);
  EXPECT_EQ(ask(format.build, json::array()).code, Code::CFG_JSON);
  EXPECT_EQ(ask(format.validate, json::object()).code, Code::CFG_KEY);
  EXPECT_EQ(ask(format.build, {{"model", s / "gone"}, {"out", s.path()}, {"name", "n"}, {"backend", "reference"}}).code, Code::IO_MISSING);
  sq_host host = sized<sq_host>();
  host.abi_version = 99;
  sq_context* context = nullptr;
  sq_error error = make_error();
  EXPECT_EQ(format_implementation()->create(&host, &context, &error), SQ_CALL_VERSION);
  EXPECT_NE(std::string(error.message).find("99"), std::string::npos);
}

TEST(FormatGroup, DescribesItself) {
  const json description = json::parse(Implementation(format_implementation()).describe());
  EXPECT_EQ(description["groups"], json({"format"}));
  EXPECT_EQ(description["abi_version"], SQ_ABI_VERSION);
}

}  // namespace
}  // namespace squareq::builder_test
