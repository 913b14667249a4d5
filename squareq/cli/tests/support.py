"""What the tests of the command line share: the program, a scratch folder, and safetensors files written by hand (standard library only)."""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
FLUX = ROOT / "fixtures" / "flux"
EMOJI = ROOT / "fixtures" / "emoji"
PROGRAM = sys.argv[1]
LIBRARIES = pathlib.Path(sys.argv[2])
SUFFIXES = (".safetensors", ".manifest.json", ".companion.safetensors")  # of a pair and its companion


def read_file(path):
    """{name: (dtype, shape, bytes)} and the metadata."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    tensors = {n: (r["dtype"], r["shape"], data[start + r["data_offsets"][0] : start + r["data_offsets"][1]]) for n, r in header.items()}
    return tensors, metadata


def write_file(path, tensors, metadata=None):
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(b"".join([struct.pack("<Q", len(text)), text, *(data for _, _, data in tensors.values())]))


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def build_slab(model, folder, name, *more):
    """squareq build, for what all tests of a class share; the slab's stem."""
    subprocess.run([PROGRAM, "build", "--model", model, "--out", folder, "--name", name, "--quiet", *more], check=True, stdout=subprocess.DEVNULL)
    return pathlib.Path(folder) / name


class CommandTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="squareq-cli-")
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def run_squareq(self, *arguments, status=0, environment=None):
        result = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False)
        self.assertEqual(result.returncode, status, f"squareq {' '.join(map(str, arguments))}\n{result.stdout}\n{result.stderr}")
        return result

    def json_of(self, *arguments, status=0, environment=None):
        """The one object on standard output; with a failure's code where there is one."""
        return json.loads(self.run_squareq(*arguments, "--json", status=status, environment=environment).stdout)

    def codes(self, *arguments, status):
        return {p["code"] for p in self.json_of(*arguments, status=status)["problems"]}

    def build(self, model, name, *more):
        self.run_squareq("build", "--model", model, "--out", self.path, "--name", name, "--quiet", *more)
        return self.path / name

    def files(self):
        return sorted(p.name for p in self.path.iterdir())


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
