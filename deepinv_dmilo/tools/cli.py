"""The command line ``deepinv-dmilo``: demo, reconstruct, evaluate, benchmark, priors."""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deepinv_dmilo import __version__, registry
from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.task_names import PICTURE_TASKS, TASK_PRESETS, TASKS

if TYPE_CHECKING:
    from deepinv.models import Reconstructor
    from deepinv.physics import Physics
    from torch import Tensor

    from deepinv_dmilo.priors.diffusers import DiffusionPrior


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
        command.add_argument("--method", default="dmilo-pgd", choices=registry.available())
        command.add_argument("--published", action="store_true", help="the paper's settings for the task (slow)")
        command.add_argument("--max-passes", type=int, help="network passes that an image may take")
        command.add_argument(
            "--noise", type=float, default=0.005, help="standard deviation of the noise, images in [0, 1]"
        )
        command.add_argument("--factor", type=int, default=4, help="super-resolution factor")
        command.add_argument("--missing", type=float, default=0.7, help="inpainting: simulated missing fraction")
        command.add_argument("--blur-sigma", type=float, default=1.5, help="deblurring: Gaussian kernel, pixels")
        command.add_argument("--num-layers", type=int, help="layers of the chain (--published, dmplug; 3)")
        command.add_argument("--seed", type=int, default=0)

    benchmark = commands.add_parser("benchmark", help="compare methods on the same prior, pictures and measurements")
    benchmark.add_argument(
        "--suite",
        default="digits",
        choices=("digits", "report"),
        help="digits: all installed methods, with benchopt; report: ours and tuned rivals on any prior and pictures",
    )
    benchmark.add_argument("--out", type=Path, default=Path("benchmark"), help="folder (default: benchmark)")
    benchmark.add_argument("--quick", action="store_true", help="one picture, two tasks, few methods: a minute or two")
    benchmark.add_argument("--limit", type=int, help="pictures, the first (default: 8; report: the preset's)")
    benchmark.add_argument("--tasks", nargs="+", metavar="TASK", help="of the report (default: all ten)")
    benchmark.add_argument("--noises", nargs="+", type=float, metavar="SIGMA", help="default: 0.005 0.05")
    report = benchmark.add_argument_group("report")
    report.add_argument("--preset", default="photos", help="digits, photos (default), faces: the paper's settings")
    report.add_argument("--prior", help="installed or bundled name, pipeline folder or hub id (default: the preset's)")
    report.add_argument("--images", help="folder of pictures or deepinv data set; rivals are tuned on the last four")
    report.add_argument("--size", type=int, help="pictures are resized and cropped to it")
    report.add_argument("--methods", nargs="+", metavar="METHOD", help="names, or how they start (default: all)")
    report.add_argument("--batch-size", type=int, help="pictures reconstructed together")
    report.add_argument("--only-write", action="store_true", help="run nothing, write tables and pictures again")
    suite = benchmark.add_argument_group("digits")
    suite.add_argument("--budgets", nargs="+", type=int, metavar="PASSES", help="default: 25 50 100")
    suite.add_argument("-s", "--solver", nargs="+", default=[], help="more benchopt solvers: name[...] or file[...]")
    suite.add_argument("--parallel-config", type=Path, metavar="YAML", help="benchopt's, for dask, SLURM, ...")
    suite.add_argument("--solver-path", action="store_true", help="print the solver file for benchopt -s, and end")
    benchmark.set_defaults(run=_benchmark)

    priors = commands.add_parser("priors", help="list the bundled priors")
    priors.set_defaults(run=_priors)
    for command in (demo, reconstruct, evaluate, benchmark):
        command.add_argument("--device", default=None, help="cpu, cuda, ... (default: a GPU where there is one)")
    return parser


def _png(text: str) -> Path:
    file = Path(text)
    if file.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    return file


def _device(args: argparse.Namespace) -> str:
    import torch

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available ({str(error).splitlines()[0]}); type --device cpu") from error
    return name


def _demo(args: argparse.Namespace) -> None:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.pretrained import held_out_images
    from deepinv_dmilo.tools.demo import demo_digits, demo_photographs, format_table, run_demo, save_picture
    from deepinv_dmilo.tools.provenance import provenance, sentence

    with door():
        device, count = _device(args), args.digits
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

    with door():
        _check_pictures(args)
        device = _device(args)
        prior = _prior(args, device)
        channels = prior.image_shape[0] if prior.image_shape else 3
        picture = _read(args.image, channels, f"the prior {args.prior!r}").to(device)
        scale = args.factor if args.task == "super-resolution" and not args.simulate else 1
        size = (channels, picture.shape[2] * scale, picture.shape[3] * scale)
        physics = _physics(args, size, device, _mask(args, picture))
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
    as_png(x_hat[0]).save(args.out)
    print(f"wrote {args.out}")


