"""Writes the seeds and the dictionary of the fuzz targets: seeds/header/*, seeds/manifest/*, seeds/adapter/*, slab.dict.

usage: make_seeds.py [FOLDER]     (default: the folder of this script)
One seed per check of the header and of the manifest, made by breaking a small good one.
"""

import json
import pathlib
import struct
import sys

out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)

GOOD = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def st(header, data=8):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + bytes(data)


HEADERS = {
    "good": st(GOOD), "two": st('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[1,3],"data_offsets":[8,11]}}', 11),
    "metadata": st('{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "empty": st("{}      ", 0),
    "rank0": st('{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}'), "marker": st('{"m":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]}}', 0),
    "sub_byte": st('{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}', 2), "escape": st('{"\\u00e9\\ud83d\\ude00":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    "bom": st(b"\xef\xbb\xbf" + GOOD.encode()), "space": st(" " + GOOD), "root": st("[1]", 0), "nul": st(GOOD + "\0"), "utf8": st(b'{"\xc0\xaf":{}}', 0),
    "cut": st(GOOD[:-2]), "deep": st('{"a":' + "[" * 70 + "]" * 70 + "}", 0), "dup": st(GOOD[:-1] + "," + GOOD[1:]),
    "meta_null": st('{"__metadata__":null}', 0), "record_array": st('{"a":["F32",[2],[0,8]]}'), "missing": st('{"a":{"dtype":"F32"}}'),
    "dtype": st(GOOD.replace("F32", "f32")), "int": st(GOOD.replace("[2]", "[-2]")), "big": st(GOOD.replace("[2]", "[18446744073709551615,2]")),
    "hole": st(GOOD.replace("[0,8]", "[8,16]"), 16), "size": st(GOOD.replace("[2]", "[3]")), "trailing": st(GOOD, 9), "truncated": st(GOOD, 7),
    "unknown": st(GOOD.replace('"dtype"', '"x":{"y":[1.5,null,true]},"dtype"')),
}

LAYER = {
    "canonical_name": "a", "qweight_key": "a.qweight", "scale_key": "a.scale", "zero_point_key": "a.zero_point", "bias_key": "a.bias", "orig_shape": [2, 3],
    "packed_shape": [2, 4], "pad_k": 4, "quant_bits": 8, "quant_scheme": "per_row_symmetric", "quant_axis": 0, "dtype_qweight": "int8", "dtype_scale": "float32",
    "dtype_zero_point": "float32", "block_id": None,
}
TOP = {
    "model_signature": "0123456789abcdef", "architecture_id": "test", "quant_version": "squareq_bp8_v2", "kernel_abi_version": 1, "min_runtime_version": "0.1.0",
    "layer_count": 1, "total_qweight_bytes": 8, "layers": [LAYER],
}


def manifest(top=None, layer=None):
    changed = {**TOP, **(top or {})}
    if layer:
        changed["layers"] = [{**LAYER, **layer}]
    return json.dumps(changed, indent=2).encode()


MANIFESTS = {
    "good": manifest(), "crlf": manifest().replace(b"\n", b"\r\n"), "cut": manifest()[:200], "empty_layers": manifest({"layers": [], "layer_count": 0}),
    "abi": manifest({"kernel_abi_version": -1}), "type": manifest({"layer_count": 1.0}), "runtime": manifest({"min_runtime_version": "0.10.0"}),
    "unknown": manifest({"x": [{"y": None}]}), "missing": json.dumps({"layers": [{}, 1, []]}).encode(), "shape": manifest(None, {"orig_shape": [0]}),
    "pack": manifest(None, {"pad_k": 2**64 - 1}), "name": manifest(None, {"canonical_name": "a..b\u202e"}), "quant": manifest(None, {"quant_bits": 4}),
    "two": manifest({"layers": [LAYER, LAYER], "layer_count": 2}), "no_bias": manifest(None, {"bias_key": None, "block_id": "x"}), "root": b"[]", "nan": manifest().replace(b"8,", b"NaN,"),
}

OK = '{"id":7,"answer":"ok"}'
FILE = st('{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}', 16)

# A line, a newline, and the output file.
ANSWERS = {
    "ok": OK.encode(), "result": b'{"id":7,"answer":"ok","result":{"context":3}}', "refused": b'{"id":7,"answer":"refused","code":"CALL_SHAPE","message":"m","layer":"l","tensor":"t"}',
    "unsupported": b'{"id":7,"answer":"unsupported","message":"m"}', "wrong_id": b'{"id":8,"answer":"ok"}', "twice": b'{"id":7,"answer":"ok","answer":"ok"}', "array": b"[7]",
    "code": b'{"id":7,"answer":"refused","code":"OK","message":""}', "deep": ('{"id":7,"answer":"ok","result":' + "[" * 70 + "]" * 70 + "}").encode(), "utf8": b'{"id":7,"answer":"\xc0\xaf"}',
    "file": OK.encode() + b"\n" + FILE, "file_cut": OK.encode() + b"\n" + FILE[:-1], "file_dtype": OK.encode() + b"\n" + FILE.replace(b"F32", b"I32"),
    "file_shape": OK.encode() + b"\n" + FILE.replace(b"[2,2]", b"[4,1]"), "file_name": OK.encode() + b"\n" + FILE.replace(b'"a"', b'"b"'), "file_empty": OK.encode() + b"\n",
}

for kind, seeds in (("header", HEADERS), ("manifest", MANIFESTS), ("adapter", ANSWERS)):
    folder = out / "seeds" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (folder / name).write_bytes(data)

DTYPES = "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64".split()
TEXTS = DTYPES + ["dtype", "shape", "data_offsets", "__metadata__", '{"', '":{"', '":[', '"},"', "null", "true", "18446744073709551615", "18446744073709551616", "100000000", "-0", "1e400",
                  "\\u0000", "\\ud83d\\ude00", "squareq_bp8_v2", "per_row_symmetric", "int8", "float32", "0.1.0", *TOP, *LAYER]
LENGTHS = [0, 8, 2**63, 2**64 - 1]
with open(out / "slab.dict", "w", encoding="ascii") as f:
    f.write("# Written by make_seeds.py.\n")
    for text in TEXTS:
        f.write('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"\n')
    for n in LENGTHS:
        f.write('"' + "".join(f"\\x{b:02x}" for b in struct.pack("<Q", n)) + '"\n')
