"""Shapes of a FLUX.1 transformer in diffusers' naming, as functions of its config (FluxTransformer2DModel of diffusers 0.42.1)."""
import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Layout:
    """The defaults are FLUX.1-dev: 11,901,408,320 parameters, 1160 tensors."""

    double_blocks: int = 19
    single_blocks: int = 38
    heads: int = 24
    head_dim: int = 128
    channels: int = 64
    text_dim: int = 4096
    pooled_dim: int = 768
    text_tokens: int = 512

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, expected at least 1")
        if self.head_dim % 32:
            raise ValueError(f"head_dim is {self.head_dim}, expected a multiple of 32 (RoPE splits it 2 : 7 : 7 into pairs)")

    @property
    def width(self):
        return self.heads * self.head_dim

    def config(self):
        """diffusers' config.json; head_dim 128 gives FLUX.1's RoPE axes (16, 56, 56)."""
        axes = [self.head_dim // 8, self.head_dim * 7 // 16, self.head_dim * 7 // 16]
        return {
            "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.42.1", "attention_head_dim": self.head_dim, "axes_dims_rope": axes,
            "guidance_embeds": True, "in_channels": self.channels, "joint_attention_dim": self.text_dim, "num_attention_heads": self.heads,
            "num_layers": self.double_blocks, "num_single_layers": self.single_blocks, "out_channels": None, "patch_size": 1,
            "pooled_projection_dim": self.pooled_dim,
        }

    def tensors(self):
        """{name: shape} of every tensor, all bf16."""
        d, found = self.width, {}

        def linear(name, out, into):
            found[name + ".weight"] = [out, into]
            found[name + ".bias"] = [out]

        def attention(prefix, projections, norms):
            for name in projections:
                linear(prefix + name, d, d)
            for name in norms:
                found[f"{prefix}{name}.weight"] = [self.head_dim]

        for embedder, into in (("timestep_embedder", 256), ("guidance_embedder", 256), ("text_embedder", self.pooled_dim)):
            linear(f"time_text_embed.{embedder}.linear_1", d, into)
            linear(f"time_text_embed.{embedder}.linear_2", d, d)
        linear("context_embedder", d, self.text_dim)
        linear("x_embedder", d, self.channels)
        for i in range(self.double_blocks):
            p = f"transformer_blocks.{i}."
            linear(p + "norm1.linear", 6 * d, d)
            linear(p + "norm1_context.linear", 6 * d, d)
            attention(p + "attn.", ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
                      ("norm_q", "norm_k", "norm_added_q", "norm_added_k"))
            for mlp in ("ff", "ff_context"):
                linear(f"{p}{mlp}.net.0.proj", 4 * d, d)
                linear(f"{p}{mlp}.net.2", d, 4 * d)
        for i in range(self.single_blocks):
            p = f"single_transformer_blocks.{i}."
            linear(p + "norm.linear", 3 * d, d)
            linear(p + "proj_mlp", 4 * d, d)
            linear(p + "proj_out", d, 5 * d)
            attention(p + "attn.", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        linear("norm_out.linear", 2 * d, d)
        linear("proj_out", self.channels, d)
        return found

    def bytes(self):
        return 2 * sum(math.prod(shape) for shape in self.tensors().values())

    def targets(self):
        """The linears that `lora.targets: default` trains: those of the blocks but the modulations. FLUX.1-dev: 418."""
        return sorted(name.removesuffix(".weight") for name, shape in self.tensors().items()
                      if len(shape) == 2 and "transformer_blocks." in name and not name.endswith(("norm.linear.weight", "norm1.linear.weight", "norm1_context.linear.weight")))


def add_flags(parser):
    group = parser.add_argument_group("layout (defaults: FLUX.1-dev)")
    for field in dataclasses.fields(Layout):
        group.add_argument("--" + field.name.replace("_", "-"), type=int, default=field.default, metavar="N")


def of_flags(args):
    """Throws ValueError for a layout that no model has."""
    return Layout(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Layout)})


def flags_of(layout):
    """The same flags for another program."""
    return [part for field in dataclasses.fields(Layout) for part in ("--" + field.name.replace("_", "-"), str(getattr(layout, field.name)))]


def image_tokens(pixels):
    """Tokens of a square picture: the VAE divides each side by 8, packing by 2."""
    if pixels < 16 or pixels % 16:
        raise ValueError(f"{pixels} pixels a side, expected a positive multiple of 16")
    return (pixels // 16) ** 2
