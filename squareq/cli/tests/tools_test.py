"""inspect, diff, convert, splice, verify --model and compare, as a user runs them: exit statuses, JSON, files, wrong input.

  tools_test.py PROGRAM LIBRARY_FOLDER [unittest arguments]
"""
import json
import math
import pathlib
import random
import shutil
import struct
import tempfile
import unittest

from support import EMOJI, FLUX, ROOT, SUFFIXES, CommandTest, build_slab, floats, main, read_file, write_file


def bare(folder, name):
    (folder / f"{name}.companion.safetensors").unlink()


def pair_bytes(stem):
    return [(stem.parent / f"{stem.name}{suffix}").read_bytes() for suffix in SUFFIXES[:2]]


def changed_copy(source, target, tensor, change):
    """A checkpoint folder with one tensor's bytes changed."""
    shutil.copytree(source, target)
    (file,) = [p for p in target.glob("*.safetensors") if "model" in p.name]
    tensors, metadata = read_file(file)
    dtype, shape, data = tensors[tensor]
    tensors[tensor] = (dtype, shape, change(data))
    write_file(file, tensors, metadata)
    return target


class Convert(CommandTest):
    def test_both_ways_is_what_build_makes_from_the_other_names(self):
        """fixtures/flux/generate.py made `bfl` from the weights of `guided`: qkv and linear1 fused, adaLN halves swapped (SQ-FMT-101)."""
        for source, other, scheme in (("guided", "bfl", "bfl"), ("bfl", "guided", "diffusers")):
            ours = self.build(FLUX / source, source, "--arch-id", "tiny")
            theirs = self.build(FLUX / other, f"built-{other}", "--arch-id", "tiny")
            answer = self.json_of("convert", ours, "--to", scheme, "--out", self.path, "--name", f"converted-{other}")
            converted = self.path / f"converted-{other}"
            self.assertEqual(pair_bytes(converted), pair_bytes(theirs))
            mine, my_metadata = read_file(f"{converted}.companion.safetensors")
            want, metadata = read_file(f"{theirs}.companion.safetensors")
            self.assertEqual(mine, want)
            for key in ("squareq.integrity", "squareq.companion_integrity", "squareq.architecture"):
                self.assertEqual(my_metadata[key], metadata[key])
            self.assertEqual(answer["id_sha256"], json.loads(metadata["squareq.integrity"])["id_sha256"])
            self.run_squareq("verify", converted, "--model", FLUX / other)

    def test_there_and_back_is_byte_identical(self):
        """SQ-FMT-100."""
        first = self.build(EMOJI / "transformer", "emoji")
        self.run_squareq("convert", first, "--to", "bfl", "--out", self.path, "--name", "native")
        self.run_squareq("convert", self.path / "native", "--to", "diffusers", "--out", self.path, "--name", "back")
        self.run_squareq("convert", self.path / "back", "--to", "bfl", "--out", self.path, "--name", "native2")
        for a, b in (("emoji", "back"), ("native", "native2")):
            for suffix in SUFFIXES:
                self.assertEqual((self.path / (a + suffix)).read_bytes(), (self.path / (b + suffix)).read_bytes(), a + suffix)
        self.run_squareq("verify", self.path / "native")

    def test_refusals_leave_no_file(self):
        """Wrong targets, and a source that is not what its companion says (SQ-FMT-106)."""
        slab = self.build(FLUX / "guided", "a")
        before = self.files()
        to = ("--out", self.path, "--name", "b")
        self.assertEqual(self.codes("convert", slab, "--to", "diffusers", *to, status=2), {"CFG_VALUE"})
        self.assertEqual(self.codes("convert", slab, "--to", "sgm", *to, status=2), {"CFG_VALUE"})
        self.assertEqual(self.codes("convert", slab, "--to", "bfl", "--out", self.path, "--name", "a", status=2), {"CFG_VALUE"})
        self.assertEqual(self.codes("convert", slab, "--to", "bfl", "--out", self.path, "--name", "../b", status=2), {"CFG_VALUE"})
        self.assertEqual(self.codes("convert", slab, "--to", "bfl", "--out", self.path / "none", "--name", "b", status=3), {"IO_MISSING"})
        self.assertEqual(self.codes("convert", slab, "--to", "bfl", status=2), {"CFG_FLAG"})
        self.assertEqual(self.codes("convert", slab, status=2), {"CFG_FLAG"})
        self.assertEqual(self.codes("convert", slab, "--to", "bfl", "--model", FLUX / "guided", *to, status=2), {"CFG_FLAG"})
        self.assertEqual(self.files(), before)
        # Of q, k and v, which are one layer in the other scheme, q alone is quantized (SQ-FMT-102).
        part = self.build(FLUX / "guided", "part", "--include-prefix", "transformer_blocks.0.attn.to_q")
        before = self.files()
        self.assertEqual(self.codes("convert", part, "--to", "bfl", *to, status=1), {"MD_LAYER"})
        self.assertEqual(self.files(), before)
        shutil.move(f"{slab}.companion.safetensors", self.path / "aside")
        self.assertEqual(self.codes("convert", slab, "--to", "bfl", *to, status=1), {"MD_ARCH"})
        shutil.move(self.path / "aside", f"{slab}.companion.safetensors")
        # One code changed on the disk: found on the way, whatever the target.
        file = self.path / "a.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        self.assertTrue(self.codes("convert", slab, "--to", "bfl", *to, status=1) <= {"DT_CHECKSUM", "DT_PAD_NONZERO"})
        self.assertEqual(self.files(), before)

    def test_companion_of_a_bare_pair(self):
        """SQ-FMT-104."""
        slab = self.build(EMOJI / "transformer", "emoji")
        companion = (self.path / "emoji.companion.safetensors").read_bytes()
        self.assertEqual(self.codes("convert", slab, "--add-companion", "--model", EMOJI / "transformer", status=2), {"CFG_VALUE"})
        bare(self.path, "emoji")
        before = self.files()
        other = changed_copy(EMOJI / "transformer", self.path / "other", "proj_out.weight", lambda d: d[:-2] + struct.pack("<H", struct.unpack("<H", d[-2:])[0] ^ 0x8000))
        self.assertEqual(self.codes("convert", slab, "--add-companion", "--model", other, status=1), {"MD_BASE"})
        self.assertEqual(self.codes("convert", slab, "--add-companion", "--model", FLUX / "plain", status=1), {"MF_SIGNATURE"})
        self.assertEqual(self.codes("convert", slab, "--add-companion", status=2), {"CFG_FLAG"})
        shutil.rmtree(other)
        self.assertEqual(self.files(), before)
        self.run_squareq("convert", slab, "--add-companion", "--model", EMOJI / "transformer")
        self.assertEqual((self.path / "emoji.companion.safetensors").read_bytes(), companion)


