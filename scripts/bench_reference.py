"""The reference classes as scripts/bench_smoke.py runs them, in a Python of their own.

    picture FOLDER OUT.png     a picture of a Stable Diffusion 3.5 in folders, in four steps
    sound FOLDER OUT.wav       a sound of a Stable Audio Open in folders, in four steps
    make FOLDER                a transformer of about 300 million random parameters, and what it makes of some input
    step FOLDER STEPS          seconds of each step with that transformer; the first one is not counted
"""

import json
import sys
import time
from pathlib import Path


def picture(folder: Path, out: Path) -> None:
    """The same prompts, size and steps as `larder smoke` has; the noise is another."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a red square on a white ground",
        negative_prompt="stock prices fell in autumn",
        height=28,
        width=28,
        num_inference_steps=4,
        guidance_scale=4.5,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert image.size == (28, 28)
    image.save(out)


def sound(folder: Path, out: Path) -> None:
    import torch
    from diffusers import StableAudioPipeline
    from scipy.io import wavfile

    pipeline = StableAudioPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rate = pipeline.vae.config.sampling_rate
    made = pipeline(
        "a chord of three tones",
        negative_prompt="rain",
        num_inference_steps=4,
        guidance_scale=4.5,
        audio_end_in_s=11 * 8 / rate,
        generator=torch.Generator().manual_seed(1),
    ).audios[0]
    assert made.shape == (2, 88) and torch.isfinite(made).all()
    wavfile.write(out, rate, made.T.float().numpy())


def make(folder: Path) -> None:
    import torch
    from diffusers import SD3Transformer2DModel
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=8, attention_head_dim=64,
        num_attention_heads=16, joint_attention_dim=4096, caption_projection_dim=1024, pooled_projection_dim=2048,
        pos_embed_max_size=96, qk_norm="rms_norm",
    ).eval()
    for parameter in model.parameters():  # Gates that begin as zero would hide whole branches.
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    print(sum(parameter.numel() for parameter in model.parameters()))
    # A picture of 256 by 256 pixels, guided: wanted and unwanted text, each of 77 tokens of CLIP and 256 of T5.
    given = dict(
        latent=torch.randn(2, 16, 32, 32),
        timestep=torch.tensor([700.0, 700.0]),
        text=torch.randn(2, 77 + 256, 4096),
        pooled=torch.randn(2, 2048),
    )
    with torch.inference_mode():
        out = forward(model, given)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "diffusion_pytorch_model.safetensors")
    save_file({**given, "out": out.clone()}, folder / "given.safetensors")
    config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    (folder / "config.json").write_text(json.dumps(config))


def step(folder: Path, steps: int) -> None:
    import torch
    from diffusers import SD3Transformer2DModel
    from safetensors.torch import load_file

    model = SD3Transformer2DModel.from_config(json.loads((folder / "config.json").read_text())).eval()
    model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    given = load_file(folder / "given.safetensors")
    with torch.inference_mode():
        out = forward(model, given)
        print(float((out - given["out"]).abs().max() / given["out"].abs().max()))
        for _ in range(steps):
            start = time.perf_counter()
            forward(model, given)
            print(time.perf_counter() - start, flush=True)


def forward(model, given):
    return model(given["latent"], given["text"], given["pooled"], given["timestep"]).sample


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    commands = {"picture": picture, "sound": sound}
    if what in commands:
        commands[what](Path(folder), Path(rest[0]))
    elif what == "make":
        make(Path(folder))
    else:
        step(Path(folder), int(rest[0]))


if __name__ == "__main__":
    main()
