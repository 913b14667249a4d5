#!/usr/bin/env bash
# The other libraries as one archive, for a GPU machine without a network that has Python 3.12 (x86-64) with torch 2.11+cu130, Triton, numpy,
# safetensors, transformers, accelerate and huggingface_hub. There: tar xzf site.tgz -C DIR; PYTHONPATH=DIR/site bench/rivals/run.py ...
#   bench/rivals/carry.sh FOLDER [--architecture 90]     writes FOLDER/site.tgz; needs python3 with pip, unzip, strip and a package index
# Left out: bitsandbytes' libraries for other CUDA versions and for AMD, comfy-kitchen's for AMD, torchao's compiled parts (FP8 and MX formats; the
# int8 path is torch's own operations); device code for other GPUs is blanked (keep_architecture.py).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { printf 'carry.sh: %s\n' "$*" >&2; exit 1; }

packages=(bitsandbytes==0.50.2 torchao==0.18.0 optimum-quanto==0.2.7 comfy-kitchen==0.2.40 sdnq==0.2.8
  diffusers==0.42.1)   # the last one only because sdnq imports it
limit=$((28 * 1000 * 1000))

folder=${1:-}
architecture=90
[ -n "$folder" ] || die "usage: carry.sh FOLDER [--architecture 90]"
[ $# -eq 1 ] || { [ $# -eq 3 ] && [ "$2" = --architecture ] && architecture=$3; } || die "usage: carry.sh FOLDER [--architecture 90]"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
platforms=()
for tag in manylinux1 manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_27 manylinux_2_28; do platforms+=(--platform "${tag}_x86_64"); done
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
  -d "$work/wheels" "${packages[@]}"

site=$work/site
mkdir "$site"
for wheel in "$work"/wheels/*.whl; do unzip -q -o "$wheel" -d "$site"; done
find "$site/bitsandbytes" -name 'libbitsandbytes_*' ! -name 'libbitsandbytes_cuda130.so' -delete
rm "$site/comfy_kitchen/backends/hip/_C.abi3.so"
find "$site/torchao" -name '*.so' -delete
rm -r "$site/test"  # optimum-quanto's own, which would hide Python's
libraries=("$site/bitsandbytes/libbitsandbytes_cuda130.so" "$site/comfy_kitchen/backends/cuda/_C.abi3.so")
for library in "${libraries[@]}"; do
  [ -s "$library" ] || die "not in its wheel: ${library#"$site"/}"
  strip --strip-unneeded "$library"
done
python3 "$here/keep_architecture.py" "$architecture" "${libraries[@]}"

# The same input gives the same bytes.
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf - site | gzip -9n >"$folder/site.tgz.part"
size=$(stat -c %s "$folder/site.tgz.part")
[ "$size" -le "$limit" ] || die "the archive has $size bytes, more than $limit"
mv "$folder/site.tgz.part" "$folder/site.tgz"
for part in "$site"/*/; do
  printf '%8.2f MB packed  %s\n' "$(tar -C "$site" -cf - "$(basename "$part")" | gzip -9n | wc -c | awk '{print $1 / 1e6}')" "$(basename "$part")"
done | sort -rn
printf '%s: %d bytes\n' "$folder/site.tgz" "$size"
