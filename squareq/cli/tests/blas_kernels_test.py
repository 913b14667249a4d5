#!/usr/bin/env python3
"""The program multiplies with kernels that fit the processor, and leaves a choice of the user alone.   blas_kernels_test.py SQUAREQ BACKENDS"""
import json
import os
import pathlib
import subprocess
import sys

NOT_RUN = 77
BEFORE_AVX = {"Katmai", "Coppermine", "Northwood", "Prescott", "Core2", "Nehalem"}


def kernels(program, choice=None):
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    if choice:
        environment["OPENBLAS_CORETYPE"] = choice
    done = subprocess.run([program, "gates", "--backend", "cpu", "--gate", "15", "--json", "--quiet"], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["describe"]["details"]["blas_kernels"]


def main():
    program = sys.argv[1]
    chosen = kernels(program)
    info = pathlib.Path("/proc/cpuinfo")
    flags = info.read_text().split("flags", 1)[-1].splitlines()[0].split() if info.exists() else []
    if not chosen or "avx2" not in flags or "fma" not in flags:
        print(f"not run: BLAS names its kernels '{chosen}', AVX2 and FMA {'are' if 'avx2' in flags else 'are not'} there")
        return NOT_RUN
    assert chosen not in BEFORE_AVX, f"multiplies with {chosen} kernels on a processor with AVX2"
    assert kernels(program, "Prescott") == "Prescott", "did not leave OPENBLAS_CORETYPE=Prescott alone"
    print(f"{chosen}; Prescott when asked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
