// Mutants of rms_norm_rope: the reference checks a call and computes it, then an F32 or BF16 result is computed again with one thing wrong.
#include <algorithm>
#include <cstdint>

#include "gates/mutants/copies.hpp"

namespace squareq::mutants {
namespace {

enum class Fault {
  pairs_of_halves, sine_swapped, next_row, rows_in_a_run, epsilon_outside, mean_over_row, neighbours_weight, rounded_between, past_the_columns, half_written, turned_forwards, without_mean
};

float load(const sq_tensor& t, std::int64_t row, std::int64_t column) {
  const std::int64_t at = (t.rank == 2 ? row * t.strides[0] : 0) + column;
  if (t.dtype == SQ_F32) return static_cast<const float*>(t.data)[at];
  const std::uint32_t bits = std::uint32_t{static_cast<const std::uint16_t*>(t.data)[at]} << 16;
  float value = 0;
  std::memcpy(&value, &bits, 4);
  return value;
}
void store(const sq_tensor& t, std::int64_t row, std::int64_t column, float value) {
  const std::int64_t at = row * t.strides[0] + column;
  if (t.dtype == SQ_F32) {
    static_cast<float*>(t.data)[at] = value;
    return;
  }
  value = through_bf16(value);
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  static_cast<std::uint16_t*>(t.data)[at] = static_cast<std::uint16_t>(bits >> 16);
}

/// One head's elements as doubles.
struct Head {
  const sq_tensor& weight;
  const sq_tensor* rope;
  std::int64_t rows, columns, row, first, d = weight.shape[0];

