"""The command line: what it imports, and whose fault an error is (what options refuse: test_reconstruct_command)."""

import subprocess
import sys
import warnings

import pytest
import torch

from deepinv_dmilo import DMILO
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools import cli
from deepinv_dmilo.tools.pictures import as_png


@pytest.fixture
def commands(tmp_path):
    """The two commands that reconstruct, by name."""
    picture = tmp_path / "picture.png"
    as_png(held_out_images("digits")[0]).save(picture)
    options = ["--task", "denoising", "--device", "cpu"]
    return {
        "reconstruct": ["reconstruct", str(picture), "--prior", "digits", *options, "--out", str(tmp_path / "out.png")],
        "evaluate": ["evaluate", "digits", *options, "--limit", "1", "--out", str(tmp_path / "out")],
    }


OTHER_FOLDER = {"reconstruct": [], "evaluate": ["--out", "elsewhere"]}


def break_down(monkeypatch, error):
    def forward(self, y, physics):
        raise error

    monkeypatch.setattr(DMILO, "forward", forward)


def test_the_help_imports_neither_torch_nor_deepinv():
    code = (
        "import sys; from deepinv_dmilo.__main__ import _parser; _parser().format_help();"
        "print([name for name in ('torch', 'deepinv', 'numpy', 'diffusers', 'accelerate') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_script_that_was_installed_before_the_command_line_moved_tells_what_to_type():
    with pytest.raises(SystemExit, match=r"type: pip install -e \."):
        cli.main()


def test_a_warning_is_told_once_and_without_code(commands, monkeypatch, capsys):
    def forward(self, y, physics):
        for place in (1, 2):
            warnings.warn("the noise is all", RuntimeWarning, stacklevel=place)
        return torch.zeros(1, 1, 32, 32)

    monkeypatch.setattr(DMILO, "forward", forward)
    assert main(commands["reconstruct"]) == 0
    assert capsys.readouterr().err == "deepinv-dmilo: warning: the noise is all\n"


@pytest.mark.parametrize("name", ["reconstruct", "evaluate"])
@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), RuntimeError("a bug")])
def test_a_bug_keeps_its_traceback(commands, name, error, monkeypatch):
    break_down(monkeypatch, error)
    with pytest.raises(type(error), match="a bug"):
        main(commands[name])


@pytest.mark.parametrize("name", ["reconstruct", "evaluate"])
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RuntimeError("HIP out of memory;\nlower it"), 2, "error: HIP out of memory; lower it\n"),
        (torch.OutOfMemoryError("HIP: full"), 2, "error: HIP: full\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error: DefaultCPUAllocator"),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), 2, "error: cuFFT error: CUFFT_ALLOC_FAILED\n"),
        (MemoryError(), 2, "error: out of memory\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_is_no_bug_is_one_line(commands, name, error, code, told, monkeypatch, capsys):
    break_down(monkeypatch, error)
    assert main(commands[name]) == code
    assert f"deepinv-dmilo: {told}" in capsys.readouterr().err


def test_a_reconstruction_that_diverges_is_one_line_and_of_a_data_set_the_one_image(commands, monkeypatch, capsys):
    break_down(monkeypatch, FloatingPointError("the objective became nan;\nlower it"))
    assert main(commands["reconstruct"]) == 2
    assert "deepinv-dmilo: error: the objective became nan; lower it\n" in capsys.readouterr().err
    assert main(commands["evaluate"]) == 1
    assert "1 of 1 images could not be done:\n  00000: the objective became nan; lower it" in capsys.readouterr().err


def test_a_picture_that_could_not_be_written_is_told_before_the_work(commands, tmp_path, capsys):
    def refused(out):
        arguments = commands["reconstruct"]
        assert main([*arguments[: arguments.index("--out")], "--out", str(out)]) == 2
        return capsys.readouterr().err

    (tmp_path / "folder.png").mkdir()
    assert "no file can be written there" in refused(tmp_path / "folder.png")
    assert "would be lost; type another" in refused(commands["reconstruct"][1])


def test_results_of_other_settings_are_one_line(commands, monkeypatch, capsys):
    monkeypatch.setattr(DMILO, "forward", lambda self, y, physics: physics.A_adjoint(y))
    assert main(commands["evaluate"]) == 0
    assert main([*commands["evaluate"], "--noise", "0.1"]) == 2
    assert "deepinv-dmilo: error:" in (told := capsys.readouterr().err)
    assert "holds results of other settings (noise was 0.005 and is 0.1)" in told
    assert "Traceback" not in told


def test_a_slash_after_a_folder_makes_no_other_data_set(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(DMILO, "forward", lambda self, y, physics: physics.A_adjoint(y))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (tmp_path / "picture.png").rename(pictures / "picture.png")
    for folder in (str(pictures), f"{pictures}/"):
        command = ["evaluate", folder, *commands["evaluate"][2:], "--prior", "digits"]
        assert main(command) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--tasks", "deblur"], "no task 'deblur'"),
        (["--limit", "501"], "--limit 501: type a number"),
        (["--suite", "report", "--preset", "cats"], "type one of digits, photos, faces"),
        (["--suite", "report", "--preset", "faces"], "type --images FOLDER"),
        (["--suite", "report", "--tasks", "deblur"], "no task 'deblur'"),
        (["--suite", "report", "--methods", "XYZ"], "no method starts with XYZ"),
        (["--suite", "report", "--size", "100"], "--size 100: the network takes multiples"),
        (["--suite", "report", "--limit", "0"], "--limit 0, 16 pictures"),
        (["--suite", "report", "--budgets", "5"], "--budgets is of the suite digits; type --suite digits"),
        (["--batch-size", "4"], "--batch-size is of the suites report, calibration; type --suite report"),
        (["--drawn"], "--drawn is of the suite calibration; type --suite calibration"),
        (["--suite", "report", "--samples", "4"], "--samples is of the suite calibration; type --suite calibration"),
        (["--parallel-config", "nowhere.yml"], "no such file"),
    ],
)
def test_wrong_options_of_the_benchmark_are_one_line(more, told, tmp_path, capsys):
    assert main(["benchmark", "--out", str(tmp_path / "out"), *more]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reconstruct", "evaluate"])
@pytest.mark.parametrize(("option", "budget"), [("--max-calls", (12, None)), ("--max-passes", (None, 12))])
def test_a_budget_of_calls_or_of_passes(name, option, budget, commands, monkeypatch, capsys):
    given = []

    def forward(self, y, physics):
        given.append((self.max_calls, self.max_passes))
        return physics.A_adjoint(y)

    monkeypatch.setattr(DMILO, "forward", forward)
    assert main([*commands[name], option, "12"]) == 0
    assert given == [budget]
    assert main([*commands[name], "--max-calls", "12", "--max-passes", "12"]) == 2
    assert "max_calls=12 and max_passes=12 both set the budget; type one of them" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reconstruct", "evaluate"])
def test_bfloat16_is_what_the_network_computes_in(name, commands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    computed = []
    monkeypatch.setattr(
        DMILO, "forward", lambda self, y, physics: computed.append(self.prior.autocast) or physics.A_adjoint(y)
    )
    assert main(commands[name]) == main([*commands[name], "--bfloat16", *OTHER_FOLDER[name]]) == 0
    assert computed == [None, torch.bfloat16]
