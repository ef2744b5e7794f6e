r"""
Train a network that guesses a blur kernel
==========================================

Trains ``deepinv_dmilo.priors.kernel_guess.KernelGuess``, which reads the kernel from a blurred picture of any size::

    python examples/train_kernel_guess.py --data my_pictures/ --kernels scratch/kernels --state scratch/guess \
        --out priors/guess --hours 2

Pictures are crops as those of ``train_prior.py --scales``, turned, grey of random weights; kernels are those that
``train_kernels.py`` keeps in its ``--state`` (they are made if they are not there). Half of the blurs go round at the
edges, half are cut off, as those of a camera. A quarter blur light, as a camera, and a quarter are JPEGs. The standard
deviation of the noise is 0.002 to 0.1.

The loss is the error of the kernel in the 2-norm, relative to its own norm, at the best shift: a kernel that is shifted
and an image that is shifted back are the same measurement. Every fifteenth picture never trains, the same as those of
the prior ``photos``. Ctrl-C saves the state; the same command with ``--resume`` goes on, and with more ``--hours``
longer than was planned.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from deepinv.physics.generator import MotionBlurGenerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from train_kernels import kept_images, to_kernels
from train_prior import learning_rate, load_folder, random_crops

from deepinv_dmilo.priors.kernel_guess import SIZE, WAYS, KernelGuess, transfer_function, turned

HOLD_OUT_EVERY = 15  # as the prior photos
PICTURE, CROP = 128, 160  # of a measurement, and of what is blurred
MARGIN = (CROP - PICTURE) // 2
AT_ONCE = 64  # crops that are drawn together
SMOOTHED = 0.5  # standard deviation, in pixels, of the Gaussian over both kernels in the loss: a near miss is a miss
SHIFTS = torch.arange(-2, 2.01, 0.25)  # in pixels, of a kernel
SPECTRUM = 64
SECONDS_BETWEEN_SAVES, SECONDS_BETWEEN_LOOKS = 120, 600
HELD_OUT_PAIRS = 200
ONE_STAGE = 1 / 3  # of the time, in which a step costs half


class Pairs(NamedTuple):
    """Pictures (n, 1, PICTURE, PICTURE), their kernels (n, 1, SIZE, SIZE), the noise, and which blurs go round."""

    pictures: Tensor
    kernels: Tensor
    noise: Tensor
    is_round: Tensor


def turned_at_random(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each of the images (n, C, s, s) in one of the eight ways that a square is turned and mirrored."""
    ways = torch.randint(WAYS, (len(images),), generator=rng).tolist()
    return torch.stack([turned(image, way) for image, way in zip(images, ways, strict=True)])


def grey(crops: Tensor, rng: torch.Generator) -> Tensor:
    """Grey of random weights, (n, 1, s, s) in [0, 1]."""
    weights = -torch.rand(len(crops), 3, 1, 1, generator=rng).clamp(min=1e-6).log()
    return (crops.float() / 255 * weights / weights.sum(1, keepdim=True)).sum(1, keepdim=True)


def blurred(images: Tensor, kernels: Tensor, is_round: Tensor) -> Tensor:
    """The middle PICTURE x PICTURE pixels of images, blurred, cut off there before or after."""

    def convolved(x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer_function(kernels, size), s=size)

    def cut(x: Tensor) -> Tensor:
        return x[..., MARGIN:-MARGIN, MARGIN:-MARGIN]

    return torch.where(is_round[:, None, None, None], convolved(cut(images)), cut(convolved(images)))


def as_jpeg(image: Tensor, quality: int) -> Tensor:
    """What a JPEG file keeps of an image (1, s, s)."""
    return decode_jpeg(encode_jpeg((image.clamp(0, 1) * 255).round().byte(), quality)).float() / 255


def measured(images: Tensor, kernels: Tensor, rng: torch.Generator) -> Pairs:
    """Blur images (n, 1, CROP, CROP) as cameras and benchmarks do."""
    n = len(images)

    def some(share: float) -> Tensor:
        return torch.rand(n, generator=rng) < share

    is_round, of_light, clipped, jpeg = (some(share) for share in (0.5, 0.25, 0.5, 0.25))
    gamma = torch.where(of_light, 2.2, 1.0)[:, None, None, None]
    pictures = blurred(images**gamma, kernels, is_round).clamp(min=1e-4) ** (1 / gamma)
    noise = torch.where(some(0.1), 0, 0.002 * 50 ** torch.rand(n, generator=rng))
    pictures = pictures + noise[:, None, None, None] * torch.randn(pictures.shape, generator=rng)
    pictures = torch.where(clipped[:, None, None, None], pictures.clamp(0, 1), pictures)
    for k in jpeg.nonzero().flatten().tolist():
        pictures[k] = as_jpeg(pictures[k], int(torch.randint(75, 99, (), generator=rng)))
    return Pairs(pictures, kernels, noise, is_round)


