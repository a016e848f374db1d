"""Records what the reference classes compute on tiny checkpoints: golden/<name>/.

usage: python make.py [--check] [name ...]     (all without names; see README.md)

With --check nothing is written: the records are made aside and compared, byte for byte, with those that are kept.
"""
import os
import re
import shutil
import sys

import torch

import texts  # noqa: F401 (adds its records)
from common import CHECKING, GOLDEN, RECORDS, ROOT, differences, fill, filled, makes, public, rand, record


@makes
def fp8():
    """All codes of F8_E4M3FN, plain and with a scale; and the rule that fills weights."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.tensor(0.0123)
    plain = codes.to(torch.float32)
    record("fp8", {"plain": plain, "scale": scale, "scaled": plain * scale, "fill": filled("a.weight", (3, 5))})


def sd3_single_file(shapes, layers):
    """The single-file names of the same tensors: for each, the (name, part, of parts) that it is made of."""
    recipe = {"pos_embed": [("pos_embed.pos_embed", 0, 1)]}

    def put(name, *sources):
        if sources[0] + ".weight" in shapes:
            for kind in ("weight", "bias"):
                if f"{sources[0]}.{kind}" in shapes:
                    recipe[f"{name}.{kind}"] = [(f"{s}.{kind}", 0, 1) for s in sources]

    def put_swapped(name, source):
        for kind in ("weight", "bias"):
            recipe[f"{name}.{kind}"] = [(f"{source}.{kind}", 1, 2), (f"{source}.{kind}", 0, 2)]

    put("x_embedder.proj", "pos_embed.proj")
    put("context_embedder", "context_embedder")
    for i, k in (("0", "1"), ("2", "2")):
        put(f"t_embedder.mlp.{i}", f"time_text_embed.timestep_embedder.linear_{k}")
        put(f"y_embedder.mlp.{i}", f"time_text_embed.text_embedder.linear_{k}")
    put("final_layer.linear", "proj_out")
    put_swapped("final_layer.adaLN_modulation.1", "norm_out.linear")
    for i in range(layers):
        a, b = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        for x in ("attn", "attn2"):
            put(f"{a}.x_block.{x}.qkv", *(f"{b}.{x}.to_{c}" for c in "qkv"))
            put(f"{a}.x_block.{x}.proj", f"{b}.{x}.to_out.0")
            for c in "qk":
                put(f"{a}.x_block.{x}.ln_{c}", f"{b}.{x}.norm_{c}")
        put(f"{a}.context_block.attn.qkv", *(f"{b}.attn.add_{c}_proj" for c in "qkv"))
        put(f"{a}.context_block.attn.proj", f"{b}.attn.to_add_out")
        for c in "qk":
            put(f"{a}.context_block.attn.ln_{c}", f"{b}.attn.norm_added_{c}")
        put(f"{a}.x_block.adaLN_modulation.1", f"{b}.norm1.linear")
        turn = put_swapped if i == layers - 1 else put
        turn(f"{a}.context_block.adaLN_modulation.1", f"{b}.norm1_context.linear")
        for j, (fc, net) in enumerate((("fc1", "0.proj"), ("fc2", "2"))):
            put(f"{a}.x_block.mlp.{fc}", f"{b}.ff.net.{net}")
            put(f"{a}.context_block.mlp.{fc}", f"{b}.ff_context.net.{net}")
    return recipe


def composed(recipe, state):
    pieces = lambda parts: [state[n].chunk(of, 0)[i] for n, i, of in parts]
    return {name: torch.cat(pieces(parts)) for name, parts in recipe.items()}


def sd3(name, layers, dual):
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    model = SD3Transformer2DModel(
        sample_size=14, patch_size=2, in_channels=5, out_channels=5, num_layers=layers, attention_head_dim=12,
        num_attention_heads=3, joint_attention_dim=22, caption_projection_dim=36, pooled_projection_dim=14,
        pos_embed_max_size=9, dual_attention_layers=dual, qk_norm="rms_norm",
    ).eval()
    shapes = fill(model)
    recipe = sd3_single_file(shapes, layers)
    back = convert_sd3_transformer_checkpoint_to_diffusers(composed(recipe, model.state_dict()))
    assert back.keys() == shapes.keys() and all(torch.equal(back[n], t) for n, t in model.state_dict().items())
    tensors = {}
    for case, (size, words, times) in {"a": ((6, 10), 7, [987.0, 12.5]), "b": ((18, 2), 3, [500.0])}.items():
        batch = len(times)
        given = dict(
            latent=rand(name + case, batch, 5, *size), text=rand(name + case + "t", batch, words, 22),
            pooled=rand(name + case + "p", batch, 14), timestep=torch.tensor(times),
        )
        out = model(given["latent"], given["text"], given["pooled"], given["timestep"]).sample
        tensors |= {f"{k}.{case}": v for k, v in given.items()} | {f"out.{case}": out}
    record(name, tensors, public(model.config), shapes, single_file=recipe)


@makes
def sd35_large():
    sd3("sd35_large", 3, ())


@makes
def sd35_medium():
    sd3("sd35_medium", 2, (0,))


def vae_single_file(shapes, levels):
    """The names of the first latent diffusion programs; their attention matrices are 1x1 convolutions."""
    turn = {
        "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "attentions.0.group_norm": "norm",
        "mid_block.": "mid.attn_1.", "attentions.0.to_out.0": "proj_out", "attentions.0.to_": "",
        "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "downsamplers.0.conv": "downsample.conv",
        "upsamplers.0.conv": "upsample.conv", "resnets": "block",
    }
    recipe = {}
    for name in shapes:
        old = name
        for new, word in turn.items():
            old = old.replace(new, word)
        for i in range(levels):
            old = old.replace(f"down_blocks.{i}", f"down.{i}").replace(f"up_blocks.{i}", f"up.{levels - 1 - i}")
        recipe[old] = [(name, 0, 1)]
    return recipe


@makes
def autoencoder_kl():
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    widths = (6, 10, 14)
    model = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=widths, layers_per_block=1, latent_channels=5,
        norm_num_groups=2, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305,
    ).eval()
    shapes = fill(model)
    recipe = vae_single_file(shapes, len(widths))
    single = {n: t[:, :, None, None] if "attn_1" in n and t.ndim == 2 else t
              for n, t in composed(recipe, model.state_dict()).items()}
    back = convert_ldm_vae_checkpoint(single, {"down_block_types": [0] * 3, "up_block_types": [0] * 3})
    assert back.keys() == shapes.keys() and all(torch.equal(back[n], t) for n, t in model.state_dict().items())
    tensors = {}
    for case, (batch, height, width) in {"a": (2, 3, 5), "b": (1, 4, 1)}.items():
        latent, image = rand(f"vae z{case}", batch, 5, height, width), rand(f"vae x{case}", batch, 3, 4 * height, 4 * width)
        moments = model.encode(image).latent_dist
        tensors |= {
            f"latent.{case}": latent, f"image.{case}": image, f"out.image.{case}": model.decode(latent).sample,
            f"out.mean.{case}": moments.mean, f"out.logvar.{case}": moments.logvar,
        }
    record("autoencoder_kl", tensors, public(model.config), shapes, single_file=recipe)


@makes
def causal_conv3d():
    """Wan's convolution over videos, with and without frames before the first."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    cases = {
        "cube": dict(kernel_size=3, padding=1), "frames": dict(kernel_size=(3, 1, 1), padding=(1, 0, 0)),
        "halved": dict(kernel_size=(3, 1, 1), stride=(2, 1, 1)), "point": dict(kernel_size=1),
        "strided": dict(kernel_size=3, stride=2, padding=1), "long": dict(kernel_size=(5, 3, 3), padding=(2, 1, 1)),
    }
    tensors, shapes = {}, {}
    for name, how in cases.items():
        model = torch.nn.ModuleDict({name: WanCausalConv3d(3, 5, **how)}).eval()
        shapes |= fill(model)
        for case, (batch, frames) in {"a": (2, 5), "b": (1, 3 if name == "halved" else 1)}.items():
            video = rand(f"video {name} {case}", batch, 3, frames, 3, 4)
            tensors |= {f"video.{name}.{case}": video, f"out.{name}.{case}": model[name](video)}
            for past in range(1, 3) if how.get("padding") else ():
                before = rand(f"past {name} {case} {past}", batch, 3, past, 3, 4)
                tensors |= {f"past{past}.{name}.{case}": before, f"out{past}.{name}.{case}": model[name](video, before)}
    record("causal_conv3d", tensors, None, shapes)


