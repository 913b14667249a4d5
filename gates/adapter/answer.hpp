// One answer line of an adapter, judged (spec/95-adapter-protocol.md). Pure text in, value out: what talks to the process is process.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "squareq/error.hpp"

namespace squareq::gates::adapter {

inline constexpr std::uint64_t protocol_version = 1;
/// Longest answer line, newline excluded.
inline constexpr std::size_t max_answer_bytes = 1u << 20;

/// The adapter broke the protocol, died or did not answer: nothing that it says afterwards can be believed.
struct Fault : std::runtime_error {
  enum class Kind : std::uint32_t { none, protocol, crash, timeout };
  Fault(Kind k, const std::string& text) : std::runtime_error(text), kind(k) {}
  Kind kind;
};

struct Answer {
  enum class Kind { ok, refused, unsupported };
  Kind kind = Kind::ok;
  Code code = Code::OK;                                    ///< refused
  std::string message, layer, tensor;                      ///< refused, unsupported
  nlohmann::json result = nlohmann::json::object();        ///< ok
};

/// `line` without its newline. Throws Fault(protocol) that names what is wrong: not one strict JSON object (SQ-ADP-011), another id than
/// `id`, an unknown kind, code or key, a field of the wrong type. Memory is bounded by the line; no other exception leaves.
Answer parse_answer(std::string_view line, std::uint64_t id);

}  // namespace squareq::gates::adapter
