#!/bin/sh
# Packs diffusers, peft and what they need, without torch and numpy, for a machine without network that has Python 3.12, torch and numpy:
#   bench/whole_step/carry.sh site.tgz [PYTHON_VERSION]
# There:  mkdir site && tar xzf site.tgz -C site && PYTHONPATH=$PWD/site python3 bench/whole_step/run.py ...
# Needs pip and network here; binary wheels are taken for manylinux x86_64 and the named Python (3.12), whatever Python runs pip.
set -eu
[ $# -ge 1 ] || { echo "usage: carry.sh OUT.tgz [PYTHON_VERSION]" >&2; exit 2; }
out=$1
version=${2:-3.12}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Every name is listed (--no-deps), so that neither torch nor numpy comes along.
python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: --target "$folder" \
  --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
  diffusers==0.42.1 peft==0.21.2 accelerate==1.15.0 transformers==5.24.0 huggingface_hub==2.4.0 safetensors==0.8.0 tokenizers==0.23.3 regex==2026.11.19 \
  requests==2.34.2 urllib3 idna certifi charset-normalizer filelock==4.3.1 fsspec packaging==26.4 pyyaml==6.0.4 tqdm==4.70.1 psutil==7.2.2 pillow==13.0.0 \
  importlib_metadata zipp typing_extensions click httpx2 httpcore2 h11 anyio truststore
# Command-line programs, tests and type stubs are of no use there. transformers' models but these three, and diffusers' pipelines, are never imported
# by FluxTransformer2DModel and peft.
rm -rf "$folder/bin"
rm -f "$folder"/PIL/_avif* "$folder"/pillow.libs/libavif*
find "$folder/diffusers/pipelines" "$folder/transformers/models" -mindepth 1 -maxdepth 1 -type d ! -name auto ! -name bloom ! -name encoder_decoder -exec rm -rf {} +
find "$folder" -type d \( -name tests -o -name test -o -name __pycache__ -o -name testing \) -prune -exec rm -rf {} +
find "$folder" -type f \( -name '*.pyi' -o -name '*.pyc' -o -name '*.h' -o -name '*.md' \) -delete
foreign=$(find "$folder" -name '*.so' ! -name "*cpython-$(echo "$version" | tr -d .)-*" ! -name '*abi3*' ! -path '*.libs/*')
[ -z "$foreign" ] || { echo "not for Python $version: $foreign" >&2; exit 1; }
tar -C "$folder" --sort=name --owner=0 --group=0 --numeric-owner -czf "$out" .
du -h "$out" | cut -f1