@makes
def autoencoder_kl_quant():
    """With the 1x1 convolutions around the latent that older autoencoders have."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(6, 10), layers_per_block=2, latent_channels=4,
        norm_num_groups=2,
    ).eval()
    shapes = fill(model)
    latent, image = rand("vae q z", 1, 4, 3, 2), rand("vae q x", 1, 3, 6, 10)
    tensors = {"latent.a": latent, "image.a": image, "out.image.a": model.decode(latent).sample,
               "out.mean.a": model.encode(image).latent_dist.mean, "out.logvar.a": model.encode(image).latent_dist.logvar}
    record("autoencoder_kl_quant", tensors, public(model.config), shapes)


@makes
def flow_match_euler():
    """Schedules of several configurations, and steps with a made-up velocity."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    cases = {
        "sd3": (dict(shift=3.0), 7, None),
        "plain": (dict(), 1, None),
        "dynamic": (dict(use_dynamic_shifting=True), 5, 1.15),
        "linear": (dict(use_dynamic_shifting=True, time_shift_type="linear", shift_terminal=0.02), 4, 2.5),
        "terminal": (dict(shift=5.0, shift_terminal=0.1), 6, None),
    }
    tensors, configs = {}, {}
    for name, (config, steps, mu) in cases.items():
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        sigmas = None
        if mu is not None:
            import numpy as np
            sigmas = np.linspace(1.0, 1 / 1000, steps)
        scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
        configs[name] = {"config": public(scheduler.config), "steps": steps, "mu": mu}
        sample = rand("flow " + name, 2, 3)
        tensors |= {f"{name}.sigmas": scheduler.sigmas, f"{name}.timesteps": scheduler.timesteps, f"{name}.start": sample}
        for i, t in enumerate(scheduler.timesteps):
            sample = scheduler.step(sample.cos() * 1.5, t, sample).prev_sample
        tensors[f"out.{name}"] = sample
    record("flow_match_euler", tensors, configs)


