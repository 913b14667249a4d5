#!/usr/bin/env python3
"""Holds our reader against the official safetensors package: no file that we accept may be refused by it.

  check_official.py SQUAREQ [--limit N] FOLDER...

SQUAREQ: the program; FOLDER: seeds or a corpus of fuzz_header, fuzz_pair or fuzz_lora, of which at most N files are taken, evenly.

The folder's name says what its files are (header, pair, lora). Prints one line per disagreement and a count. Exits with 1 where we
accept what the package refuses, with 77 ("not run") where the package is not installed.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys
import tempfile


def slab_of(kind, data):
    """The safetensors file inside one input, as the fuzz target builds it; None where there is none."""
    if kind == "header":
        return data
    if kind == "pair":
        if len(data) < 4:
            return None
        length = struct.unpack("<I", data[:4])[0]
        return data[4 + min(length, len(data) - 4) :]
    if kind == "lora":
        if len(data) < 2:
            return None
        length = min(struct.unpack("<H", data[:2])[0], len(data) - 2)
        header, pattern = data[2 : 2 + length], data[2 + length :] or b"\0"
        try:
            ends = [r["data_offsets"][1] for r in json.loads(header).values() if isinstance(r, dict) and len(r.get("data_offsets", [])) == 2]
        except (ValueError, AttributeError, TypeError):
            ends = []
        size = min(max((e for e in ends if isinstance(e, int) and e >= 0), default=0), 256 << 10)
        return struct.pack("<Q", length) + header + (pattern * (size // len(pattern) + 1))[:size]
    sys.exit(f"unknown kind of corpus '{kind}': the folder must be called header, pair or lora")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--limit", type=int, default=1 << 30)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        print("not run: Python has no safetensors package")
        return 77
    bad = both = neither = stricter = 0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "file.safetensors"
        for corpus in args.folders:
            files = sorted(corpus.iterdir())
            for file in files[:: max(1, -(-len(files) // args.limit))]:
                data = slab_of(corpus.name, file.read_bytes())
                if data is None:
                    continue
                path.write_bytes(data)
                ours = subprocess.run([args.program, "verify", "--container", path, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                if ours.returncode not in (0, 1):
                    print(f"{file}: the program ended with {ours.returncode}: {ours.stderr.decode(errors='replace')[:200]}")
                    bad += 1
                    continue
                try:
                    deserialize(data)
                    theirs, why = True, ""
                except (SafetensorError, ValueError) as error:
                    theirs, why = False, str(error)
                if ours.returncode == 0 and not theirs:
                    print(f"{file}: we accept it, the package says: {why[:200]}")
                    bad += 1
                both += ours.returncode == 0 and theirs
                neither += ours.returncode == 1 and not theirs
                stricter += ours.returncode == 1 and theirs
    print(f"{both} accepted by both, {neither} by neither, {stricter} refused by us alone, {bad} wrong")
    if both == 0:
        print("nothing was accepted by both: is this the right folder and program?")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
