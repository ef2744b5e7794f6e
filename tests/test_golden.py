"""
Results of the public interface on toys are as on record, to a millionth, and cost no more.

``python tests/test_golden.py`` writes the record anew, ``golden.json``: only where results are meant to change.
"""

import json
from functools import wraps
from pathlib import Path
from unittest.mock import patch

import deepinv
import pytest
import torch
from golden_cases import CASES

# of a guess that is nearly the whole kernel, which makes for well-behaved searches
pytestmark = pytest.mark.filterwarnings("ignore:.*almost flat:RuntimeWarning")
RECORD = Path(__file__).with_name("golden.json")
#: Rounding in another order (of AVX2 and AVX-512, say), and measurements that are moved by 1e-14, move these images by
#: 4e-8 at most. With a good denoiser as the network and little noise, images of unknown blurs move by 1e-2.
TOLERANCE = 1e-6
#: Rounding decides when power iterations and the steps of a sparse deviation end: 3 % of the calls of A.
SLACK = 1.05
STRIDE = 17  # of the pixels on record


def made_with():
    """What draws: without AVX2, torch's normal numbers of float32 have other last digits, which move images by 1e-2."""
    drawn = torch.randn(720, generator=torch.Generator().manual_seed(0))
    return {"deepinv": deepinv.__version__, "draws": drawn.double().sum().item().hex()}


def fingerprint(result):
    """Some numbers of a tensor, and mean and standard deviation of all."""
    result = result.flatten()
    numbers = torch.cat([result[::STRIDE], result.mean()[None], result.std()[None]])
    return [float(f"{number:.10g}") for number in numbers.tolist()]


def called(case):
    """What a case gives, its passes, and how many images A and the network are called with."""
    rows = {"A": 0, "network": 0}
    A, kind = type(case.physics).A, type(case.physics)

    @wraps(A)
    def counted(physics, x, *args, **kwargs):
        rows["A"] += len(x)
        return A(physics, x, *args, **kwargs)

    case.network.register_forward_pre_hook(lambda _, args: rows.update(network=rows["network"] + len(args[0])))
    with patch.object(kind, "A", counted):
        *results, metrics = case.model(case.y, case.physics, compute_metrics=True, **case.asked)
    found = [t for result in results for t in (result.values() if isinstance(result, dict) else [result])]
    passes = [[int(n) for n in curve] for curve in metrics["passes"]]
    return {"results": [fingerprint(t) for t in found], "passes": passes, **rows}


def outcome(name):
    torch.manual_seed(0)
    return called(CASES[name]())


@pytest.fixture(scope="module")
def record():
    made, *cases = json.loads(RECORD.read_text()).items()
    if made[1] != made_with():
        pytest.skip(f"the record was made with {made[1]}, this is {made_with()}")
    return dict(cases)


def test_every_case_is_on_record():
    assert list(json.loads(RECORD.read_text())) == ["made with", *CASES]


@pytest.mark.parametrize("name", CASES)
def test_results_are_as_on_record_and_cost_no_more(name, record):
    found, expected = outcome(name), record[name]
    assert found["passes"] == expected["passes"]
    for values, known in zip(found["results"], expected["results"], strict=True):
        assert values == pytest.approx(known, rel=TOLERANCE, abs=TOLERANCE)
    assert found["A"] <= SLACK * expected["A"]
    assert found["network"] <= expected["network"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    entries = {"made with": made_with(), **{name: outcome(name) for name in CASES}}
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