def weight_normed(state):
    """Another checkpoint with weight norm on every convolution: its shapes, and what it folds to."""
    shapes, folded = {}, {}
    for name, t in state.items():
        if name.endswith(".weight") and t.ndim == 3:
            g, v = name + "_g", name + "_v"
            shapes |= {g: [t.shape[0], 1, 1], v: list(t.shape)}
            folded[name] = torch._weight_norm(filled(v, tuple(t.shape)), filled(g, (t.shape[0], 1, 1)), 0)
        else:
            shapes[name], folded[name] = list(t.shape), t
    return shapes, folded


@makes
def bigvgan():
    """NVIDIA's network by the diffusers class, which folds the weight norm; and the same with weight norm."""
    from diffusers.models.autoencoders.mmaudio_vocoder import MMAudioVocoder

    model = MMAudioVocoder(
        num_mels=5, upsample_initial_channel=12, upsample_rates=(4, 3), upsample_kernel_sizes=(8, 7),
        resblock_kernel_sizes=(3, 5), resblock_dilation_sizes=((1, 3), (1, 2)),
    ).eval()
    shapes = fill(model, skip=("filter",))
    tensors = {f"mel.{case}": rand("bigvgan " + case, *shape) * 0.2 for case, shape in {"a": (2, 5, 7), "b": (1, 5, 1)}.items()}
    for kind in ("folded", "normed"):
        for case in "ab":
            tensors[f"out.{kind}.{case}"] = out = model(tensors[f"mel.{case}"]).sample
            assert (out.abs() == 1).float().mean() < 0.2, "too much is cut off"
        normed, folded = weight_normed({n: t for n, t in model.state_dict().items() if n in shapes})
        model.load_state_dict(folded, strict=False)
    config = public(model.config) | {"use_bias_at_final": False, "use_tanh_at_final": False}
    record("bigvgan", tensors, config, shapes, normed=normed)


TOWER = dict(hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3)


@makes
def clip():
    """Both towers; texts end with the largest token, as in old configurations."""
    from transformers import CLIPConfig, CLIPModel

    text = TOWER | dict(vocab_size=61, max_position_embeddings=11, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    vision = TOWER | dict(hidden_size=30, image_size=21, patch_size=7)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=14)).eval()
    shapes = fill(model)
    tensors = {}
    for case, ids in {"a": [[58, 5, 9, 60, 3], [58, 60, 1, 1, 1]], "b": [[58, 4, 4, 17, 33, 2, 60, 60, 60, 60, 60]]}.items():
        ids = torch.tensor(ids)
        pixels = rand("clip " + case, len(ids), 3, 21, 21)
        out = model(input_ids=ids, pixel_values=pixels)
        tensors |= {f"ids.{case}": ids, f"pixels.{case}": pixels, f"out.logits.{case}": out.logits_per_image,
                    f"out.text.{case}": model.get_text_features(input_ids=ids).pooler_output,
                    f"out.image.{case}": model.get_image_features(pixel_values=pixels).pooler_output,
                    f"out.last.{case}": out.text_model_output.last_hidden_state}
    record("clip", tensors, {"text_config": text, "vision_config": vision, "projection_dim": 14}, shapes)


