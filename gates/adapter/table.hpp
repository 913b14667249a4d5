// The adapter as an implementation of the contract: every entry sends its call to the process and copies the answer into the caller's tensors.
#pragma once

#include "gates/adapter/session.hpp"
#include "squareq/contract.h"

namespace squareq::gates::adapter {

/// The table of `session`, whose start() has returned: the groups and operations that its description lists, and no others. One adapter per
/// program: a second call makes the first one's table speak to the new session. The session must outlive every use.
const sq_implementation* table_of(Session& session);

}  // namespace squareq::gates::adapter
