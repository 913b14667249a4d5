// Every case of every gate. One function per gate folder adds that gate's cases; nothing registers itself behind anyone's back.
#pragma once

#include <string_view>
#include <vector>

#include "gates/harness/case.hpp"

namespace squareq::gates {

using Cases = std::vector<Case>;

void add_g00_format(Cases& cases);
void add_g01_scaffold(Cases& cases);
void add_g02_loading(Cases& cases);
void add_g03_memory(Cases& cases);
void add_g04_lora(Cases& cases);
void add_g05_forward(Cases& cases);
void add_g06_registry(Cases& cases);
void add_g07_staging(Cases& cases);
void add_g08_dispatch(Cases& cases);
void add_g09_end_to_end(Cases& cases);
void add_g10_errors(Cases& cases);
void add_g11_cleanup(Cases& cases);
void add_g12_multi_block(Cases& cases);
void add_g13_eviction(Cases& cases);
void add_g14_dtype(Cases& cases);
void add_g15_telemetry(Cases& cases);

/// All cases, by gate and then in the order of registration. Throws Error(INTERNAL) for a duplicate id or a case without a requirement.
const Cases& all_cases();

/// "format", "loading", ...: the gate's subject.
std::string_view gate_subject(int gate);

}  // namespace squareq::gates