def clip_text_encoder(name, activation, eos):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = TOWER | dict(vocab_size=61, max_position_embeddings=11, projection_dim=14, hidden_act=activation,
                          bos_token_id=0, eos_token_id=eos, pad_token_id=1)
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    shapes = fill(model)
    tensors = {}
    for case, ids in {"a": [[58, 5, 9, 49, 49], [58, 49, 60, 1, 1]], "b": [[58, 7, 49]]}.items():
        ids = torch.tensor(ids)
        out = model(ids, output_hidden_states=True)
        tensors |= {f"ids.{case}": ids, f"out.pooled.{case}": out.text_embeds, f"out.states.{case}": out.hidden_states[-2]}
    record(name, tensors, config, shapes)


@makes
def clip_text_l():
    clip_text_encoder("clip_text_l", "quick_gelu", 2)


@makes
def clip_text_g():
    clip_text_encoder("clip_text_g", "gelu", 49)


@makes
def open_clip():
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = dict(image_size=21, layers=2, width=30, head_width=10, patch_size=7)
    text = dict(context_length=9, vocab_size=61, width=24, heads=3, layers=3)
    model = CLIP(14, CLIPVisionCfg(**vision), CLIPTextCfg(**text), quick_gelu=True).eval()
    shapes = fill(model, skip=("attn_mask",))
    tensors = {}
    for case, ids in {"a": [[58, 5, 9, 60, 0, 0, 0, 0, 0], [58, 60, 0, 0, 0, 0, 0, 0, 0]], "b": [[58, 4, 4, 17, 33, 2, 7, 8, 60]]}.items():
        ids = torch.tensor(ids)
        pixels = rand("open_clip " + case, len(ids), 3, 21, 21)
        tensors |= {f"ids.{case}": ids, f"pixels.{case}": pixels,
                    f"out.text.{case}": model.encode_text(ids), f"out.image.{case}": model.encode_image(pixels)}
    config = {"model_cfg": {"embed_dim": 14, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}}
    record("open_clip", tensors, config, shapes)


def t5_encoder(name, kind, proj):
    import transformers

    config = dict(vocab_size=61, d_model=22, d_kv=6, d_ff=37, num_layers=3, num_heads=3, feed_forward_proj=proj,
                  relative_attention_num_buckets=8, relative_attention_max_distance=12)
    model_config = getattr(transformers, kind + "Config")(**config, pad_token_id=0, decoder_start_token_id=0)
    model = getattr(transformers, kind + "EncoderModel")(model_config).eval()
    model.encoder.embed_tokens = model.shared
    shapes = fill(model, skip=("embed_tokens",))
    tensors = {}
    # Long enough for distances beyond the last kind.
    ids = {"a": torch.tensor([[(7 * i + 3) % 61 for i in range(23)]]), "b": torch.tensor([[3, 5, 9, 1, 0], [4, 1, 0, 0, 0]])}
    for case, given in ids.items():
        mask = (given != 0).long()
        tensors |= {f"ids.{case}": given, f"mask.{case}": mask, f"out.{case}": model(given, attention_mask=mask).last_hidden_state,
                    f"out.unmasked.{case}": model(given, attention_mask=torch.ones_like(mask)).last_hidden_state}
    record(name, tensors, config | {"model_type": kind.lower()}, shapes)


@makes
def t5_relu():
    t5_encoder("t5_relu", "T5", "relu")


@makes
def t5_gated():
    t5_encoder("t5_gated", "T5", "gated-gelu")


@makes
def umt5():
    t5_encoder("umt5", "UMT5", "gated-gelu")


def oobleck_single_file(shapes, blocks):
    """The names of stable-audio-tools: numbered layers; activations without the dimensions of length 1."""
    recipe = {}
    unit = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    parts = {"encoder": ["res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"],
             "decoder": ["snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"]}
    outside = {"conv1": 0, "snake1": blocks + 1, "conv2": blocks + 2}
    for name in shapes:
        half, *path, kind = name.split(".")
        if path[0] == "block":
            numbers = [int(path[1]) + 1, parts[half].index(path[2])] + [unit[p] for p in path[3:]]
        else:
            numbers = [outside[path[0]]]
        recipe[".".join([half] + [f"layers.{n}" for n in numbers] + [kind])] = [(name, 0, 1)]
    return recipe


def oobleck_model(ratios):
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=ratios, channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=3, audio_channels=2, sampling_rate=44100,
    ).eval()


@makes
def oobleck():
    model = oobleck_model([2, 3])
    shapes = fill(model)
    tensors = {}
    for case, (batch, length) in {"a": (2, 7), "b": (1, 1)}.items():
        latent, sound = rand("oobleck " + case, batch, 3, length), rand("oobleck s" + case, batch, 2, 6 * length)
        found = model.encode(sound).latent_dist
        tensors |= {f"latent.{case}": latent, f"sound.{case}": sound, f"out.sound.{case}": model.decode(latent).sample,
                    f"out.mean.{case}": found.mean, f"out.std.{case}": found.std}
    record("oobleck", tensors, public(model.config), shapes, single_file=oobleck_single_file(shapes, 2))