def drawn(pictures: list[Tensor], kernels: Tensor, n: int, rng: torch.Generator) -> Pairs:
    """Random pairs; kernels are images of ``train_kernels.py``, uint8."""
    crops = turned_at_random(grey(random_crops(pictures, CROP, n, rng), rng), rng)
    chosen = kernels[torch.randint(len(kernels), (n,), generator=rng)]
    return measured(crops, turned_at_random(to_kernels(chosen / 255), rng), rng)


def motion_pairs(pictures: list[Tensor], n: int) -> Pairs:
    """As the task motion-deblurring with pictures of 128 x 128, at noise 0.005."""
    rng = torch.Generator().manual_seed(1)
    crops = grey(random_crops(pictures, CROP, n, rng), rng)
    generator = MotionBlurGenerator((SIZE, SIZE), rng=rng)
    kernels = torch.cat([generator.step(1)["filter"] for _ in range(n)])
    is_round = torch.ones(n, dtype=torch.bool)
    clean = blurred(crops, kernels, is_round)
    return Pairs(clean + 0.005 * torch.randn(clean.shape, generator=rng), kernels, torch.full((n,), 0.005), is_round)


def squared_error(guess: Tensor, kernel: Tensor, smoothed: float = 0.0) -> Tensor:
    """Relative to the kernel's square, at the best shift, (n,)."""
    frequencies = torch.fft.fftfreq(SPECTRUM, device=kernel.device)
    low_pass = torch.exp(-2 * (torch.pi * smoothed * frequencies) ** 2)
    first, second = (
        torch.fft.fft2(k[:, 0], s=(SPECTRUM, SPECTRUM)) * low_pass[:, None] * low_pass for k in (guess, kernel)
    )
    shift = torch.exp(2j * torch.pi * SHIFTS.to(kernel.device)[:, None] * frequencies)
    correlation = torch.einsum("ih,bhw,jw->bij", shift, first.conj() * second, shift).real
    energies = [spectrum.abs().square().sum((1, 2)) for spectrum in (first, second)]
    return (energies[0] + energies[1] - 2 * correlation.amax((1, 2))) / energies[1]


def off_centre(kernels: Tensor) -> Tensor:
    """The squared distance of the centre of mass from the middle, (n,)."""
    place = torch.arange(SIZE, device=kernels.device) - SIZE // 2.0
    return (kernels.sum(-1) * place).sum((1, 2)) ** 2 + (kernels.sum(-2) * place).sum((1, 2)) ** 2


def training_loss(network: KernelGuess, pairs: Pairs, device: str) -> Tensor:
    """The mean over pairs and stages."""
    kernels = pairs.kernels.to(device)
    guesses = network.all_stages(pairs.pictures.to(device))
    squares = torch.stack([squared_error(guess, kernels, SMOOTHED) for guess in guesses])
    return (squares.clamp(min=0) + 1e-3).sqrt().mean() + 1e-3 * off_centre(torch.cat(guesses)).mean()


@torch.no_grad()
def relative_errors(network: KernelGuess, pairs: Pairs, device: str) -> Tensor:
    """Errors in the 2-norm at the best shift, (n,)."""
    guesses = torch.cat([network(part.to(device)).cpu() for part in pairs.pictures.split(20)])
    return squared_error(guesses, pairs.kernels).clamp(min=0).sqrt()


def summary(network: KernelGuess, held_out: Pairs, motion: Pairs, device: str) -> dict[str, float]:
    """The mean error of held-out pairs, by kind."""
    errors, noisy = relative_errors(network, held_out, device), held_out.noise > 0.03
    kinds = {"all": noisy | True, "noise to 0.03": ~noisy, "noise above 0.03": noisy}
    kinds |= {"round": held_out.is_round, "cut off": ~held_out.is_round}
    found = {name: errors[which].mean().item() for name, which in kinds.items()}
    of_motion = relative_errors(network, motion, device)
    return found | {"motion, mean": of_motion.mean().item(), "motion, median": of_motion.median().item()}


