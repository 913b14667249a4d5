// The tables of function pointers that implementation.cpp hands out.
#pragma once

#include "squareq/contract.h"

namespace squareq::reference {

extern const sq_linear_group linear_group;
extern const sq_stream_group stream_group;
extern const sq_telemetry_group telemetry_group;

}  // namespace squareq::reference