@makes
def oobleck_long():
    """Long enough to be decoded in pieces."""
    model = oobleck_model([2, 4])
    shapes = fill(model)
    latent = rand("oobleck long", 1, 3, 75)
    tensors = {"latent.a": latent, "out.sound.a": model.decode(latent).sample}
    record("oobleck_long", tensors, public(model.config), shapes)


def stable_audio_single_file(shapes):
    """The names of stable-audio-tools for the transformer."""
    recipe = {}
    words = {"transformer_blocks": "transformer.layers", "time_proj.": "timestep_features.",
             "timestep_proj": "to_timestep_embed", "global_proj": "to_global_embed",
             "cross_attention_proj": "to_cond_embed", "proj_in": "transformer.project_in",
             "proj_out": "transformer.project_out", "to_out.0": "to_out", "attn1": "self_attn", "attn2": "cross_attn",
             "ff.net": "ff.ff"}
    norms = {"norm1": "pre_norm", "norm2": "cross_attend_norm", "norm3": "ff_norm"}
    for name in shapes:
        old = name
        for new, word in words.items():
            old = old.replace(new, word)
        for new, word in norms.items():
            old = old.replace(new + ".weight", word + ".gamma").replace(new + ".bias", word + ".beta")
        if "to_k" in name or "to_v" in name or ("to_q" in name and "attn1" in name):
            parts = "qkv" if "attn1" in name else "kv"
            if f"to_{parts[0]}" in name:
                recipe[old.replace(f"to_{parts[0]}.", f"to_{parts}.")] = [(name.replace(f"to_{parts[0]}", f"to_{p}"), 0, 1) for p in parts]
        else:
            recipe[old] = [(name, 0, 1)]
    return recipe


@makes
def stable_audio():
    from diffusers import StableAudioDiTModel
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    model = StableAudioDiTModel(
        sample_size=11, in_channels=5, out_channels=5, num_layers=3, attention_head_dim=12, num_attention_heads=4,
        num_key_value_attention_heads=2, cross_attention_dim=24, time_proj_dim=10, global_states_input_dim=14,
        cross_attention_input_dim=9,
    ).eval()
    shapes = fill(model)
    tensors = {}
    for case, (length, words, times) in {"a": (11, 6, [0.997, 0.25]), "b": (2, 1, [0.6])}.items():
        batch = len(times)
        given = dict(latent=rand("audio " + case, batch, 5, length), text=rand("audio t" + case, batch, words, 9),
                     durations=rand("audio d" + case, batch, 1, 14), timestep=torch.tensor(times))
        rotary = get_1d_rotary_pos_embed(6, length + 1, use_real=True, repeat_interleave_real=False)
        out = model(given["latent"], given["timestep"], given["text"], given["durations"], rotary).sample
        tensors |= {f"{k}.{case}": v for k, v in given.items()} | {f"out.{case}": out}
    record("stable_audio", tensors, public(model.config), shapes, single_file=stable_audio_single_file(shapes))


def stable_audio_projection_case(name, width):
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    model = StableAudioProjectionModel(text_encoder_dim=9, conditioning_dim=width, min_value=0, max_value=512).eval()
    shapes = fill(model)
    tensors = {}
    for case, (start, end) in {"a": ([0.0, 3.5], [10.0, 600.0]), "b": ([1.25], [47.5])}.items():
        batch = len(start)
        given = dict(text=rand(name + case, batch, 5, 9), mask=torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:batch],
                     start=torch.tensor(start), end=torch.tensor(end))
        out = model(given["text"], given["start"], given["end"])
        # As the pipeline joins them.
        text = torch.cat([out.text_hidden_states * given["mask"][:, :, None], out.seconds_start_hidden_states, out.seconds_end_hidden_states], 1)
        durations = torch.cat([out.seconds_start_hidden_states, out.seconds_end_hidden_states], 2)
        tensors |= {f"{k}.{case}": v for k, v in given.items()} | {f"out.text.{case}": text, f"out.durations.{case}": durations}
    words = {"start_number_conditioner.time_positional_embedding": "seconds_start.embedder.embedding",
             "end_number_conditioner.time_positional_embedding": "seconds_total.embedder.embedding"}
    recipe = {}
    for stored in shapes:
        old = stored
        for new, word in words.items():
            old = old.replace(new, word)
        recipe[old] = [(stored, 0, 1)]
    record(name, tensors, public(model.config), shapes, single_file=recipe)


