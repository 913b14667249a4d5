"""Writes the seeds and the dictionaries of the fuzz targets: seeds/TARGET/*, slab.dict, training.dict.

usage: make_seeds.py [FOLDER]     (default: the folder of this script)
One seed per check, made by breaking a small good file: headers, manifests, pairs of both, LoRA files, run configurations, answers of an adapter.
"""

import hashlib
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


# Pairs: the slab of MANIFESTS["good"] (one layer of 2 rows, 3 columns padded to 4, with bias), whole and broken in one place.
TENSORS = {"a.bias": ("F32", [2]), "a.scale": ("F32", [2]), "a.zero_point": ("F32", [2]), "a.qweight": ("I8", [2, 4])}
DATA = {"a.bias": struct.pack("<2f", 1, -1), "a.scale": struct.pack("<2f", 0.5, 0.25), "a.zero_point": bytes(8), "a.qweight": struct.pack("8b", 127, -127, 3, 0, 1, 2, 127, 0)}


def slab(tensors=TENSORS, data=None, metadata=None):
    header, body = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape) in tensors.items():
        raw = {**DATA, **(data or {})}.get(name, bytes(4))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text.encode() + body


def signature(*layers):
    return hashlib.sha256("|".join(sorted(layers)).encode()).hexdigest()[:16]


SIGNED = {"model_signature": signature("a:2:3:True")}


def pair(manifest_text, slab_bytes):
    return struct.pack("<I", len(manifest_text)) + manifest_text + slab_bytes


def without(name):
    return {n: t for n, t in TENSORS.items() if n != name}


FLOAT = lambda a, b: struct.pack("<2f", a, b)
GOOD_MANIFEST = manifest(SIGNED)
PAIRS = {
    "good": pair(GOOD_MANIFEST, slab()), "no_bias": pair(manifest({"model_signature": signature("a:2:3:False")}, {"bias_key": None}), slab(without("a.bias"))),
    "metadata": pair(GOOD_MANIFEST, slab(metadata={"made_by": "someone"})), "orphan_bias": pair(manifest(SIGNED, {"bias_key": None}), slab()),
    "orphan": pair(GOOD_MANIFEST, slab({**TENSORS, "b.scale": ("F32", [1])})), "absent": pair(GOOD_MANIFEST, slab(without("a.scale"))),
    "alias": pair(manifest(SIGNED, {"zero_point_key": "a.scale"}), slab()), "dtype": pair(GOOD_MANIFEST, slab({**TENSORS, "a.qweight": ("U8", [2, 4])})),
    "shape": pair(GOOD_MANIFEST, slab({**TENSORS, "a.qweight": ("I8", [4, 2])})), "rank9": pair(GOOD_MANIFEST, slab({**TENSORS, "a.qweight": ("I8", [1] * 8 + [8])})),
    "nan_scale": pair(GOOD_MANIFEST, slab(data={"a.scale": FLOAT(float("nan"), 1)})), "zero_scale": pair(GOOD_MANIFEST, slab(data={"a.scale": FLOAT(0.5, 0)})),
    "subnormal": pair(GOOD_MANIFEST, slab(data={"a.scale": FLOAT(0.5, 1e-40)})), "inf_bias": pair(GOOD_MANIFEST, slab(data={"a.bias": FLOAT(float("inf"), 0)})),
    "zero_point": pair(GOOD_MANIFEST, slab(data={"a.zero_point": FLOAT(0, 1)})), "minus_zero": pair(GOOD_MANIFEST, slab(data={"a.zero_point": FLOAT(-0.0, 0)})),
    "minus_128": pair(GOOD_MANIFEST, slab(data={"a.qweight": struct.pack("8b", -128, 0, 0, 0, 0, 0, 0, 0)})),
    "padding": pair(GOOD_MANIFEST, slab(data={"a.qweight": struct.pack("8b", 1, 0, 0, 9, 0, 0, 0, 0)})), "signature": pair(manifest(), slab()),
    "cut_slab": pair(GOOD_MANIFEST, slab()[:-1]), "trailing": pair(GOOD_MANIFEST, slab() + b"\0"), "cut_manifest": pair(GOOD_MANIFEST[:-1], slab()), "no_manifest": pair(b"", slab()),
    "no_slab": pair(GOOD_MANIFEST, b""), "swapped": pair(slab(), GOOD_MANIFEST),
}

# LoRA files of fixtures/lora/tiny (linears of 32 x 32): 2 bytes length of the header, its text, and the pattern that fills the data.
ONES = struct.pack("<f", 1.0)