class OtherFamilies(CommandTest):
    """The published tensor lists of both naming schemes (fixtures/models), every size divided by one number, with random weights."""

    def small(self, keys, divisor, seed):
        generator = random.Random(seed)
        high = bytes(0x3C | (b & 0x81) for b in range(256))  # sign and lowest exponent bit stay: bf16 of 2^-7 to 2^-5
        tensors = {}
        for name, shape in json.loads((ROOT / "fixtures" / "models" / keys).read_text()).items():
            small = [d // divisor if d % divisor == 0 else d for d in shape]
            data = bytearray(generator.randbytes(2 * math.prod(small)))
            data[1::2] = data[1::2].translate(high)
            tensors[name] = ("BF16", small, bytes(data))
        return tensors

    def test_names_and_shapes_are_the_published_ones(self):
        for model, scheme, divisor in (("flux2-klein-4b", "bfl", 32), ("sd3.5-medium", "sai", 16), ("sdxl-unet", "sgm", 16)):
            write_file(self.path / "m.safetensors", self.small(f"{model}.diffusers.keys.json", divisor, model))
            slab = self.build(self.path / "m.safetensors", "slab")
            self.run_squareq("convert", slab, "--to", scheme, "--out", self.path, "--name", "native")
            self.run_squareq("convert", self.path / "native", "--to", "diffusers", "--out", self.path, "--name", "back")
            for suffix in SUFFIXES:
                self.assertEqual((self.path / ("slab" + suffix)).read_bytes(), (self.path / ("back" + suffix)).read_bytes(), model + suffix)
            found = {n: t[1] for n, t in read_file(self.path / "native.companion.safetensors")[0].items()}
            for layer in json.loads((self.path / "native.manifest.json").read_text())["layers"]:
                found[layer["canonical_name"] + ".weight"] = layer["orig_shape"]
                if layer["bias_key"]:
                    found[layer["canonical_name"] + ".bias"] = layer["orig_shape"][:1]
            published = json.loads((ROOT / "fixtures" / "models" / f"{model}.{scheme}.keys.json").read_text())
            self.assertEqual(found, {n: [d // divisor if d % divisor == 0 else d for d in s] for n, s in published.items()}, model)
            self.run_squareq("verify", self.path / "native")


class VerifyModel(CommandTest):
    def test_another_fine_tune_is_found_and_named(self):
        """Same topology, one weight's sign changed, one bias, one norm (SQ-FMT-103)."""
        slab = self.build(EMOJI / "transformer", "emoji")
        good = self.json_of("verify", slab, "--model", EMOJI / "transformer")
        self.assertTrue(good["ok"])
        self.assertEqual(good["compared_with_model"], "numbers")
        flip = lambda d: struct.pack("<H", struct.unpack("<H", d[:2])[0] ^ 0x8000) + d[2:]
        for tensor, layer, what in (("transformer_blocks.1.attn.to_k.weight", "transformer_blocks.1.attn.to_k", "transformer_blocks.1.attn.to_k.qweight"),
                                    ("proj_out.bias", "proj_out", "proj_out.bias"),
                                    ("single_transformer_blocks.0.attn.norm_q.weight", None, "single_transformer_blocks.0.attn.norm_q.weight")):
            other = changed_copy(EMOJI / "transformer", self.path / "other", tensor, flip)
            answer = self.json_of("verify", slab, "--model", other, status=1)
            (problem,) = answer["problems"]
            self.assertEqual((problem["code"], problem["layer"], problem["tensor"]), ("MD_BASE", layer, what))
            self.assertRegex(problem["message"], "first at row 0" if layer else "element 0")
            for cheap in ("--model-topology", "--quick"):
                answer = self.json_of("verify", slab, "--model", other, cheap)
                self.assertEqual(answer["compared_with_model"], "topology")
            self.assertIn("numbers were not compared", self.run_squareq("verify", slab, "--model", other, "--model-topology").stdout)
            shutil.rmtree(other)

    def test_bare_pairs_prefixes_and_generic_builds(self):
        for name, more in (("prefix", ["--include-prefix", "transformer_blocks.0."]), ("generic", ["--arch", "none"]), ("pair", ["--no-companion", "--pack-k", "1"])):
            slab = self.build(FLUX / "guided", name, *more)
            self.assertEqual(self.json_of("verify", slab, "--model", FLUX / "guided")["compared_with_model"], "numbers", name)
        self.assertEqual(self.codes("verify", self.path / "pair", "--model", FLUX / "plain", status=1), {"MF_SIGNATURE"})
        self.assertEqual(self.codes("verify", self.path / "pair", "--model-topology", status=2), {"CFG_FLAG"})


def negated(data):
    """bf16 numbers with their signs changed."""
    out = bytearray(data)
    out[1::2] = out[1::2].translate(bytes(b ^ 0x80 for b in range(256)))
    return bytes(out)


class Splice(CommandTest):
    """`a` is the slab of a model, `b` that of the same model with every sign changed; both are built once and never written."""

    @classmethod
    def setUpClass(cls):
        cls.built = tempfile.TemporaryDirectory(prefix="squareq-cli-")
        cls.addClassCleanup(cls.built.cleanup)
        model = pathlib.Path(cls.built.name) / "model"
        shutil.copytree(EMOJI / "transformer", model)
        (file,) = model.glob("*.safetensors")
        tensors, metadata = read_file(file)
        write_file(file, {n: (t[0], t[1], negated(t[2])) for n, t in tensors.items()}, metadata)
        for source, name in ((EMOJI / "transformer", "a"), (model, "b")):
            build_slab(source, cls.built.name, name)

    def setUp(self):
        super().setUp()
        for name in "ab":
            for suffix in SUFFIXES:
                shutil.copy(pathlib.Path(self.built.name) / (name + suffix), self.path)
        self.a, self.b = self.path / "a", self.path / "b"

    def test_blocks_come_from_the_other_slab(self):
        """SQ-FMT-105."""
        answer = self.json_of("splice", self.a, "--from", self.b, "--blocks", "1,3-4,single_transformer_blocks.5", "--out", self.path, "--name", "c")
        blocks = ["transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1", "single_transformer_blocks.5"]
        self.assertEqual(answer["blocks"], blocks)
        self.run_squareq("verify", self.path / "c")
        self.assertEqual((self.path / "c.manifest.json").read_bytes(), (self.path / "a.manifest.json").read_bytes())
        for suffix in (".safetensors", ".companion.safetensors"):
            a, b, c = (read_file(self.path / (name + suffix))[0] for name in "abc")
            self.assertEqual(list(c), list(a))
            for name, tensor in c.items():
                taken = any(name.startswith(block + ".") for block in blocks)
                self.assertEqual(tensor, (b if taken else a)[name], name)
        source = json.loads(read_file(self.path / "c.companion.safetensors")[1]["squareq.source"])
        self.assertEqual(source["spliced"][0]["blocks"], blocks)

    def test_everything_taken_is_the_other_slab(self):
        self.run_squareq("splice", self.a, "--from", self.b, "--blocks", "0-8,outside", "--out", self.path, "--name", "c")
        self.assertTrue(self.json_of("diff", self.path / "c", self.b)["ok"])

    def test_refusals(self):
        to = ("--out", self.path, "--name", "c")
        for spec in ("9", "0-9", "2-1", "", "a", "transformer_blocks.3", "0,,1", "-1", "transformer_blocks.0-9"):
            self.assertEqual(self.codes("splice", self.a, "--from", self.b, f"--blocks={spec}", *to, status=2), {"CFG_VALUE" if spec else "CFG_FLAG"}, spec)
        plain = self.build(FLUX / "plain", "plain")
        self.assertEqual(self.codes("splice", self.a, "--from", plain, "--blocks", "0", *to, status=1), {"MF_SIGNATURE"})
        other = self.build(EMOJI / "transformer", "id", "--arch-id", "x")
        self.assertEqual(self.codes("splice", self.a, "--from", other, "--blocks", "0", *to, status=1), {"MF_ARCH"})
        padded = self.build(EMOJI / "transformer", "padded", "--pack-k", "128")
        self.assertEqual(self.codes("splice", self.a, "--from", padded, "--blocks", "0", *to, status=1), {"MD_LAYER"})
        pair = self.build(EMOJI / "transformer", "pair", "--no-companion")
        self.assertEqual(self.codes("splice", self.a, "--from", pair, "--blocks", "0", *to, status=1), {"MD_ARCH"})
        self.assertEqual(self.codes("splice", self.a, "--from", self.b, "--blocks", "0", "--out", self.path, "--name", "a", status=2), {"CFG_VALUE"})
        # A bare pair has names, no numbers.
        pair2 = self.build(EMOJI / "transformer", "pair2", "--no-companion")
        self.assertEqual(self.codes("splice", pair, "--from", pair2, "--blocks", "0", *to, status=2), {"CFG_VALUE"})
        self.run_squareq("splice", pair, "--from", pair2, "--blocks", "transformer_blocks.0-1", *to)
        self.assertEqual(pair_bytes(self.path / "c"), pair_bytes(pair))
        self.assertFalse([f for f in self.files() if f.endswith(".tmp")])


class Diff(CommandTest):
    def test_same_and_different(self):
        a = self.build(FLUX / "guided", "a")
        self.assertTrue(self.json_of("diff", a, self.build(FLUX / "guided", "b"))["ok"])
        self.assertIn("the same", self.run_squareq("diff", a, self.path / "b").stdout)
        # Another padding: the numbers are the same, the layers are not.
        answer = self.json_of("diff", a, self.build(FLUX / "guided", "p", "--pack-k", "1"), status=1)
        self.assertTrue(answer["layers"])
        self.assertTrue(all(l["codes_changed"] == 0 and l["relative_l2"] == 0 and l["pad_k"] == [64, 1] for l in answer["layers"]))
        bare(self.path, "b")
        answer = self.json_of("diff", a, self.path / "b", status=1)
        self.assertEqual([f["name"] for f in answer["fields"]], ["companion"])
        answer = self.json_of("diff", a, self.build(FLUX / "bfl", "n"), status=1)
        self.assertIn("model_signature", [f["name"] for f in answer["fields"]])
        self.assertEqual({l.get("only_in") for l in answer["layers"]}, {"a", "b"})
        self.run_squareq("diff", a, self.path / "none", status=3)

    def test_numbers_against_a_slow_computation(self):
        a = self.build(FLUX / "guided", "a", "--no-companion")
        name = "transformer_blocks.0.attn.to_q"
        b = self.build(FLUX / "guided", "b", "--no-companion")
        file = self.path / "b.safetensors"
        tensors, metadata = read_file(file)
        codes = bytearray(tensors[f"{name}.qweight"][2])
        before = struct.unpack("b", codes[5:6])[0]
        after = before - 7 if before > 0 else before + 7
        codes[5:6] = struct.pack("b", after)
        tensors[f"{name}.qweight"] = (*tensors[f"{name}.qweight"][:2], bytes(codes))
        scales = list(struct.unpack(f"<{len(tensors[f'{name}.scale'][2]) // 4}f", tensors[f"{name}.scale"][2]))
        old = list(scales)
        scales[3] *= 2  # exact in fp32
        tensors[f"{name}.scale"] = (*tensors[f"{name}.scale"][:2], floats(*scales))
        write_file(file, dict(sorted(tensors.items(), key=lambda i: ({"F32": 0, "I8": 1}[i[1][0]], i[0]))), metadata)
        answer = self.json_of("diff", b, a, status=1)
        (layer,) = answer["layers"]
        self.assertEqual((layer["name"], layer["codes_changed"], layer["max_code_difference"], layer["scales_changed"], layer["scale_ratio"]), (name, 1, 7, 1, 2.0))
        shape = tensors[f"{name}.qweight"][1]
        original = struct.unpack(f"{shape[0] * shape[1]}b", read_file(self.path / "a.safetensors")[0][f"{name}.qweight"][2])
        size = sum((q * old[i // shape[1]]) ** 2 for i, q in enumerate(original))
        change = (7 * old[0]) ** 2 + sum((q * old[3]) ** 2 for q in original[3 * shape[1] : 4 * shape[1]])
        self.assertAlmostEqual(layer["relative_l2"] / (change / size) ** 0.5, 1, places=12)


class Compare(CommandTest):
    def test_tolerance_nonfinite_and_worst(self):
        nan, inf = float("nan"), float("inf")
        a, b = self.path / "a.safetensors", self.path / "b.safetensors"
        write_file(a, {"x": ("F32", (2, 3), floats(1, 2, 3, 4, nan, inf)), "y": ("I64", (1,), struct.pack("<q", 2**62 + 1)), "only": ("U8", (1,), b"\1")})
        write_file(b, {"x": ("F32", (2, 3), floats(1, 2, 3.5, 4, nan, inf)), "y": ("I64", (1,), struct.pack("<q", 2**62))})
        answer = self.json_of("compare", a, b, status=1)
        x, y = (next(t for t in answer["tensors"] if t["name"] == n) for n in "xy")
        self.assertEqual((x["beyond"], x["max_abs"], x["worst"]), (1, 0.5, {"index": [0, 2], "a": 3, "b": 3.5}))
        self.assertEqual((x["nan"], x["inf"], x["nonfinite_differ"]), ([1, 1], [1, 1], 0))
        self.assertAlmostEqual(x["relative_l2"], 0.5 / (1 + 4 + 12.25 + 16) ** 0.5, places=12)
        self.assertEqual((y["beyond"], y["max_abs"]), (1, 1))
        self.run_squareq("compare", a, b, "--rtol", "0.2", status=1)
        self.run_squareq("compare", a, b, "--rtol", "0.2", "--common-only")
        self.run_squareq("compare", a, b, "--atol", "0.49", "--common-only", status=1)
        self.assertIn("worst [0, 2]", self.run_squareq("compare", a, b, status=1).stdout)

    def test_bits_zeros_shapes_dtypes(self):
        a, b = self.path / "a.safetensors", self.path / "b.safetensors"
        write_file(a, {"z": ("F32", (1,), floats(0.0))})
        write_file(b, {"z": ("F32", (1,), floats(-0.0))})
        self.run_squareq("compare", a, a)
        self.run_squareq("compare", a, b, status=1)  # bit for bit
        self.run_squareq("compare", a, b, "--atol", "1e-30")
        write_file(b, {"z": ("F64", (1,), struct.pack("<d", 0.0))})
        self.run_squareq("compare", a, b, status=1)
        self.run_squareq("compare", a, b, "--any-dtype")
        write_file(b, {"z": ("F32", (1, 1), floats(0.0))})
        self.run_squareq("compare", a, b, "--atol", "1", status=1)
        write_file(b, {"z": ("F32", (1,), floats(float("nan")))})
        self.assertEqual(self.json_of("compare", a, b, "--atol", "1e9", status=1)["tensors"][0]["nonfinite_differ"], 1)
        for dtype, data in (("F8_E4M3", b"\1"), ("C64", b"\1" * 8)):
            write_file(a, {"z": (dtype, (1,), data)})
            write_file(b, {"z": (dtype, (1,), b"\2" + data[1:])})
            self.run_squareq("compare", a, a)
            self.assertEqual(self.json_of("compare", a, b, status=1)["tensors"][0]["compared"], "bytes")

    def test_bad_input(self):
        a = self.path / "a.safetensors"
        write_file(a, {"z": ("F32", (0,), b"")})
        self.run_squareq("compare", a, a)
        self.assertEqual(self.codes("compare", a, self.path / "none", status=3), {"IO_MISSING"})
        self.assertEqual(self.codes("compare", a, a, "--rtol=-1", status=2), {"CFG_VALUE"})
        self.assertEqual(self.codes("compare", a, a, "--rtol=nan", status=2), {"CFG_VALUE"})
        (self.path / "bad.safetensors").write_bytes(b"\0" * 7)
        self.assertEqual(self.codes("compare", a, self.path / "bad.safetensors", status=1), {"ST_TOO_SMALL"})
        self.run_squareq("compare", a, status=2)


class Inspect(CommandTest):
    def test_scales_are_counted(self):
        slab = self.build(FLUX / "guided", "a")
        answer = self.json_of("inspect", slab)
        tensors, _ = read_file(f"{slab}.safetensors")
        scales = [s for n, t in tensors.items() if n.endswith(".scale") for s in struct.unpack(f"<{t[1][0]}f", t[2])]
        self.assertEqual((answer["scales"]["rows"], sum(b["rows"] for b in answer["scales"]["log2"])), (len(scales), len(scales)))
        for b in answer["scales"]["log2"]:
            self.assertEqual(b["rows"], sum(2.0 ** b["exponent"] <= s < 2.0 ** (b["exponent"] + 1) for s in scales))
        self.assertEqual(struct.pack("<f", answer["scales"]["min"]), struct.pack("<f", min(scales)))
        self.assertEqual(sum(b["bytes"] for b in answer["blocks"]), sum(len(t[2]) for t in tensors.values()))
        text = self.run_squareq("inspect", slab).stdout
        for word in ("scales", "####", "architecture", "identity", "transformer_blocks.1", "norm_q.weight"):
            self.assertIn(word, text)
        bare(self.path, "a")
        self.assertIsNone(self.json_of("inspect", slab)["companion"])
        self.assertIn("bare V2 pair", self.run_squareq("inspect", slab).stdout)


class Plan(CommandTest):
    def test_adapters_are_those_of_the_default_targets(self):
        """FLUX.1, width d: a double block has 8 projections of the attentions and two MLPs, a single block q, k, v, proj_mlp and proj_out."""
        d, rank, tokens = 3072, 16, 32 * 32 + 512
        blocks = 19 * [4 * rank * (8 * 2 * d + 2 * 2 * (d + 4 * d))] + 38 * [4 * rank * (3 * 2 * d + (d + 4 * d) + (5 * d + d))]  # FP32
        # Backward reaches block b with the inputs of blocks 0 to b and the gradients of those from b on.
        most = max((b + 1) * tokens * d * 2 + sum(blocks[b:]) for b in range(len(blocks)))
        for model in ("flux1-dev", "flux1-schnell"):
            answer = self.json_of("plan", "--model", model, "--rank", rank, "--resolution", 512, "--dtype", "bf16", "--text-tokens", 512)
            consumers = {c["name"]: c["bytes"] for c in answer["consumers"]}
            self.assertEqual(consumers["adapters and their two moments"], 3 * sum(blocks))
            self.assertEqual(consumers["block inputs and adapter gradients"], most)


class Help(CommandTest):
    def test_every_command_teaches(self):
        for command in ("inspect", "diff", "convert", "splice", "verify", "compare"):
            self.assertGreater(len(self.run_squareq(command, "--help").stdout), 400, command)


if __name__ == "__main__":
    main()