def _check_pictures(args: argparse.Namespace) -> None:
    """Refuse pictures that are not there, that the task does not take, or that it lacks."""
    if args.mask is not None and args.task != "inpainting":
        raise ValueError(f"--mask goes with --task inpainting, not {args.task}")
    for file in filter(None, (args.image, args.mask)):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such picture")
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


def _prior(args: argparse.Namespace, device: str) -> DiffusionPrior:
    return registry.load(args.prior, registry.PRIORS, optional={"device": device}).to(device)


def _physics(args: argparse.Namespace, size: tuple[int, int, int], device: str, mask: Tensor | None = None) -> Physics:
    from deepinv_dmilo.tools.tasks import make_physics

    return make_physics(
        args.task,
        size,
        noise=args.noise,
        factor=args.factor,
        missing=args.missing,
        mask=mask,
        blur_sigma=args.blur_sigma,
        seed=args.seed,
        device=device,
    )


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

    auto = args.micro_batch == "auto"
    if args.prior is None:
        args.prior = args.dataset if args.dataset in bundled_priors() else "photos"
    with door():
        _check_evaluate(args)
        # One process may wait long for another's last batch.
        state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available(), timeout=timedelta(days=30))
        device = str(state.device) if args.device in (None, "cuda") and state.device.type == "cuda" else _device(args)
        prior = _prior(args, device)
        if prior.image_shape is None:
            raise ValueError(f"--prior {args.prior}: its network does not tell its image size; give a UNet2DModel")
        shape = prior.image_shape if args.size is None else (prior.image_shape[0], args.size, args.size)
        model = _model(args, prior, micro_batch=None if auto or args.micro_batch is None else int(args.micro_batch))
        if args.micro_batch is not None and not hasattr(model, "micro_batch"):
            raise ValueError(f"{args.method} cannot split a batch; leave --micro-batch out and lower --batch-size")
        with state.local_main_process_first():  # it may download
            images, names = open_images(args.dataset, shape, args.data_root)
        shape = tuple(images.shape[1:]) if torch.is_tensor(images) else shape  # type: ignore[assignment]
        physics = _physics(args, shape, device)
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


def _benchmark(args: argparse.Namespace) -> None:
    from deepinv_dmilo.benchmarks.suite import QUICK, SOLVER_FILE, run_suite

    if args.solver_path:
        print(SOLVER_FILE)
        return
    if args.suite == "report":
        _report(args)
        return
    given = {name: getattr(args, name) for name in ("tasks", "noises", "limit", "budgets")}
    settings = {**(QUICK if args.quick else {}), **{name: value for name, value in given.items() if value is not None}}
    if args.parallel_config is not None and not args.parallel_config.is_file():
        raise InputError(f"--parallel-config {args.parallel_config}: no such file")
    run_suite(args.suite, args.out, solvers=args.solver, parallel_config=args.parallel_config, **settings)
    print((args.out / "results.md").read_text())
    print(f"wrote {args.out}")


def _report(args: argparse.Namespace) -> None:
    from deepinv_dmilo.benchmarks.methods import METHODS
    from deepinv_dmilo.benchmarks.records import Row, read_lines
    from deepinv_dmilo.benchmarks.report import QUICK_REPORT, chosen_methods, claim_folder, run, write
    from deepinv_dmilo.benchmarks.studies import PRESETS, Study
    from deepinv_dmilo.tools.scoring import perceptual_metric

    with door():
        if args.preset not in PRESETS:
            raise ValueError(f"--preset {args.preset}: type one of {', '.join(PRESETS)}")
        device = _device(args)
        names = ("methods", "prior", "images", "size", "limit", "tasks", "noises", "batch_size")
        given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        settings = {**(QUICK_REPORT if args.quick else {}), **given}
        methods = chosen_methods(settings.pop("methods", None))
        preset = PRESETS[args.preset].with_settings(**settings)
        args.out.mkdir(parents=True, exist_ok=True)
        claim_folder(preset, args.out)
        study = None if args.only_write else Study.open(preset, device)
    if study is not None:
        lpips = perceptual_metric()
        run(study, methods, args.out, None if lpips is None else lpips.to(device))
    rows = read_lines(Row, args.out / "results.csv")
    order = [label for name in METHODS for label in (name, f"{name}, recommended", f"{name}, tuned")]
    rows.sort(key=lambda row: order.index(row.method) if row.method in order else len(order))
    command = shlex.join(["deepinv-dmilo", "benchmark", "--suite", "report", "--preset", args.preset])
    for name, value in given.items():
        command += f" --{name.replace('_', '-')} {shlex.join(map(str, value)) if isinstance(value, list) else value}"
    write(preset, rows, args.out, command, device)
    print((args.out / "report.md").read_text())
    print(f"wrote {args.out}")


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
