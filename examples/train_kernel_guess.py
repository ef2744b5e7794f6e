r"""
Train a network that guesses a blur kernel
==========================================

Trains ``deepinv_dmilo.priors.kernel_guess.KernelGuess``, which reads the kernel from a blurred picture of any size::

    python examples/train_kernel_guess.py --data my_pictures/ --kernels scratch/kernels --state scratch/guess \
        --out priors/guess --hours 2

Pictures are crops like those of ``train_prior.py --scales``, rotated, and made grey with random weights. Kernels are
those that ``train_kernels.py`` keeps in its ``--state`` (they are generated if missing). Half of the blurs have a
periodic boundary, half an open one, as in a camera. A quarter blur linear light, as a camera does, and a quarter are
JPEGs. The standard deviation of the noise is 0.002 to 0.1.

The loss is the error of the kernel in the 2-norm, relative to its own norm, at the best shift, as a shift of the kernel
and the opposite shift of the image cancel. A second term trains the sharp maps to be the filtered sharp picture: from
the kernel alone, the network learned little more than the autocorrelation of the picture. Every fifteenth picture is
held out, the same as those of the prior ``photos``. Ctrl-C saves the state. The same command with ``--resume``
continues, and a larger ``--hours`` extends the training.
"""

import argparse
import datetime
import time
from pathlib import Path

import torch
from blurred_pairs import CROP, PICTURE, Pairs, drawn, motion_pairs
from diffusers.training_utils import EMAModel
from torch import Tensor
from train_kernels import kept_images
from train_prior import learning_rate, load_folder

from deepinv_dmilo.priors.kernel_guess import KERNEL_SIZE, KernelGuess, standardised

HOLD_OUT_EVERY = 15  # as the prior photos
AT_ONCE = 64  # crops that are drawn together
SMOOTHED = 0.5  # standard deviation, in pixels, of the Gaussian over both kernels in the loss: a near miss is a miss
SHIFTS = torch.arange(-2, 2.01, 0.25)  # in pixels, of a kernel
SPECTRUM = 64
OF_MAPS = 0.5  # weight in the loss of the relative squared error of the sharp maps' differences
SECONDS_BETWEEN_SAVES, SECONDS_BETWEEN_LOOKS = 120, 600
HELD_OUT_PAIRS = 200
ONE_STAGE = 1 / 3  # of the time, in which a step costs half


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
    place = torch.arange(KERNEL_SIZE, device=kernels.device) - KERNEL_SIZE // 2.0
    return (kernels.sum(-1) * place).sum((1, 2)) ** 2 + (kernels.sum(-2) * place).sum((1, 2)) ** 2


def roughness(maps: Tensor) -> Tensor:
    """The mean square of the maps' differences, (n,): what a blur changes is fine."""
    return sum(maps.diff(dim=dim).square().mean((1, 2, 3)) for dim in (2, 3))


def training_loss(network: KernelGuess, pairs: Pairs, device: str) -> Tensor:
    """Of kernels and sharp maps, the mean over pairs and stages."""
    y, x, kernels = (part.to(device) for part in pairs[:3])
    target = torch.nn.functional.conv2d(standardised(x, y), network.linear.weight.detach(), padding="same")
    energy = roughness(target) + 1e-4
    loss = torch.zeros((), device=device)
    for guess, sharp in network.all_stages(y):
        of_kernel = (squared_error(guess, kernels, SMOOTHED).clamp(min=0) + 1e-3).sqrt() + 1e-3 * off_centre(guess)
        of_maps = roughness(sharp - target) / energy
        loss = loss + (of_kernel + OF_MAPS * of_maps).mean() / network.stages
    return loss


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
        try:
            errors = summary(network, *tests, args.device)
        finally:  # so that Ctrl-C does not save the averaged weights as those that are trained
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
    network.stages = stages
    save_state()
    errors = look()
    ema.copy_to(network.parameters())
    return {"steps": step, "minutes": elapsed / 60, "errors": errors}


def write_card(folder: Path, args: argparse.Namespace, facts: dict) -> None:
    """README.md of the network."""
    channels = (
        f"--channels {' '.join(map(str, args.channels))} --kernel-channels {' '.join(map(str, args.kernel_channels))}"
    )
    rows = "".join(f"| {kind} | {error:.3f} |\n" for kind, error in facts["errors"].items())
    text = f"""# Network that guesses a blur kernel, `{folder.name}`

`KernelGuess.from_pretrained(FOLDER)` of `deepinv_dmilo.priors.kernel_guess`: {facts["parameters"]:,} parameters, half precision.
Trained on {facts["pictures"]} pictures of the folder {args.data.name!r} and kernels of `examples/train_kernels.py`, for
{facts["steps"]:,} steps of {args.batch} pictures of {PICTURE} x {PICTURE}, {facts["minutes"]:.0f} minutes, on {datetime.date.today()}, torch {torch.__version__}. Licence of the weights: that of the pictures.

| {HELD_OUT_PAIRS} held-out pairs | error |
|---|---|
{rows}
An error is |k' - k| / |k| at the best shift of at most two pixels, the mean over pictures and kernels that never
trained. "motion" is deepinv's `MotionBlurGenerator` of 33 x 33 at noise 0.005, {HELD_OUT_PAIRS // 2} pairs.

Made by `python examples/train_kernel_guess.py --data {args.data.name} --kernels KERNELS --state STATE --out OUT --hours {args.hours:g} {channels} --batch {args.batch} --lr {args.lr:g} --seed {args.seed}`.
"""
    (folder / "README.md").write_text(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a network that guesses a blur kernel from a blurred picture.")
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures (searched recursively)")
    parser.add_argument("--kernels", type=Path, required=True, help="--state of train_kernels.py, with its kernels")
    parser.add_argument("--state", type=Path, required=True, help="folder of the training's state")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--hours", type=float, default=3, help="wall time to train, over all runs")
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
    facts |= {"pictures": len(training), "parameters": sum(w.numel() for w in network.parameters())}
    network.save_pretrained(args.out)
    write_card(args.out, args, facts)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
