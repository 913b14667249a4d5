"""The linear layers that are measured: (model, K, N), K = in_features, N = out_features, as they stand in the blocks of the public models.

FLUX.1-dev and FLUX.2-dev in the fused layout of their makers (q, k, v in one linear; MLP and attention of a single block in one), SDXL as
diffusers has it, SD3.5-large. FLUX.2: attention out, qkv, both MLP linears (gate and up in one), and both linears of a single block.
"""

SHAPES = [
    ("FLUX.1", 3072, 3072), ("FLUX.1", 3072, 9216), ("FLUX.1", 3072, 12288), ("FLUX.1", 12288, 3072), ("FLUX.1", 3072, 21504),
    ("FLUX.1", 15360, 3072),
    ("SDXL", 1280, 1280), ("SDXL", 1280, 10240), ("SDXL", 5120, 1280),
    ("FLUX.2", 6144, 6144), ("FLUX.2", 6144, 18432), ("FLUX.2", 6144, 36864), ("FLUX.2", 18432, 6144), ("FLUX.2", 6144, 55296),
    ("FLUX.2", 24576, 6144),
    ("SD3.5", 2432, 2432), ("SD3.5", 2432, 9728), ("SD3.5", 9728, 2432),
]
ROWS = [16, 64, 512, 1536, 4608]

# Kept longest when the time does not suffice for everything: a square, a widening and a narrowing layer, and one of each other model.
CORE = [(3072, 3072), (3072, 12288), (12288, 3072), (1280, 10240), (6144, 18432), (2432, 9728)]
CORE_ROWS = [4608, 512, 1536]
# Libraries that compile kernels for every shape (ten seconds and more each) are tried on these first.
COMPILED = [(3072, 12288), (12288, 3072)]
