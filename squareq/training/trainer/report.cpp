#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "squareq/text.hpp"
#include "squareq/training/trainer/trainer.hpp"

namespace squareq::training {

using json = nlohmann::ordered_json;

namespace {

json number(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

/// Means of windows of ten steps, skipped ones left out.
json curve(const std::vector<double>& losses) {
  json points = json::array();
  for (std::size_t first = 0; first < losses.size(); first += 10) {
    double sum = 0;
    int count = 0;
    for (std::size_t i = first; i < std::min(first + 10, losses.size()); ++i)
      if (std::isfinite(losses[i])) sum += losses[i], ++count;
    points.push_back({{"step", first + 1}, {"loss", count ? json(sum / count) : json(nullptr)}});
  }
  return points;
}

}  // namespace

std::string report_json(const TrainReport& r) {
  json losses = json::array();
  for (double loss : r.losses) losses.push_back(number(loss));
  json validation = json::array();
  for (const ValidationPoint& p : r.validation) validation.push_back({{"step", p.step}, {"loss", number(p.loss)}});
  json warnings = json::array();
  for (const Problem& w : r.warnings) warnings.push_back({{"code", code_name(w.code)}, {"message", w.message}});
  const std::int64_t here = r.steps - r.first_step;
  json root;
  root["ok"] = true;
  root["model"] = r.model;
  root["backend"] = r.backend;
  root["slab_id"] = r.slab_id.empty() ? json(nullptr) : json(r.slab_id);
  root["deterministic"] = r.deterministic;
  root["steps"] = r.steps;
  root["resumed_at"] = r.first_step;
  root["skipped_steps"] = r.skipped;
  root["adapter_layers"] = r.layers;
  root["adapter_parameters"] = r.parameters;
  root["wall_seconds"] = r.wall_seconds;
  root["seconds_per_step"] = here > 0 ? json(r.wall_seconds / static_cast<double>(here)) : json(nullptr);
  root["budget_bytes"] = r.budget_bytes == 0 ? json(nullptr) : json(r.budget_bytes);
  root["peak_weight_bytes"] = r.peak_weight_bytes;
  root["streamed_bytes_per_step"] = r.loaded_bytes_per_step;
  root["loss_curve"] = curve(r.losses);
  root["losses"] = losses;
  root["validation"] = validation;
  root["files"] = r.files;
  root["warnings"] = warnings;
  if (r.shadow)
    root["shadow"] = {{"backend", r.shadow->backend}, {"calls", r.shadow->calls},   {"elements", r.shadow->elements}, {"margin", number(r.shadow->margin)},
                      {"where", r.shadow->where},     {"layer", r.shadow->layer}, {"tensor", r.shadow->tensor}};
  return root.dump(2, ' ', true, json::error_handler_t::replace);
}

}  // namespace squareq::training