@makes
def stable_audio_projection():
    stable_audio_projection_case("stable_audio_projection", 9)


@makes
def stable_audio_projection_linear():
    stable_audio_projection_case("stable_audio_projection_linear", 7)


@makes
def cosine_dpm():
    """Schedules of several configurations, and steps with a made-up denoiser and recorded noise."""
    from diffusers import CosineDPMSolverMultistepScheduler

    cases = {
        "hub": (dict(), 5), "one": (dict(), 1), "long": (dict(), 17), "heun": (dict(solver_type="heun"), 17),
        "karras": (dict(sigma_schedule="karras", prediction_type="epsilon", sigma_max=80.0, sigma_data=0.5), 4),
        "first": (dict(solver_order=1, lower_order_final=False), 4),
    }
    tensors, configs = {}, {}
    for name, (config, steps) in cases.items():
        scheduler = CosineDPMSolverMultistepScheduler(**config)
        scheduler.set_timesteps(steps)
        noise = rand("dpm noise " + name, steps, 2, 3)
        queue = iter(noise)
        scheduler.noise_sampler = lambda sigma, after: next(queue)
        start = rand("dpm " + name, 2, 3)
        sample, out = start * scheduler.init_noise_sigma, []
        for t in scheduler.timesteps:
            answer = scheduler.scale_model_input(sample, t).cos() * 1.5
            sample = scheduler.step(answer, t, sample).prev_sample
            out.append(sample)
        configs[name] = {"config": public(scheduler.config), "steps": steps}
        tensors |= {f"{name}.sigmas": scheduler.sigmas, f"{name}.timesteps": scheduler.timesteps, f"{name}.start": start,
                    f"{name}.noise": noise, f"{name}.out": torch.stack(out)}
    record("cosine_dpm", tensors, configs)


class Numbered:
    """In place of a tokenizer: texts are numbers already, and padded here."""

    def __init__(self, length, padding):
        self.model_max_length, self.padding = length, padding

    def __call__(self, texts, padding=None, max_length=None, **_):
        from types import SimpleNamespace

        rows = [[int(n) for n in text.split()] for text in ([texts] if isinstance(texts, str) else texts)]
        length = (max_length or self.model_max_length) if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [self.padding] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=mask)


