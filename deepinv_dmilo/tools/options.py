"""What several commands share: the device, the prior, the task and the method."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepinv_dmilo import registry
from deepinv_dmilo.tools.task_names import RESAMPLERS, TASK_OPTIONS, TASK_PRESETS, TASKS

if TYPE_CHECKING:
    from deepinv.models import Reconstructor

    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.prior import Prior

SIMULATED_NOISE = 0.005  # standard deviation, where it is simulated (the paper's)
PRIOR_HELP = "installed or bundled name, pipeline folder or hub id"
DOWNSAMPLING_HELP = (
    "super-resolution: how IMAGE was made small (default: area; with --simulate, and in evaluate, deepinv's bicubic "
    "Downsampling, that of papers); what it costs not to know it is in docs/own_pictures.md"
)
NOISE_HELP = "standard deviation of the noise, images in [0, 1] "
SAMPLER = "dmilo-sampler"  # the method that --uncertainty and --save-samples imply
SHARED = ("max_calls", "max_passes", "num_samples")  # settings that methods of other packages need not take


def add_device(command: argparse._ActionsContainer) -> None:
    """Add ``--device`` to a command."""
    command.add_argument("--device", default=None, help="cpu, cuda, ... (default: a GPU where there is one)")


def add_bfloat16(command: argparse._ActionsContainer) -> None:
    """Add ``--bfloat16`` to a command or a group of its options."""
    what = "the network computes in bfloat16: faster on GPUs, and on CPUs that have it (AMX)"
    command.add_argument("--bfloat16", action="store_true", help=what)


def add_method(command: argparse._ActionsContainer) -> None:
    """Add what says which task and which method."""
    command.add_argument("--task", required=True, choices=TASKS)
    command.add_argument(
        "--method",
        choices=registry.available(),
        help=f"(default: dmilo; with --uncertainty or --save-samples {SAMPLER})",
    )
    command.add_argument("--published", action="store_true", help="the paper's settings for the task (slow)")
    command.add_argument(
        "--max-calls",
        type=int,
        help="forward passes of the network for an image (200 a sample, 100 of the sampler; a few on top)",
    )
    command.add_argument(
        "--max-passes", type=int, help="the same in forward and backward passes, each of which counts as two calls"
    )
    command.add_argument(
        "--num-samples", type=int, help="reconstructions from different noise that share the calls; their mean (1; 8)"
    )
    command.add_argument("--factor", type=float, help="super-resolution factor, 1.5 say (4)")
    command.add_argument("--downsampling", choices=RESAMPLERS, help=DOWNSAMPLING_HELP)
    command.add_argument("--missing", type=float, help="inpainting: simulated missing fraction (0.7)")
    command.add_argument("--blur-sigma", type=float, help="deblurring: Gaussian kernel, pixels (1.5)")
    command.add_argument(
        "--linear-light",
        action="store_true",
        default=None,
        help="(motion-)deblurring: the blur is a camera's, of light, and the picture in sRGB",
    )
    command.add_argument("--num-layers", type=int, help="layers of the chain (--published, dmplug; 3)")
    command.add_argument("--seed", type=int, default=0)
    add_bfloat16(command)
    add_device(command)


def open_device(name: str | None) -> str:
    """
    A device by its name, checked to work; None: a GPU if there is one.

    :raises ValueError: it is not available.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available ({str(error).splitlines()[0]}); type --device cpu") from error
    return name


def open_prior(name: str, device: str, *, bfloat16: bool = False) -> DiffusionPrior:
    """
    A prior by its installed or bundled name, pipeline folder or hub id, on a device.

    :raises ValueError, FileNotFoundError, ImportError, TypeError: it cannot be loaded, or knows no ``autocast``.
    """
    import torch

    settings: dict[str, Any] = {"autocast": torch.bfloat16} if bfloat16 else {}
    return registry.load(name, registry.PRIORS, optional={"device": device}, **settings).to(device)


def png(text: str) -> Path:
    """The PNG to write that an option names, in a folder that is there."""
    file = Path(text)
    if file.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    return file


def task_options(args: argparse.Namespace, noise: float, without: str | None = None) -> dict[str, Any]:
    """What the command line says of the task's physics; refuses what has no effect on it, but for one option."""
    names = [name for name in TASK_OPTIONS if name != without and getattr(args, name) is not None]
    given = {name: getattr(args, name) for name in names}
    for name in given:
        if args.task not in TASK_OPTIONS[name]:
            tasks = " or ".join(TASK_OPTIONS[name])
            raise ValueError(f"--{name.replace('_', '-')} goes with --task {tasks}, not {args.task}; leave it out")
    if noise > 1:
        raise ValueError(f"--noise {noise:g}: images are in [0, 1]; of values up to 255 type --noise {noise / 255:.3g}")
    return {"noise": noise, "seed": args.seed, **given}


def choose_method(args: argparse.Namespace) -> None:
    """Fill in the method of the command line; refuse options of samples where there are none."""
    options = {"--uncertainty": args.uncertainty, "--save-samples": args.save_samples}
    given = [option for option, value in options.items() if value]
    args.method = args.method or (SAMPLER if given else "dmilo")
    for option in given:
        if args.method != SAMPLER:
            raise ValueError(f"{option} goes with --method {SAMPLER}, not {args.method}; leave one of them out")
        if getattr(args, "blind", False):
            raise ValueError(f"{option} needs an operator that is known, as the blur of --kernel; leave --blind out")
        if args.num_samples == 1:
            raise ValueError(f"{option} needs several samples; type --num-samples 8, or leave --num-samples out")


def open_method(args: argparse.Namespace, prior: Prior, **settings: Any) -> Reconstructor:
    """The method of the command line; of another package's method only what its constructor takes is set."""
    settings |= {"rng": args.seed, **{name: getattr(args, name) for name in (*SHARED, "num_layers")}}
    settings = {name: value for name, value in settings.items() if value is not None}
    method = registry.get(args.method)
    takes = inspect.signature(method).parameters
    for name in (*SHARED, "unknown"):
        if name in settings and name not in takes:
            what, option = ("unknown blur", "blind") if name == "unknown" else (name, name.replace("_", "-"))
            raise ValueError(f"{args.method} takes no {what}; leave --{option} out")
    if args.num_layers is not None and not (args.published or "num_layers" in takes):
        published = "type --published as well, or " if getattr(method, "presets", True) else ""
        raise ValueError(f"{args.method} has no chain; {published}leave --num-layers out")
    if not args.published:
        return registry.load(args.method, optional={"prior": prior, **settings}).to(prior.device)
    if not (hasattr(method, "from_preset") and getattr(method, "presets", True)):
        raise ValueError(f"{args.method} has no published settings; leave --published out")
    if args.task not in TASK_PRESETS:
        raise ValueError(f"the paper has no settings for {args.task}; leave --published out")
    preset = TASK_PRESETS[args.task]
    if "unknown" in settings and f"blind_{preset}" in method.presets:
        preset = f"blind_{preset}"
    return method.from_preset(preset, prior, **settings)
