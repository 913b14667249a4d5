# Shared by the scripts in ci/: where the tree is, how to speak, how to become root.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
JOBS=${JOBS:-$(nproc)}
STARTED=$SECONDS

step() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - STARTED)); }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "needs root (or sudo) to run: $*"
  fi
}

# build PRESET [cmake arguments...]: configures and builds one preset of CMakePresets.json.
build() {
  local preset=$1; shift
  (cd "$ROOT" && cmake --preset "$preset" "$@" >"$ROOT/build/$preset.configure.log" 2>&1) || { cat "$ROOT/build/$preset.configure.log"; die "cmake --preset $preset failed"; }
  (cd "$ROOT" && cmake --build --preset "$preset" -j "$JOBS")
}

# torch_prefix VENV: the two entries that CMAKE_PREFIX_PATH needs for the torch installed there. With one of them alone a machine
# that also has the distribution's libtorch would pick that up half-way.
torch_prefix() {
  "$1/bin/python" -c 'import os, torch; t = os.path.dirname(torch.__file__); print(t + ";" + t + "/share/cmake")'
}

mkdir -p "$ROOT/build"
