"""The images of a folder of pictures, of a data set of deepinv, or those that a bundled prior was not trained on."""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import deepinv
from deepinv.datasets import ImageFolder
from torchvision import transforms

from deepinv_dmilo.priors.pretrained import bundled_priors, held_out_images
from deepinv_dmilo.tools.folder import few, shown
from deepinv_dmilo.tools.pictures import ENDINGS, read_picture, refuse_strips


def walked(folder: Path) -> tuple[dict[Path, list[Path]], list[Path]]:
    """
    The files of a folder and of those below, links followed, by where each folder truly is; the folders left out.

    Each folder is taken once, by a name without links if it has one that is not hidden. Left out are links that are
    hidden, to one that is taken already, or to one that the link lies in, and what cannot be read.
    """
    files: dict[Path, list[Path]] = {}
    left: list[Path] = []
    waiting, hidden = [folder], list[Path]()
    for start in itertools.chain(waiting, hidden):
        around = {*folder.resolve().parents, *start.parent.resolve().parents, start.parent.resolve()}
        if start != folder and start.resolve() in around | files.keys():
            left.append(start)
            continue
        for name, folders, found in os.walk(start, onerror=lambda error: left.append(Path(error.filename))):
            path = Path(name)
            files[path.resolve()] = [path / part for part in found]
            links = sorted(path / part for part in folders if (path / part).is_symlink())
            own = sorted({path / part for part in folders} - set(links))
            waiting.extend(part for part in links if not part.name.startswith("."))
            hidden.extend(part for part in own if part.name.startswith("."))
            left.extend(part for part in own if part.resolve() in files)
            folders[:] = [part.name for part in own if part not in {*left, *hidden}]
    return files, left


def picture_files(folder: Path, *, quiet: bool = False) -> list[Path]:
    """The pictures below a folder, links followed, by name: no hidden files; lines on stderr say what is left out."""
    files, left = walked(folder)
    found = sorted(itertools.chain.from_iterable(files.values()))
    hidden = {f for f in [*found, *left] if any(part.startswith(".") for part in f.relative_to(folder).parts)}
    pictures = [f for f in found if f.suffix.lower() in ENDINGS and f not in hidden]
    if quiet:
        return pictures
    taken = set(pictures)
    others = [f for f in found if f not in taken and f.is_file()]
    folders = [f for f in left if f not in hidden]
    if others:
        names = few([f.relative_to(folder).as_posix() for f in others])
        print(
            f"{shown(str(folder))}: {len(others)} of {len(others) + len(pictures)} files are not taken, hidden or "
            f"without the ending of a picture: {names}",
            file=sys.stderr,
        )
    if folders:
        names = few([f.relative_to(folder).as_posix() for f in folders])
        print(f"{shown(str(folder))}: folders are left out, unreadable or taken already: {names}", file=sys.stderr)
    return pictures


def open_images(
    source: str, shape: tuple[int, int, int], root: Path | None = None, *, quiet: bool = False
) -> tuple[Any, list[str]]:
    """
    The images of a folder, of a data set of deepinv, or those that a bundled prior was not trained on.

    :param str source: folder of pictures; class of ``deepinv.datasets`` such as ``"Set14HR"``, which is downloaded; or
        bundled prior such as ``"digits"``.
    :param tuple shape: (C, H, W) that pictures are resized and cropped to; made grey where C is 1.
    :param pathlib.Path root: where ``deepinv.datasets`` keeps its files (default: ``datasets/``).
    :param bool quiet: do not print which files of a folder are left out.
    :return: images in [0, 1] by index, each (C, H, W); their names, unique.
    """
    grey = [transforms.Grayscale()] if shape[0] == 1 else []
    fit = transforms.Compose(
        [refuse_strips, *grey, transforms.Resize(max(shape[1:])), transforms.CenterCrop(shape[1:])]
    )
    if Path(source).is_dir():
        images = ImageFolder(source, x_path="*", loader=read_picture, transform=fit)
        images.x_paths = picture_files(Path(source), quiet=quiet)
        names = [path.relative_to(source).with_suffix("").as_posix() for path in images.x_paths]
        if not names:
            raise ValueError(f"{source} has no pictures; give a folder of PNG or JPEG files")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{source} has two pictures named {shown(twice[0])} but for their ending; rename one")
        return images, names
    if source in bundled_priors():
        pictures = held_out_images(source)
        pictures = fit(pictures).clamp(0, 1) if pictures.shape[1:] != shape else pictures
        return pictures, [f"{i:05d}" for i in range(len(pictures))]
    kind: Any = getattr(deepinv.datasets, source, None)
    known = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if {"root", "download"} <= known.keys():
        held_out = {name: value for name, value in {"mode": "val", "train": False}.items() if name in known}
        to_tensor = transforms.Compose([transforms.ToTensor(), fit])
        images = kind(root=str(root or Path("datasets") / source), download=True, transform=to_tensor, **held_out)
        return images, [f"{i:05d}" for i in range(len(images))]
    raise FileNotFoundError(
        f"{source!r} is neither a folder of pictures, nor a data set of deepinv.datasets such as 'Set14HR', nor a "
        f"bundled prior ({', '.join(bundled_priors())})"
    )
