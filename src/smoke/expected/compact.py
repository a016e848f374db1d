"""Writes the lists of this folder from JSON objects {tensor: shape} that the reference classes gave.

    python compact.py FOLDER_OF_JSON

One line for all tensors that differ only in numbers and have one shape: `blocks.{0-29}.ffn.0.weight 14336 3072`. Single-file
layouts are the same tensors under the names of the model's own repository; fused ones are as long as their parts together.
"""
import itertools, json, re, sys
from pathlib import Path

HERE = Path(__file__).parent


def ranges(numbers):
    out, numbers = [], sorted(numbers)
    start = last = numbers[0]
    for n in numbers[1:] + [None]:
        if n is None or n != last + 1:
            out.append(f"{start}-{last}" if last > start else f"{start}")
            start = n
        last = n
    return "{" + ",".join(out) + "}" if len(numbers) > 1 else out[0]


def compact(tensors):
    groups = {}
    for name, shape in tensors.items():
        pattern = re.sub(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])", "#", name)
        numbers = tuple(int(n) for n in re.findall(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])", name))
        groups.setdefault((pattern, tuple(shape)), []).append(numbers)
    lines = []
    for (pattern, shape), members in groups.items():
        for group in split(members):
            parts = iter(ranges(set(column)) for column in zip(*group))
            name = re.sub("#", lambda _: next(parts), pattern)
            lines.append(" ".join([name, *map(str, shape)]))
    return lines


def split(members):
    """Groups whose numbers are all combinations of their columns."""
    if not members or not members[0]:
        return [members]
    columns = [sorted(set(column)) for column in zip(*members)]
    if len(members) == len(set(members)) == len(list(itertools.product(*columns))):
        return [members]
    varying = min((i for i, column in enumerate(columns) if len(column) > 1), key=lambda i: len(columns[i]))
    return [group for n in columns[varying] for group in split([m for m in members if m[varying] == n])]


def renamed(tensors, rules, fused=()):
    """Gives tensors other names; those of a rule in `fused` become one, as long as all of them."""
    out = {}
    for name, shape in tensors.items():
        new = name
        for old, by in rules:
            new = re.sub(old, by, new)
        if new in out:
            assert any(word in new for word in fused), (name, new)
            out[new] = [out[new][0] + shape[0], *shape[1:]]
        else:
            out[new] = list(shape)
    return out


SD3 = [
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"), (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"attn\.to_[qkv]\.", "x_block.attn.qkv."), (r"attn\.add_[qkv]_proj", "context_block.attn.qkv"),
    (r"attn\.norm_added_([qk])", r"context_block.attn.ln_\1"), (r"attn\.norm_([qk])", r"x_block.attn.ln_\1"),
    (r"attn\.to_out\.0", "x_block.attn.proj"), (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"), (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
    (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"), (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
]
FLUX2 = [
    (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"modulation(_img|_txt|)\.linear", r"modulation\1.lin"), (r"^x_embedder", "img_in"), (r"^context_embedder", "txt_in"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks", "double_blocks"),
    (r"attn\.to_[qkv]\.", "img_attn.qkv."), (r"attn\.add_[qkv]_proj", "txt_attn.qkv"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"attn\.to_out\.0", "img_attn.proj"), (r"attn\.to_add_out", "txt_attn.proj"),
    (r"\.ff\.linear_in", ".img_mlp.0"), (r"\.ff\.linear_out", ".img_mlp.2"),
    (r"\.ff_context\.linear_in", ".txt_mlp.0"), (r"\.ff_context\.linear_out", ".txt_mlp.2"),
]
WAN = [
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"), (r"^proj_out", "head.head"), (r"\.scale_shift_table", ".modulation"),
    (r"\.attn1\.", ".self_attn."), (r"\.attn2\.", ".cross_attn."), (r"\.to_([qkv])\.", r".\1."), (r"\.to_out\.0", ".o"),
    (r"\.ffn\.net\.0\.proj", ".ffn.0"), (r"\.ffn\.net\.2", ".ffn.2"), (r"\.norm2\.", ".norm3."),
]
LTX = [(r"^proj_in", "patchify_proj"), (r"^time_embed", "adaln_single"), (r"norm_([qk])\.", r"\1_norm.")]
QWEN_VL = [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]


def ldm(tensors):
    """An image autoencoder under the names of its first repository."""
    rules = [
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"conv_shortcut", "nin_shortcut"), (r"conv_norm_out", "norm_out"),
    ]
    out = renamed(tensors, rules)
    return {k: v + [1, 1] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", k) else v for k, v in out.items()}


def lists(of):
    for path in sorted(of.glob("*.json")):
        yield path.stem, json.loads(path.read_text())
    read = lambda name: json.loads((of / f"{name}.json").read_text())
    yield "sd35_large_transformer.single", renamed(read("sd35_large_transformer"), SD3, ("qkv",))
    yield "sd35_vae.single", ldm(read("sd35_vae"))
    yield "flux2_vae.single", ldm(read("flux2_vae"))
    yield "flux2_dev.single", renamed(read("flux2_dev"), FLUX2, ("qkv",))
    yield "wan22_i2v_14b.single", renamed(read("wan22_i2v_14b"), WAN)
    yield "wan22_ti2v_5b.single", renamed(read("wan22_ti2v_5b"), WAN)
    yield "ltxv_13b_097.single", renamed(read("ltxv_13b_097"), LTX)
    yield "qwen25_vl_7b.older", renamed(read("qwen25_vl_7b"), QWEN_VL)


if __name__ == "__main__":
    for name, tensors in lists(Path(sys.argv[1])):
        lines = compact(tensors)
        (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
        print(f"{name:34} {len(tensors):5} tensors, {len(lines):4} lines")