def train(args: argparse.Namespace, network: KernelGuess, pictures: list, kernels: Tensor, tests: tuple) -> dict:
    """Train for ``args.hours`` of wall time; the network ends with averaged weights. Returns what the card reports."""
    state_file = args.state / "training_state.pt"
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-4)
    ema = EMAModel(network.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    rng = torch.Generator().manual_seed(args.seed)
    step, elapsed, budget = 0, 0.0, 3600 * args.hours
    if args.resume:
        state = torch.load(state_file, weights_only=True, map_location=args.device)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        rng.set_state(state["rng"].cpu())
        step, elapsed = state["step"], state["elapsed"]
    ema.to(args.device)

    def save_state() -> None:
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        partial = state_file.with_suffix(".partial")
        torch.save(state | {"rng": rng.get_state(), "step": step, "elapsed": elapsed}, partial)
        partial.replace(state_file)

    def look() -> dict[str, float]:
        ema.store(network.parameters())
        ema.copy_to(network.parameters())
        errors = summary(network, *tests, args.device)
        ema.restore(network.parameters())
        figures = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        print(f"step {step}, {elapsed / 60:.0f} min, loss {smooth:.3f}, held out: {figures}", flush=True)
        return errors

    smooth, looked, saved = 1.0, elapsed, time.monotonic()
    started = time.monotonic() - elapsed
    stages, waiting = network.stages, list[Pairs]()
    try:
        while elapsed < budget:
            if not waiting:
                pairs = drawn(pictures, kernels, AT_ONCE, rng)
                waiting = [Pairs(*parts) for parts in zip(*(part.split(args.batch) for part in pairs), strict=True)]
            network.stages = 1 if elapsed < ONE_STAGE * budget else stages
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args.lr, step, elapsed / budget)
            loss = training_loss(network, waiting.pop(), args.device)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            ema.step(network.parameters())
            step, elapsed = step + 1, time.monotonic() - started
            smooth = 0.99 * smooth + 0.01 * loss.item()
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save_state()
                saved = time.monotonic()
            if elapsed > looked + SECONDS_BETWEEN_LOOKS:
                looked = elapsed
                look()
    except KeyboardInterrupt:
        save_state()
        raise SystemExit(f"\nstopped at step {step}; the same command with --resume goes on from here") from None
    save_state()
    errors = look()
    ema.copy_to(network.parameters())
    return {"steps": step, "minutes": elapsed / 60, "errors": errors}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a network that guesses a blur kernel from a blurred picture.")
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures (searched recursively)")
    parser.add_argument("--kernels", type=Path, required=True, help="--state of train_kernels.py, with its kernels")
    parser.add_argument("--state", type=Path, required=True, help="folder of the training's state")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--hours", type=float, default=3, help="wall time to train, over all sittings")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --state")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[32, 64, 96, 128], help="multiples of 8, one a level"
    )
    parser.add_argument("--kernel-channels", type=int, nargs="+", default=[32, 64, 96], help="likewise, at most 4")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.resume and not (args.state / "training_state.pt").exists():
        parser.error(f"--resume: {args.state} has no training_state.pt; start without --resume")
    return args


def main() -> None:
    args = parse_arguments()
    for folder in (args.kernels, args.state):
        folder.mkdir(parents=True, exist_ok=True)
    kernels = torch.stack(kept_images(args.kernels / "kernels_100000_0.npy", 100_000, 0))
    held_out_kernels = torch.stack(kept_images(args.kernels / "held_out_0.npy", 500, 1_000_000))
    pictures = load_folder(args.data, grey=False)
    held_out = pictures[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    training = [p for k, p in enumerate(pictures, 1) if k % HOLD_OUT_EVERY and min(p.shape[1:]) >= CROP]
    pairs = drawn(held_out, held_out_kernels, HELD_OUT_PAIRS, torch.Generator().manual_seed(0))
    torch.manual_seed(args.seed)  # the initial weights
    network = KernelGuess(channels=args.channels, kernel_channels=args.kernel_channels).to(args.device)
    network = network.to(memory_format=torch.channels_last)
    tests = (pairs, motion_pairs(held_out, HELD_OUT_PAIRS // 2))
    facts = train(args, network, training, kernels, tests)
    network.save_pretrained(args.out)
    print(f"wrote {args.out}: {facts}")


if __name__ == "__main__":
    main()
