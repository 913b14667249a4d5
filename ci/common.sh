# Shared by the scripts in ci/: where the tree is, how to speak, how to become root.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
JOBS=${JOBS:-$(nproc)}
STARTED=$SECONDS
# Without it the CMake package of PyPI's torch runs a program on a GPU to choose architectures. Our kernels are compiled for their own list.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}

step() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - STARTED)); }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "needs root (or sudo) to run: $*"
  fi
}

# build PRESET "TARGETS" [cmake arguments...]: configures one preset of CMakePresets.json and builds the targets ("all").
build() {
  local preset=$1 targets=$2; shift 2
  (cd "$ROOT" && cmake --preset "$preset" "$@" >"$ROOT/build/$preset.configure.log" 2>&1) || { cat "$ROOT/build/$preset.configure.log"; die "cmake --preset $preset failed"; }
  # shellcheck disable=SC2086 # the targets are words
  (cd "$ROOT" && cmake --build --preset "$preset" -j "$JOBS" --target $targets)
}

# torch_prefix VENV: the two entries that CMAKE_PREFIX_PATH needs for the torch installed there. With one of them alone a machine
# that also has the distribution's libtorch would pick that up half-way.
torch_prefix() {
  "$1/bin/python" -c 'import os, torch; t = os.path.dirname(torch.__file__); print(t + ";" + t + "/share/cmake")'
}

mkdir -p "$ROOT/build"
