#include "gates/mutation/points.hpp"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "squareq/error.hpp"

namespace squareq::gates::mutation {
namespace {

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) throw Error(Code::IO_ERROR, "cannot read '" + path.string() + "'", path.string());
  return nlohmann::json::parse(in);
}

}  // namespace

std::vector<MutationPoint> read_points(const std::filesystem::path& points, const std::filesystem::path& equivalent) {
  std::vector<MutationPoint> out;
  for (const auto& p : read_json(points)) out.push_back({p.at("id"), p.at("file"), p.at("from"), p.at("to"), p.at("source"), p.at("line"), p.at("column"), {}});
  const nlohmann::json listed = read_json(equivalent);
  for (const auto& e : listed.at("equivalent")) {
    const int wanted = e.value("occurrence", 0);
    const std::string reason = e.at("reason");
    int seen = 0, marked = 0;
    for (MutationPoint& p : out) {
      if (p.file != e.at("file") || p.source != e.at("source") || p.from != e.at("from") || p.to != e.at("to")) continue;
      if (++seen != wanted && wanted != 0) continue;
      p.reason = reason;
      ++marked;
    }
    if (marked == 0 || reason.empty()) throw Error(Code::CFG_VALUE, "equivalent mutation without " + std::string(marked ? "a reason" : "a point in the sources") + ": " + e.dump());
  }
  return out;
}

std::string text(const MutationPoint& p) { return fmt::format("{}:{}:{}: '{}' becomes '{}' in: {}", p.file, p.line, p.column, p.from, p.to, p.source); }

}  // namespace squareq::gates::mutation