@makes
def pipeline_sd3():
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    clip = dict(vocab_size=61, max_position_embeddings=9, bos_token_id=0, eos_token_id=60, pad_token_id=1)
    clip_l = clip | TOWER | dict(projection_dim=14)
    clip_g = clip | TOWER | dict(hidden_size=18, projection_dim=10, hidden_act="gelu")
    t5 = dict(vocab_size=61, d_model=46, d_kv=6, d_ff=37, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")
    text_encoder = CLIPTextModelWithProjection(CLIPTextConfig(**clip_l)).eval()
    text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**clip_g)).eval()
    text_encoder_3 = T5EncoderModel(T5Config(**t5, pad_token_id=0, decoder_start_token_id=0)).eval()
    text_encoder_3.encoder.embed_tokens = text_encoder_3.shared
    transformer = SD3Transformer2DModel(
        sample_size=6, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=12,
        num_attention_heads=2, joint_attention_dim=46, caption_projection_dim=24, pooled_projection_dim=24,
        pos_embed_max_size=7, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(6, 10), layers_per_block=1, latent_channels=4,
        norm_num_groups=2, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305,
    ).eval()
    parts = dict(text_encoder=text_encoder, text_encoder_2=text_encoder_2, text_encoder_3=text_encoder_3,
                 transformer=transformer, vae=vae)
    shapes = {name: fill(model, skip=("embed_tokens",)) for name, model in parts.items()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    tokenizers = dict(tokenizer=Numbered(9, 60), tokenizer_2=Numbered(9, 0), tokenizer_3=Numbered(9, 0))
    pipe = StableDiffusion3Pipeline(scheduler=scheduler, **parts, **tokenizers)
    pipe.set_progress_bar_config(disable=True)
    wanted, unwanted = "58 5 9 17 60", "58 33 60"
    tensors = {}
    for name, text in (("wanted", wanted), ("unwanted", unwanted)):
        for key in tokenizers:
            tensors[f"{key}.{name}"] = tokenizers[key](text, padding="max_length", max_length=7 if key == "tokenizer_3" else 9).input_ids
    embedded = pipe.encode_prompt(wanted, None, None, negative_prompt=unwanted, max_sequence_length=7)
    tensors |= dict(zip(("out.text.wanted", "out.text.unwanted", "out.pooled.wanted", "out.pooled.unwanted"), embedded))
    for case, scale in (("a", 4.5), ("b", 0.0)):
        steps, noise = [], rand("pipeline sd3 " + case, 1, 4, 6, 10)

        def keep(pipe, i, t, given):
            steps.append(given["latents"])
            return {}

        image = pipe(wanted, negative_prompt=unwanted, height=12, width=20, num_inference_steps=3, guidance_scale=scale,
                     latents=noise, output_type="pt", max_sequence_length=7, callback_on_step_end=keep).images
        tensors |= {f"noise.{case}": noise, f"out.steps.{case}": torch.stack(steps), f"out.image.{case}": image}
    config = dict(text_encoder=clip_l, text_encoder_2=clip_g, text_encoder_3=t5, transformer=public(transformer.config),
                  vae=public(vae.config), scheduler=public(scheduler.config))
    record("pipeline_sd3", tensors, config, **shapes)


@makes
def pipeline_stable_audio():
    from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel
    from diffusers.schedulers import scheduling_cosine_dpmsolver_multistep as scheduling
    from transformers import T5Config, T5EncoderModel

    t5 = dict(vocab_size=61, d_model=12, d_kv=6, d_ff=37, num_layers=2, num_heads=3, feed_forward_proj="relu")
    text_encoder = T5EncoderModel(T5Config(**t5, pad_token_id=0, decoder_start_token_id=0)).eval()
    text_encoder.encoder.embed_tokens = text_encoder.shared
    projection = StableAudioProjectionModel(text_encoder_dim=12, conditioning_dim=12, min_value=0, max_value=9).eval()
    transformer = StableAudioDiTModel(
        sample_size=11, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=12, num_attention_heads=2,
        num_key_value_attention_heads=1, cross_attention_dim=12, time_proj_dim=10, global_states_input_dim=24,
        cross_attention_input_dim=12,
    ).eval()
    vae = AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=3, audio_channels=2, sampling_rate=10,
    ).eval()
    parts = dict(text_encoder=text_encoder, projection_model=projection, transformer=transformer, vae=vae)
    shapes = {name: fill(model, skip=("embed_tokens",)) for name, model in parts.items()}
    # An untrained transformer answers loudly; data of 0.1 keep the latent where the autoencoder's sines are not chaos.
    scheduler = CosineDPMSolverMultistepScheduler(sigma_data=0.1)
    tokenizer = Numbered(7, 0)
    pipe = StableAudioPipeline(scheduler=scheduler, tokenizer=tokenizer, **parts)
    pipe.set_progress_bar_config(disable=True)
    tensors = {}
    for case, scale, start, end in (("a", 2.5, 0.0, 5.3), ("b", 1.0, 1.0, 8.8)):
        noise, fresh, steps = rand("audio noise " + case, 1, 3, 11), rand("audio fresh " + case, 4, 1, 3, 11), []
        queue = iter(fresh)
        scheduling.BrownianTreeNoiseSampler = lambda *_, **__: lambda sigma, after: next(queue)
        given = tokenizer("5 9 17 1", padding="max_length")
        sound = pipe("5 9 17 1", audio_start_in_s=start, audio_end_in_s=end, num_inference_steps=4, guidance_scale=scale,
                     latents=noise, output_type="pt", callback=lambda i, t, latents: steps.append(latents), callback_steps=1).audios
        tensors |= {f"ids.{case}": given.input_ids, f"mask.{case}": given.attention_mask, f"noise.{case}": noise,
                    f"fresh.{case}": fresh, f"start.{case}": torch.tensor([start]), f"end.{case}": torch.tensor([end]),
                    f"out.steps.{case}": torch.stack(steps), f"out.sound.{case}": sound}
    config = dict(text_encoder=t5, projection_model=public(projection.config), transformer=public(transformer.config),
                  vae=public(vae.config), scheduler=public(scheduler.config), scale={"a": 2.5, "b": 1.0})
    record("pipeline_stable_audio", tensors, config, **shapes)


def grouped(state):
    """Names and shapes with runs of numbered layers in one entry: [name with #, shape, first, last]."""
    runs = {}
    for name, t in state.items():
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = (name if not number else name[:number.start()] + "#" + name[number.end():], tuple(t.shape))
        runs.setdefault(key, []).append(int(number.group()) if number else 0)
    entries = []
    for (name, shape), numbers in runs.items():
        start = 0
        for i in range(1, len(numbers) + 1):
            if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
                entries.append([name, list(shape), numbers[start], numbers[i - 1]])
                start = i
    return entries