  double w(Fault fault, std::int64_t j) const { return load(weight, 0, fault == Fault::neighbours_weight && d > 1 ? (j + 1) % d : j); }
  double of_table(Fault fault, std::int64_t j) const {
    const std::int64_t positions = rope->shape[0];
    const std::int64_t place = fault == Fault::next_row ? (row + 1) % positions : fault == Fault::rows_in_a_run ? row * positions / rows : row % positions;
    return load(*rope, place, j) * (fault == Fault::sine_swapped && j % 2 != 0 ? -1 : 1);
  }
  double inverse(Fault fault, const sq_tensor& x, double epsilon) const {
    const bool whole = fault == Fault::mean_over_row;
    double squares = 0;
    for (std::int64_t j = whole ? 0 : first; j < (whole ? columns : first + d); ++j) squares += static_cast<double>(load(x, row, j)) * load(x, row, j);
    const double mean = squares / static_cast<double>(whole ? columns : d);
    return fault == Fault::epsilon_outside ? 1 / (std::sqrt(mean) + epsilon) : 1 / std::sqrt(mean + epsilon);
  }
};

bool known(const sq_tensor& x) { return x.dtype == SQ_F32 || x.dtype == SQ_BF16; }

template <class Body>
void for_heads(const sq_tensor& x, const sq_tensor& weight, const sq_tensor* rope, const Body& body) {
  for (std::int64_t m = 0; m < x.shape[0]; ++m)
    for (std::int64_t first = 0; first < x.shape[1]; first += weight.shape[0]) body(Head{weight, rope, x.shape[0], x.shape[1], m, first});
}

template <Fault fault>
sq_status forward(sq_context* c, const sq_rms_norm_rope_forward_args* a, sq_error* e) {
  const bool in_place = a && a->x && a->y && a->x->data == a->y->data;
  // What in place overwrites is kept first.
  std::vector<float> x;
  if (a && a->x && known(*a->x) && a->x->rank == 2 && a->x->data)
    for (std::int64_t m = 0; m < a->x->shape[0]; ++m)
      for (std::int64_t j = 0; j < a->x->shape[1]; ++j) x.push_back(load(*a->x, m, j));
  const sq_status status = base().linear->rms_norm_rope_forward(c, a, e);
  if (status != SQ_OK || !known(*a->x) || x.empty()) return status;
  const sq_tensor copy = make_tensor(x.data(), SQ_F32, {a->x->shape[0], a->x->shape[1]});
  for_heads(copy, *a->weight, a->rope, [&](const Head& head) {
    const double r = head.inverse(fault, copy, static_cast<double>(a->epsilon));
    std::vector<double> n;
    for (std::int64_t j = 0; j < head.d; ++j) {
      const double value = load(copy, head.row, head.first + j) * r * head.w(fault, j);
      n.push_back(fault == Fault::rounded_between && a->x->dtype == SQ_BF16 ? static_cast<double>(through_bf16(static_cast<float>(value))) : value);
    }
    for (std::int64_t j = 0; a->rope && j < head.d; j += 2) {
      const auto even = static_cast<std::size_t>(fault == Fault::pairs_of_halves ? j / 2 : j), odd = static_cast<std::size_t>(fault == Fault::pairs_of_halves ? j / 2 + head.d / 2 : j + 1);
      const double one = n[even], other = n[odd], cosine = head.of_table(fault, j), sine = head.of_table(fault, j + 1);
      n[even] = one * cosine - other * sine;
      n[odd] = (fault == Fault::half_written && in_place ? n[even] : one) * sine + other * cosine;
    }
    for (std::int64_t j = 0; j < head.d; ++j) store(*a->y, head.row, head.first + j, static_cast<float>(n[static_cast<std::size_t>(j)]));
    if (fault == Fault::past_the_columns && a->y->strides[0] > head.columns) store(*a->y, head.row, head.columns, 0);
  });
  return status;
}

template <Fault fault>
sq_status backward(sq_context* c, const sq_rms_norm_rope_backward_args* a, sq_error* e) {
  const sq_status status = base().linear->rms_norm_rope_backward(c, a, e);
  if (status != SQ_OK || !known(*a->x) || a->dx->data == a->dy->data) return status;
  for_heads(*a->x, *a->weight, a->rope, [&](const Head& head) {
    const double r = head.inverse(fault, *a->x, static_cast<double>(a->epsilon));
    std::vector<double> g;
    for (std::int64_t j = 0; j < head.d; ++j) g.push_back(load(*a->dy, head.row, head.first + j));
    for (std::int64_t j = 0; a->rope && j < head.d; j += 2) {
      const auto even = static_cast<std::size_t>(j), odd = even + 1;
      const double one = g[even], other = g[odd], cosine = head.of_table(fault, j), sine = head.of_table(fault, j + 1) * (fault == Fault::turned_forwards ? -1 : 1);
      g[even] = one * cosine + other * sine;
      g[odd] = other * cosine - one * sine;
    }
    double mean = 0;
    for (std::int64_t j = 0; j < head.d; ++j) mean += load(*a->x, head.row, head.first + j) * head.w(fault, j) * g[static_cast<std::size_t>(j)] / static_cast<double>(head.d);
    if (fault == Fault::without_mean) mean = 0;
    for (std::int64_t j = 0; j < head.d; ++j)
      store(*a->dx, head.row, head.first + j, static_cast<float>(r * (head.w(fault, j) * g[static_cast<std::size_t>(j)] - load(*a->x, head.row, head.first + j) * r * r * mean)));
  });
  return status;
}

sq_status any_table(sq_context* c, const sq_rms_norm_rope_forward_args* a, sq_error* e) {
  const sq_status status = base().linear->rms_norm_rope_forward(c, a, e);
  return status == SQ_CALL_SHAPE && a->rope && a->rope->shape[0] == 4 ? SQ_OK : status;
}
sq_status table_demanded(sq_context* c, const sq_rms_norm_rope_forward_args* a, sq_error* e) {
  return a->rope ? base().linear->rms_norm_rope_forward(c, a, e) : SQ_CALL_NULL;
}

template <Fault fault>
void spoil(Tables& t) { t.linear.rms_norm_rope_forward = forward<fault>; }
template <Fault fault>
void spoil_backward(Tables& t) { t.linear.rms_norm_rope_backward = backward<fault>; }

}  // namespace

const Mutation head_mutations[] = {
    {"pairs_of_halves", spoil<Fault::pairs_of_halves>},
    {"sine_swapped", spoil<Fault::sine_swapped>},
    {"next_table_row", spoil<Fault::next_row>},
    {"table_rows_in_a_run", spoil<Fault::rows_in_a_run>},
    {"epsilon_outside_the_root", spoil<Fault::epsilon_outside>},
    {"mean_over_the_row", spoil<Fault::mean_over_row>},
    {"neighbours_norm_weight", spoil<Fault::neighbours_weight>},
    {"rounded_before_rotation", spoil<Fault::rounded_between>},
    {"head_past_the_columns", spoil<Fault::past_the_columns>},
    {"pair_half_written", spoil<Fault::half_written>},
    {"any_table_length", [](Tables& t) { t.linear.rms_norm_rope_forward = any_table; }},
    {"table_demanded", [](Tables& t) { t.linear.rms_norm_rope_forward = table_demanded; }},
    {"gradient_turned_forwards", spoil_backward<Fault::turned_forwards>},
    {"gradient_without_mean", spoil_backward<Fault::without_mean>},
};
const unsigned head_mutation_count = std::size(head_mutations);

}  // namespace squareq::mutants
