"""The command line ``deepinv-dmilo``: demo, reconstruct, evaluate, benchmark, priors."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NoReturn

from deepinv_dmilo import __version__, registry
from deepinv_dmilo.benchmarks.cli import add_benchmark
from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.options import add_bfloat16, add_device, open_device, open_prior
from deepinv_dmilo.tools.task_names import PICTURE_TASKS, TASK_OPTIONS, TASK_PRESETS, TASKS

if TYPE_CHECKING:
    from deepinv.models import Reconstructor
    from torch import Tensor

    from deepinv_dmilo.priors.diffusers import DiffusionPrior

SIMULATED_NOISE = 0.005  # standard deviation, where it is simulated (the paper's)


class _Parser(argparse.ArgumentParser):
    """Errors as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command; what is no bug of ours is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("deepinv-dmilo: interrupted", file=sys.stderr)
        return 130
    except (InputError, OSError, ImportError, FloatingPointError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError | MemoryError) and not _is_out_of_memory(error):
            raise  # a bug
        print(f"deepinv-dmilo: error: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        return 2


def _is_out_of_memory(error: Exception) -> bool:
    from deepinv_dmilo.core.measurements import is_out_of_memory

    return is_out_of_memory(error)


def _parser() -> _Parser:
    parser = _Parser(
        prog="deepinv-dmilo", description="Image reconstruction with a diffusion prior: DMILO, DMILO-PGD, DMPlug."
    )
    parser.add_argument("--version", action="version", version=f"deepinv-dmilo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="four tasks on held-out photographs, beside deepinv's DiffPIR")
    demo.add_argument("--digits", type=int, nargs="?", const=2, metavar="N", help="N held-out digits instead (2)")
    demo.add_argument("--out", type=_png, default=Path("demo.png"), help="comparison picture (default: demo.png)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)

    reconstruct = commands.add_parser("reconstruct", help="reconstruct a picture of yours")
    reconstruct.add_argument("image", type=Path, metavar="IMAGE", help="degraded picture; clean with --simulate")
    reconstruct.add_argument("--out", type=_png, required=True, help="PNG to write")
    reconstruct.add_argument("--simulate", action="store_true", help="degrade IMAGE first; print PSNR before and after")
    reconstruct.add_argument("--mask", type=Path, help="inpainting: picture of IMAGE's size, white where known")
    reconstruct.set_defaults(run=_reconstruct)

    evaluate = commands.add_parser(
        "evaluate", help="degrade and reconstruct a data set; may be cut off; splits under accelerate launch"
    )
    evaluate.add_argument("dataset", metavar="DATASET", help="folder of pictures, deepinv data set, or 'digits'")
    evaluate.add_argument("--out", type=Path, required=True, help="folder of pictures, records and summary")
    evaluate.add_argument("--data-root", type=Path, help="where deepinv keeps its data sets")
    evaluate.add_argument("--size", type=int, help="pictures are resized and cropped to it (default: as trained)")
    evaluate.add_argument("--limit", type=int, help="only so many images, the first")
    evaluate.add_argument("--batch-size", type=int, default=8, help="images reconstructed together (default: 8)")
    evaluate.add_argument("--micro-batch", help="how many of them go through the network at once; auto: as many as fit")
    evaluate.set_defaults(run=_evaluate)
    what = "installed or bundled name, pipeline folder or hub id"
    reconstruct.add_argument("--prior", default="photos", help=f"{what} (default: photos)")
    evaluate.add_argument("--prior", help=f"{what} (default: the data set's own, else photos)")

    for command in (reconstruct, evaluate):
        command.add_argument("--task", required=True, choices=TASKS)
        command.add_argument("--method", default="dmilo-pgd", choices=registry.available(), help="(default: dmilo-pgd)")
        command.add_argument("--published", action="store_true", help="the paper's settings for the task (slow)")
        command.add_argument("--max-passes", type=int, help="network passes that an image may take (100)")
        noise = "standard deviation of the noise, images in [0, 1] "
        if command is evaluate:
            command.add_argument(
                "--noise", type=float, default=SIMULATED_NOISE, help=f"{noise}(default: {SIMULATED_NOISE})"
            )
        else:
            command.add_argument(
                "--noise", type=float, help=f"{noise}({SIMULATED_NOISE} with --simulate, else estimated)"
            )
        command.add_argument("--factor", type=int, help="super-resolution factor (4)")
        command.add_argument("--missing", type=float, help="inpainting: simulated missing fraction (0.7)")
        command.add_argument("--blur-sigma", type=float, help="deblurring: Gaussian kernel, pixels (1.5)")
        command.add_argument("--num-layers", type=int, help="layers of the chain (--published, dmplug; 3)")
        command.add_argument("--seed", type=int, default=0)

    add_benchmark(commands)

    priors = commands.add_parser("priors", help="list the bundled priors")
    priors.set_defaults(run=_priors)
    for command in (reconstruct, evaluate):
        add_bfloat16(command)
    for command in (demo, reconstruct, evaluate):
        add_device(command)
    return parser


def _png(text: str) -> Path:
    file = Path(text)
    if file.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    return file


def _demo(args: argparse.Namespace) -> None:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.pretrained import held_out_images
    from deepinv_dmilo.tools.demo import demo_digits, demo_photographs, format_table, run_demo, save_picture
    from deepinv_dmilo.tools.provenance import provenance, sentence

    with door():
        device, count = open_device(args.device), args.digits
        if count is not None and not 1 <= count <= len(held_out_images("digits")):
            raise ValueError(f"--digits {count}: type a number from 1 to {len(held_out_images('digits'))}")
        prior = DiffusionPrior.from_pretrained("photos" if count is None else "digits", device=device)
    if count is None:
        scenes, methods = demo_photographs(prior, verbose=not args.quiet)
    else:
        scenes, methods = demo_digits(prior, count=count, verbose=not args.quiet)
    rows, columns = run_demo(scenes, methods, verbose=not args.quiet)
    print(f"\n{format_table(rows)}\n")
    shown = "a held-out photograph for each task" if count is None else f"{count} held-out digits"
    print(f"{shown}, noise 0.005; {sentence(provenance(device))}")
    save_picture(columns, str(args.out))
    print(f"wrote {args.out}")


def _reconstruct(args: argparse.Namespace) -> None:
    import torch
    from deepinv.loss.metric import PSNR
    from deepinv.physics import LinearPhysics

    from deepinv_dmilo.tools.pictures import as_png
    from deepinv_dmilo.tools.tasks import FACTOR, make_physics

    with door():
        _check_pictures(args)
        device = open_device(args.device)
        prior = open_prior(args.prior, device, bfloat16=args.bfloat16)
        channels = prior.image_shape[0] if prior.image_shape else 3
        picture = _read(args.image, channels, f"the prior {args.prior!r}").to(device)
        options = _task_options(args)
        scale = options.get("factor", FACTOR) if args.task == "super-resolution" and not args.simulate else 1
        size = (channels, picture.shape[2] * scale, picture.shape[3] * scale)
        physics = make_physics(args.task, size, mask=_mask(args, picture), device=device, **options)
        with torch.no_grad():
            y = physics(picture) if args.simulate else physics.A(picture) if "inpainting" in args.task else picture
        model = _model(args, prior, verbose=True)
        if hasattr(model, "check"):  # as ours have: an error after this is no fault of the input
            model.check(y, physics)
    x_hat = model(y, physics)
    if args.simulate:
        before = ""
        if isinstance(physics, LinearPhysics):
            before = f"{PSNR()(physics.A_dagger(y).clamp(0, 1), picture).item():.2f} dB (pseudo-inverse) -> "
        print(f"PSNR {before}{PSNR()(x_hat, picture).item():.2f} dB ({args.method})")
    try:
        as_png(x_hat[0]).save(args.out)
    except OSError as error:  # a disk that is full by now
        rescued = Path(mkdtemp()) / f"{args.out.stem}.png"
        as_png(x_hat[0]).save(rescued)
        raise InputError(f"{args.out} cannot be written ({error}); the picture is in {rescued}") from error
    print(f"wrote {args.out}")


def _check_pictures(args: argparse.Namespace) -> None:
    """Refuse pictures that are not there, that the task does not take, or that it lacks."""
    if args.mask is not None and args.task != "inpainting":
        raise ValueError(f"--mask goes with --task inpainting, not {args.task}")
    for file in filter(None, (args.image, args.mask)):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such picture")
        if args.out.exists() and args.out.samefile(file):
            raise ValueError(f"--out {args.out} is {file}, which would be lost; type another")
    if args.out.is_dir() or not os.access(args.out.parent, os.W_OK):
        raise ValueError(f"--out {args.out}: no file can be written there; type a name in a folder that is there")
    if args.simulate:
        return
    if args.task not in PICTURE_TASKS:
        raise ValueError(f"{args.task} has no measurements that a picture can be; type --simulate and a clean one")
    if args.task == "inpainting" and args.mask is None:
        raise ValueError("inpainting a degraded picture needs --mask FILE, white where known (or --simulate)")


def _mask(args: argparse.Namespace, picture: Tensor) -> Tensor | None:
    """The mask of the command line, (C, H, W) as the picture (1, C, H, W)."""
    if args.mask is None:
        return None
    mask = (_read(args.mask, 1, "a mask") > 0.5).float()[0]
    if mask.shape[1:] != picture.shape[2:]:
        raise ValueError(f"--mask {args.mask} has size {tuple(mask.shape[1:])}, IMAGE {tuple(picture.shape[2:])}")
    return mask.expand(picture.shape[1], -1, -1)


def _task_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the task's physics; refuses what has no effect on it."""
    given = {name: getattr(args, name) for name in TASK_OPTIONS if getattr(args, name) is not None}
    for name in given:
        if args.task not in TASK_OPTIONS[name]:
            tasks = " or ".join(TASK_OPTIONS[name])
            raise ValueError(f"--{name.replace('_', '-')} goes with --task {tasks}, not {args.task}; leave it out")
    noise = args.noise
    if noise is None:  # of a degraded picture it is estimated, since the physics has none
        noise = SIMULATED_NOISE if args.simulate else 0.0
    return {"noise": noise, "seed": args.seed, **given}


def _model(args: argparse.Namespace, prior: DiffusionPrior, **settings: Any) -> Reconstructor:
    """The method of the command line; of another package's method only what its constructor takes is set."""
    settings = {"rng": args.seed, "max_passes": args.max_passes, "num_layers": args.num_layers, **settings}
    settings = {name: value for name, value in settings.items() if value is not None}
    method = registry.get(args.method)
    takes = inspect.signature(method).parameters
    if args.max_passes is not None and "max_passes" not in takes:
        raise ValueError(f"{args.method} has no budget; leave --max-passes out")
    if args.num_layers is not None and not (args.published or "num_layers" in takes):
        raise ValueError(f"{args.method} has no chain; type --published as well, or leave --num-layers out")
    if not args.published:
        return registry.load(args.method, optional={"prior": prior, **settings}).to(prior.device)
    if not hasattr(method, "from_preset"):
        raise ValueError(f"{args.method} has no published settings; leave --published out")
    if args.task not in TASK_PRESETS:
        raise ValueError(f"the paper has no settings for {args.task}; leave --published out")
    return method.from_preset(TASK_PRESETS[args.task], prior, **settings)


def _evaluate(args: argparse.Namespace) -> int:
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    from deepinv_dmilo.core.measurements import measure
    from deepinv_dmilo.priors.pretrained import bundled_priors
    from deepinv_dmilo.tools.evaluate import evaluate, open_images
    from deepinv_dmilo.tools.tasks import make_physics

    auto = args.micro_batch == "auto"
    if args.prior is None:
        args.prior = args.dataset if args.dataset in bundled_priors() else "photos"
    with door():
        _check_evaluate(args)
        # One process may wait long for another's last batch.
        state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available(), timeout=timedelta(days=30))
        device = (
            str(state.device)
            if args.device in (None, "cuda") and state.device.type == "cuda"
            else open_device(args.device)
        )
        prior = open_prior(args.prior, device, bfloat16=args.bfloat16)
        if prior.image_shape is None:
            raise ValueError(f"--prior {args.prior}: its network does not tell its image size; give a UNet2DModel")
        shape = prior.image_shape if args.size is None else (prior.image_shape[0], args.size, args.size)
        model = _model(args, prior, micro_batch=None if auto or args.micro_batch is None else int(args.micro_batch))
        if args.micro_batch is not None and not hasattr(model, "micro_batch"):
            raise ValueError(f"{args.method} cannot split a batch; leave --micro-batch out and lower --batch-size")
        with state.local_main_process_first():  # it may download
            images, names = open_images(args.dataset, shape, args.data_root)
        shape = tuple(images.shape[1:]) if torch.is_tensor(images) else shape  # type: ignore[assignment]
        physics = make_physics(args.task, shape, device=device, **_task_options(args))
        if hasattr(model, "check"):  # as ours have: an error after this is no fault of the input
            model.check(measure(torch.zeros(1, *shape, device=device), physics), physics)
    free = ("run", "out", "limit", "batch_size", "micro_batch", "data_root")  # results do not depend on them
    settings = {name: value for name, value in vars(args).items() if name not in free}
    settings["device"] = torch.device(device).type  # which draws the operator
    with torch.no_grad():
        evaluate(
            model,
            images,
            names[: args.limit],
            physics,
            args.out,
            settings=settings,
            seed=args.seed,
            batch_size=args.batch_size,
            device=device,
            halve_on_out_of_memory=auto,
        )
    if not state.is_main_process:
        return 0  # the exit code is the first process's, which may still be at work
    summary = (args.out / "summary.json").read_text()
    print(summary)
    print(f"wrote {args.out}")
    return 1 if json.loads(summary)["unreadable"] else 0


def _check_evaluate(args: argparse.Namespace) -> None:
    """Refuse numbers that are none, and results among the pictures."""
    for name, word in (("limit", ""), ("size", ""), ("batch_size", ""), ("micro_batch", ", or auto")):
        value = getattr(args, name)
        if value is None or (name == "micro_batch" and value == "auto"):
            continue
        if not (str(value).isdecimal() and int(value) > 0):
            raise ValueError(f"--{name.replace('_', '-')} {value}: type a whole number of at least 1{word}")
    if Path(args.dataset).resolve() in (args.out.resolve(), *args.out.resolve().parents):
        raise ValueError(f"--out {args.out} is inside {args.dataset}, where its pictures would be taken for images")


def _read(file: Path, channels: int, what: str) -> Tensor:
    """A picture as (1, channels, H, W) in [0, 1]; refuses colour where one channel is wanted."""
    from deepinv_dmilo.tools.pictures import read_picture

    picture = read_picture(file)
    if channels == 1 and not (picture == picture[:1]).all():
        raise ValueError(f"{file} is a colour picture and {what} takes grey ones; convert it to grey")
    return picture[None, :channels]


def _priors(args: argparse.Namespace) -> None:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.pretrained import bundled_priors, prior_folder

    for name in bundled_priors():
        folder = prior_folder(name)
        prior = DiffusionPrior.from_pretrained(name)
        megabytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        parameters = sum(p.numel() for p in prior.parameters())
        shape = " x ".join(map(str, prior.image_shape or ()))
        print(f"{name}: images {shape}, {parameters:,} parameters, {megabytes:.1f} MB, card {folder / 'README.md'}")
