"""--shadow reference on forward and train: a right backend stays within its bounds, a wrong number is named by step and layer.

  shadow_test.py PROGRAM LIBRARY_FOLDER [unittest arguments]
"""
import json
import tempfile
import unittest

from support import EMOJI, FLUX, LIBRARIES, CommandTest, build_slab, main, read_file

ONE_CHANGE = LIBRARIES / "libsquareq_one_change.so"
MUTANTS = LIBRARIES / "libsquareq_mutants.so"


class Forward(CommandTest):
    def arguments(self, *more):
        return ("forward", "--model", self.slab, "--inputs", FLUX / "guided" / "inputs.safetensors", "--lora", FLUX / "guided" / "lora.safetensors",
                "--grad", "--output", self.path / "out.safetensors", "--shadow", "reference", *more)

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="squareq-cli-")
        cls.addClassCleanup(folder.cleanup)
        cls.slab = build_slab(FLUX / "guided", folder.name, "slab")  # only read

    def test_our_backends_stay_within_their_bounds(self):
        """SQ-NUM-030. The reference against itself differs by nothing."""
        for backend, dtype in (("cpu", "f32"), ("cpu", "bf16"), ("reference", "f32")):
            shadow = self.json_of(*self.arguments("--backend", backend, "--dtype", dtype))["shadow"]
            self.assertGreater(shadow["calls"], 100)
            self.assertGreater(shadow["elements"], shadow["calls"])
            self.assertLessEqual(shadow["margin"], 1)
            self.assertEqual(shadow["margin"] == 0, backend == "reference")
        self.run_squareq(*self.arguments("--backend", "cpu"))
        with_shadow = (self.path / "out.safetensors").read_bytes()
        plain = [a for a in self.arguments("--backend", "cpu") if a not in ("--shadow", "reference")]
        self.run_squareq(*plain)
        self.assertEqual((self.path / "out.safetensors").read_bytes(), with_shadow)  # the shadow changes nothing

    def test_a_changed_number_is_named_and_dumped(self):
        dump = self.path / "dump"
        dump.mkdir()
        (self.path / "out.safetensors").unlink(missing_ok=True)
        layer = "single_transformer_blocks.1.attn.to_v"
        for number, tensor in (("forward", "y"), ("backward", "dx")):
            answer = self.json_of(*self.arguments("--backend", ONE_CHANGE, "--shadow-dump", dump), status=1,
                                  environment={"SQUAREQ_ONE_CHANGE": f"{number}:{layer}:1"})
            (problem,) = answer["problems"]
            self.assertEqual((problem["code"], problem["layer"], problem["tensor"]), ("NUM_BOUND", layer, tensor))
            self.assertIn(f"{number} of layer '{layer}': {tensor}[0, 0]", problem["message"])
            self.assertIn("repro: ", problem["message"])
            self.assertIn("--shadow reference", problem["message"])
            files = {kind: next(dump.glob(f"*{layer}.{number}.{kind}.safetensors")) for kind in ("inputs", "backend", "shadow")}
            inputs = read_file(files["inputs"])[0]
            self.assertTrue({"x", "qweight", "scale"} <= set(inputs))
            compared = self.json_of("compare", files["backend"], files["shadow"], "--rtol", "1e-3", status=1)
            self.assertEqual([t["name"] for t in compared["tensors"] if not t["same"]], [tensor])
        self.assertFalse((self.path / "out.safetensors").exists())

    def test_mutants_die(self):
        for mutant, word in (("last_row_missing", "forward of layer"), ("derivative_missing", "backward of layer")):
            answer = self.json_of(*self.arguments("--backend", MUTANTS), status=1, environment={"SQUAREQ_MUTANT": mutant})
            self.assertEqual(answer["problems"][0]["code"], "NUM_BOUND", mutant)
            self.assertIn(word, answer["problems"][0]["message"], mutant)
        self.assertTrue(self.json_of(*self.arguments("--backend", MUTANTS), environment={"SQUAREQ_MUTANT": "none"})["ok"])

    def test_wrong_use(self):
        self.assertEqual(self.codes(*self.arguments("--shadow-dump", self.path / "none"), status=3), {"IO_MISSING"})
        arguments = [*self.arguments()]
        arguments[2] = FLUX / "guided"
        self.assertEqual(self.codes(*arguments, status=2), {"CFG_VALUE"})
        arguments = [a for a in self.arguments("--shadow-dump", self.path) if a not in ("--shadow", "reference")]
        self.assertEqual(self.codes(*arguments, status=2), {"CFG_FLAG"})
        arguments = list(self.arguments())
        arguments[-1] = "nobody"
        self.assertEqual(self.codes(*arguments, status=2), {"CFG_BACKEND"})


class Train(CommandTest):
    def config(self):
        slab = self.build(EMOJI / "transformer", "slab")
        config = {"model": {"slab": str(slab)}, "data": {"train": str(EMOJI / "cache" / "blueprint_train.safetensors")}, "lora": {"rank": 2, "alpha": 2},
                  "train": {"steps": 3, "batch": 1, "seed": 0}, "output": {"dir": str(self.path / "run")}}
        path = self.path / "run.json"
        path.write_text(json.dumps(config))
        return path

    def test_step_and_layer_are_named(self):
        """One number of one layer is wrong in the second step: found there, not before (SQ-NUM-031)."""
        config = self.config()
        layer = "transformer_blocks.2.attn.to_q"
        answer = self.json_of("train", "--config", config, "--quiet", "--backend", "cpu", "--shadow", "reference", "--set", "train.steps=1")
        self.assertLessEqual(answer["shadow"]["margin"], 1)
        self.assertGreater(answer["shadow"]["margin"], 0)
        answer = self.json_of("train", "--config", config, "--overwrite", "--quiet", "--backend", ONE_CHANGE, "--shadow", "reference", status=1,
                              environment={"SQUAREQ_ONE_CHANGE": f"backward:{layer}:2"})
        (problem,) = answer["problems"]
        self.assertEqual((problem["code"], problem["layer"]), ("NUM_BOUND", layer))
        self.assertTrue(problem["message"].startswith(f"step 2: backward of layer '{layer}': dx[0, 0] is "), problem["message"])


if __name__ == "__main__":
    main()