def lora(tensors, metadata=None, fill=ONES):
    header, at = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape) in tensors.items():
        size = {"F32": 4, "F64": 8, "BF16": 2, "F16": 2, "I64": 8, "I8": 1}[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<H", len(text)) + text + fill


def adapter(module, down, up, alpha=".alpha", rank=2, rows=32, columns=32, dtype="F32"):
    tensors = {module + down: (dtype, [rank, columns]), module + up: (dtype, [rows, rank])}
    if alpha:
        tensors[module + alpha] = ("F32", [])
    return tensors


LAYER_NAME = "transformer_blocks.0.attn.to_out.0"
PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
BFL = "double_blocks.0.img_attn."
ADAPTER_METADATA = lambda **more: {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4, **more})}
LORAS = {
    "peft": lora(adapter("transformer." + LAYER_NAME, *PEFT, alpha="")), "peft_metadata": lora(adapter("transformer." + LAYER_NAME, *PEFT, alpha=""), ADAPTER_METADATA()),
    "peft_rslora": lora(adapter("transformer." + LAYER_NAME, *PEFT, alpha=""), ADAPTER_METADATA(**{"transformer.use_rslora": True})),
    "peft_pattern": lora(adapter("transformer." + LAYER_NAME, *PEFT, alpha=""), ADAPTER_METADATA(**{"transformer.alpha_pattern": {"^to_out.0": 8}})),
    "dora": lora(adapter("transformer." + LAYER_NAME, *PEFT, alpha=""), ADAPTER_METADATA(**{"transformer.use_dora": True})),
    "metadata_and_alpha": lora(adapter("transformer." + LAYER_NAME, *PEFT), ADAPTER_METADATA()), "metadata_no_json": lora(adapter("transformer." + LAYER_NAME, *PEFT), {"lora_adapter_metadata": "{"}),
    "peft_model": lora(adapter("base_model.model." + LAYER_NAME, ".lora_A.default.weight", ".lora_B.default.weight", alpha="")),
    "old": lora(adapter(LAYER_NAME, ".lora.down.weight", ".lora.up.weight")), "kohya": lora(adapter("lora_unet_double_blocks_0_img_attn_proj", *KOHYA)),
    "kohya_fused": lora(adapter("lora_unet_double_blocks_0_img_attn_qkv", *KOHYA, rank=3, rows=96)),
    "kohya_fused_zero": lora(adapter("lora_unet_double_blocks_0_img_attn_qkv", *KOHYA, rank=6, rows=96), fill=b"\0"),
    "kohya_diffusers": lora(adapter("lora_transformer_transformer_blocks_0_attn_to_q", *KOHYA)), "lycoris": lora(adapter("lycoris_transformer_blocks_0_attn_to_q", *KOHYA)),
    "comfy": lora(adapter("diffusion_model." + BFL + "proj", *PEFT)), "comfy_fused": lora(adapter("diffusion_model." + BFL + "qkv", *PEFT, rows=96)),
    "final": lora(adapter("diffusion_model.final_layer.adaLN_modulation.1", *PEFT, rows=64)), "bf16": lora(adapter(LAYER_NAME, *PEFT, dtype="BF16")),
    "f64": lora(adapter(LAYER_NAME, *PEFT, dtype="F64")), "int": lora(adapter(LAYER_NAME, *PEFT, dtype="I8")), "nan": lora(adapter(LAYER_NAME, *PEFT), fill=b"\xff"),
    "unknown": lora(adapter("transformer.nothing", *PEFT)), "no_up": lora({LAYER_NAME + PEFT[0]: ("F32", [2, 32])}), "rank0": lora(adapter(LAYER_NAME, *PEFT, rank=0)),
    "shape": lora(adapter(LAYER_NAME, *PEFT, columns=33)), "vector": lora({LAYER_NAME + PEFT[0]: ("F32", [32]), LAYER_NAME + PEFT[1]: ("F32", [32])}), "empty": lora({}),
    "twice": lora({**adapter(LAYER_NAME, *PEFT), **adapter("transformer." + LAYER_NAME, *PEFT)}),
    "same_matrix": lora({**adapter(LAYER_NAME, *PEFT), **adapter(LAYER_NAME, *KOHYA)}),
    "whole_and_part": lora({**adapter("diffusion_model." + BFL + "qkv", *PEFT, rows=96), **adapter("transformer.transformer_blocks.0.attn.to_q", *PEFT)}),
    "no_suffix": lora({LAYER_NAME + ".weight": ("F32", [2, 2])}),
}

# Run configurations.
RUN = {"model": {"slab": "s"}, "data": {"train": "c.safetensors"}, "train": {"steps": 10}, "output": {"dir": "o"}}


def run(**sections):
    merged = {name: {**RUN.get(name, {}), **sections.get(name, {})} for name in {**RUN, **sections}}
    return json.dumps(merged).encode()


