#include "reference/tests/harness.hpp"