@makes
def real():
    """Names and shapes of the reference classes at the size of the real models, without any weights."""
    import diffusers
    import transformers
    from diffusers.models.autoencoders.mmaudio_vocoder import MMAudioVocoder
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vision, text = dict(image_size=378, layers=32, width=1280, head_width=80, patch_size=14), dict(context_length=77, vocab_size=49408, width=1024, heads=16, layers=24)
    clip_l = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
    clip_g = clip_l | dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280, hidden_act="gelu")
    clip_vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=224)
    t5_xxl = dict(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    t5_base = dict(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    t5 = lambda config: transformers.T5EncoderModel(transformers.T5Config(**config))
    encoder = lambda config: transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    large = dict(sample_size=128, patch_size=2, in_channels=16, num_layers=38, attention_head_dim=64, num_attention_heads=38, joint_attention_dim=4096, caption_projection_dim=2432, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192, qk_norm="rms_norm")
    medium = large | dict(num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384, dual_attention_layers=list(range(13)))
    makers = {
        "sd35_large": (large, lambda c: diffusers.SD3Transformer2DModel(**c)),
        "sd35_medium": (medium, lambda c: diffusers.SD3Transformer2DModel(**c)),
        "sd35_vae": (blocks | dict(in_channels=3, out_channels=3, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609), lambda c: diffusers.AutoencoderKL(**c)),
        "clip_l": (clip_l, encoder), "clip_g": (clip_g, encoder), "t5_xxl": (t5_xxl, t5), "t5_base": (t5_base, t5),
        "clip_vit_l14": (dict(text_config=clip_l, vision_config=clip_vision, projection_dim=768), lambda c: transformers.CLIPModel(transformers.CLIPConfig(**c))),
        "dfn5b": (dict(model_cfg=dict(embed_dim=1024, quick_gelu=True, vision_cfg=vision, text_cfg=text)), lambda c: CLIP(1024, CLIPVisionCfg(**vision), CLIPTextCfg(**text), quick_gelu=True)),
        "bigvgan": (dict(num_mels=128, upsample_initial_channel=1536, upsample_rates=[8, 4, 2, 2, 2, 2], upsample_kernel_sizes=[16, 8, 4, 4, 4, 4], resblock_kernel_sizes=[3, 7, 11], resblock_dilation_sizes=[[1, 3, 5]] * 3, use_bias_at_final=False, use_tanh_at_final=False), lambda c: MMAudioVocoder()),
        "stable_audio": (dict(), lambda c: diffusers.StableAudioDiTModel()), "oobleck": (dict(), lambda c: diffusers.AutoencoderOobleck()),
    }
    models = {}
    for name, (config, make) in makers.items():
        with torch.device("meta"):
            model = make(config)
        config = config or public(model.config)
        models[name] = {"config": config, "tensors": grouped({n: t for n, t in model.state_dict().items() if n != "encoder.embed_tokens.weight"})}
    record("real", {}, models)


@makes
def torch_files():
    """Files that torch.save writes: a bare state dict with parameters, one below a key, and some to be refused."""
    import io
    import zipfile

    folder = os.path.join(ROOT, "torch_files")
    os.makedirs(folder, exist_ok=True)
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 5, 7), torch.nn.BatchNorm1d(5))
    fill(model)
    state = model.state_dict()
    state["half"], state["bf16"] = rand("half", 4, 3).half(), rand("bf16", 5).bfloat16()
    state["part"] = rand("whole", 4, 3)[1:3]
    state["scalar"] = torch.tensor(2.5)
    state["tied"] = state["0.weight"]
    state["parameter"] = torch.nn.Parameter(rand("parameter", 2, 2))

    def save(name, content):
        # The archive's own record of when and by what it was written is left out: it would differ each time.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(os.path.join(folder, name), "w", zipfile.ZIP_STORED) as new:
            for entry in old.infolist():
                if ".data/serialization_id" not in entry.filename and ".format_version" not in entry.filename:
                    new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    save("plain.pth", state)
    save("nested.pt", {"generator": dict(state), "steps": 3, "rate": 0.5, "names": ["a", "b"]})
    save("transposed.bin", {"x": rand("turned", 3, 2).t()})
    save("evil.pth", {"x": torch.zeros(1), "y": Evil()})
    kept = {k: v for k, v in state.items() if v.is_floating_point()}
    record("torch_files", {k: v.float() for k, v in kept.items()})


if __name__ == "__main__":
    wanted = [name for name in sys.argv[1:] if name != "--check"]
    if CHECKING and wanted:
        # Pipelines read what the tokenizers' records wrote.
        shutil.copytree(os.path.join(GOLDEN, "tokenizers"), os.path.join(ROOT, "tokenizers"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name in wanted or RECORDS:
            RECORDS[name]()
    if CHECKING:
        sys.exit("\n".join(differences(whole=not wanted)) or 0)