CONFIGS = {
    "good": run(), "lists": run(data={"train": ["a", "b"], "validation": ["v"], "caption_dropout": 0.5, "height": 4, "width": 8}),
    "lora": run(lora={"rank": 8, "alpha": 4.5, "targets": ["attention"], "init": "squareq", "dropout": 0.1, "start": "l.safetensors"}),
    "patterns": run(lora={"targets": ["*.attn.*", "proj_*"]}), "optimizer": run(optimizer={"name": "adamw", "lr": 1e-3, "betas": [0.8, 0.95], "eps": 1e-9, "weight_decay": 0.01}),
    "schedule": run(schedule={"name": "cosine", "warmup": 3}),
    "train": run(train={"steps": 5, "batch": 2, "accumulation": 4, "checkpointing": False, "dtype": "bf16", "timesteps": "logit_normal", "timestep_mean": 0.5, "timestep_std": 2, "timestep_shift": 3,
                        "guidance": 3.5, "seed": 2**64 - 1, "clip": 0, "max_skipped": 1, "draws": "d.safetensors"}),
    "flux_shift": run(train={"timesteps": "flux_shift"}), "memory": run(memory={"budget": "1.5GiB", "vram": 1 << 33, "resident_blocks": 3, "threads": 4}),
    "output": run(output={"dir": "o", "save_every": 0, "sample_every": 5}, sample={"prompts": "p.safetensors", "count": 2, "steps": 4, "guidance": 1, "seed": 3}),
    "null": run(model={"slab": "s", "base": None}), "unknown": run(lora={"rnak": 4}), "section": run(lroa={}), "float_for_int": run(train={"steps": 1e1}), "negative": run(train={"steps": -1}),
    "big": run(train={"steps": 2**64}), "text_for_number": run(lora={"alpha": "16"}), "huge": run(optimizer={"lr": 1e300}), "bytes": run(memory={"budget": "99999999999TiB"}),
    "bytes_minus": run(memory={"budget": "-1"}), "empty_path": run(model={"slab": ""}), "empty_list": run(data={"train": []}), "missing": b'{"model":{"slab":"s"}}',
    "twice": b'{"model":{"slab":"a","slab":"b"}}', "root": b"[1]", "deep": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "bom": b"\xef\xbb\xbf" + run(), "nul": run() + b"\0x",
    "range": b'{"optimizer":{"lr":1e400}}', "control": b'{"lora":{"r\\u001b[2Jank":1}}', "half": run()[:40], "null_section": b'{"model":null}',
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

for kind, seeds in (("header", HEADERS), ("manifest", MANIFESTS), ("pair", PAIRS), ("lora", LORAS), ("config", CONFIGS), ("adapter", ANSWERS)):
    folder = out / "seeds" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (folder / name).write_bytes(data)

DTYPES = "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64".split()
TEXTS = DTYPES + ["dtype", "shape", "data_offsets", "__metadata__", '{"', '":{"', '":[', '"},"', "null", "true", "18446744073709551615", "18446744073709551616", "100000000", "-0", "1e400",
                  "\\u0000", "\\ud83d\\ude00", "squareq_bp8_v2", "per_row_symmetric", "int8", "float32", "0.1.0", *TOP, *LAYER]
LENGTHS = [0, 8, 2**63, 2**64 - 1]
NAMES = sorted({key for section in (*(json.loads(CONFIGS[c]) for c in ("lists", "lora", "optimizer", "schedule", "train", "memory", "output")),) for part in section.values() for key in part})
WORDS = [*RUN, "lora", "optimizer", "schedule", "memory", "sample", *NAMES, "GiB", "MiB", "auto", "bf16", "f32", "peft", "gaussian", "linear", "constant", "default", "all-block-linears", "uniform",
         *PEFT, *KOHYA, ".alpha", ".lora_A.default.weight", ".lora.down.weight", "transformer.", "diffusion_model.", "base_model.model.", "lora_unet_", "lora_transformer_", "lycoris_",
         "lora_adapter_metadata", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", LAYER_NAME, "attn.to_q", "double_blocks_0_img_attn_qkv", BFL + "qkv", "dtype", "shape", "data_offsets", "__metadata__", "F32", "F64", "BF16", "F16"]


def write_dictionary(name, texts, numbers):
    with open(out / name, "w", encoding="ascii") as f:
        f.write("# Written by make_seeds.py.\n")
        for text in dict.fromkeys(texts):
            f.write('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"\n')
        for n in numbers:
            f.write('"' + "".join(f"\\x{b:02x}" for b in struct.pack("<Q", n)) + '"\n')


write_dictionary("slab.dict", TEXTS, LENGTHS)
write_dictionary("training.dict", WORDS, [])
