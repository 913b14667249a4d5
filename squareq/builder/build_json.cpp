#include <nlohmann/json.hpp>

#include "squareq/builder/build.hpp"
#include "squareq/text.hpp"

namespace squareq {

nlohmann::ordered_json build_json(const BuildResult& r) {
  const auto path = [](const std::filesystem::path& p) {
    return p.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(printable(p.string(), 4096));
  };
  nlohmann::ordered_json answer = {{"ok", true},
                                   {"slab", path(r.paths.slab)},
                                   {"manifest", path(r.paths.manifest)},
                                   {"companion", path(r.paths.companion)},
                                   {"architecture", nullptr},
                                   {"model_signature", r.signature},
                                   {"id_sha256", r.slab_id},
                                   {"layers", r.layers},
                                   {"reused_layers", r.reused_layers},
                                   {"other_tensors", r.other_tensors},
                                   {"source_bytes", r.source_bytes},
                                   {"slab_bytes", r.slab_bytes},
                                   {"companion_bytes", r.companion_bytes},
                                   {"floored_rows", r.floored_rows},
                                   {"seconds", r.seconds}};
  if (r.architecture) answer["architecture"] = nlohmann::ordered_json::parse(r.architecture->json());
  answer["warnings"] = report_json(r.report)["warnings"];
  return answer;
}

}  // namespace squareq
