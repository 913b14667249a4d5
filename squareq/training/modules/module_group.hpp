// The contract's module group answered by our own modules, so that the gates can judge them without torch headers.
#pragma once

#include "squareq/contract.h"

namespace squareq::training {

/// An implementation that offers the group "module" only. JSON of its calls: spec/55-modules.md section 5. A layer's forward runs on the
/// backend that "auto" means. Its contexts may be used from any thread, one call at a time each.
const sq_implementation* module_implementation();

}  // namespace squareq::training
