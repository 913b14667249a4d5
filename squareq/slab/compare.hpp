// Two safetensors files, tensor by tensor and element by element. Behind `squareq compare`.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "squareq/slab/slab.hpp"

namespace squareq {

struct CompareOptions {
  double rtol = 0, atol = 0;                     ///< |a - b| <= atol + rtol |b|; both 0: bit for bit
  bool any_dtype = false;                        ///< numbers of different dtypes may be equal
  bool common_only = false;                      ///< tensors of one file alone are listed, and count as no difference
  unsigned threads = 0;                          ///< 0: all cores
  const std::atomic<bool>* cancelled = nullptr;  ///< set: IO_INTERRUPTED
  Progress progress;                             ///< bytes of the first file
};

enum class Where { both, only_a, only_b };

/// One tensor. Numbers are those of float64 arithmetic (64-bit integers: long double); differences between non-finite values count as
/// `nonfinite_differ` only.
struct TensorComparison {
  std::string name;
  Where where = Where::both;
  std::string dtype_a, dtype_b;
  std::vector<std::uint64_t> shape_a, shape_b;
  bool same = false;      ///< within the tolerance, shapes and (unless any_dtype) dtypes equal
  bool compared = false;  ///< shapes equal and both dtypes hold numbers; else bytes only, or nothing

  std::uint64_t elements = 0, beyond = 0;  ///< beyond: elements (bytes, where not `compared`) outside the tolerance
  std::uint64_t nan_a = 0, nan_b = 0, inf_a = 0, inf_b = 0, nonfinite_differ = 0;
  double max_abs = 0, relative_l2 = 0;  ///< ||a - b|| / ||b|| over elements finite in both; infinite for b = 0 != a
  std::vector<std::uint64_t> worst;     ///< index of the element that is farthest out; empty: none differs, or rank 0
  bool has_worst = false;
  double worst_a = 0, worst_b = 0;
};

struct Comparison {
  std::vector<TensorComparison> tensors;  ///< by name
  bool same() const;
  std::size_t differing() const;
};

/// Throws ST_*, IO_*, CFG_VALUE (a negative or non-finite tolerance). Reads both files in bounded memory.
Comparison compare_files(const std::filesystem::path& a, const std::filesystem::path& b, const CompareOptions& options = {});

/// {"ok", "tensors": [...]}. Numbers that JSON cannot hold are the strings "NaN", "Infinity", "-Infinity".
nlohmann::ordered_json comparison_json(const Comparison& comparison);

}  // namespace squareq
