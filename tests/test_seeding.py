"""Randomness as a function of what is drawn: pinned numbers, types, order, and no trace in global state."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cad.seeding import generator, seed_for

ROOT = Path(__file__).parents[1]
PART = st.one_of(st.integers(), st.text(alphabet="abc:-0123456789", max_size=8))


def test_seeds_are_the_published_ones() -> None:
    """Another number here is another result everywhere: the first 63 bits of SHA-256, by `printf ... | sha256sum`."""
    # printf 'int:0\x1fstr:robot\x1fstr:prior\x1fint:3\x1fint:1' | sha256sum
    digest = "f803f920202a147ed8635a5aab703edc22b45f1c978d1bc5d09e79d8a0372e78"
    assert seed_for(0, "robot", "prior", 3, 1) == int(digest[:16], 16) // 2 == 8935700831355079231


# The check times the drawing of a few short parts: it tells a busy machine, nothing else.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PART, max_size=5), st.lists(PART, max_size=5))
def test_different_parts_have_different_seeds(first: list[int | str], second: list[int | str]) -> None:
    same = [(type(part), part) for part in first] == [(type(part), part) for part in second]
    assert (seed_for(*first) == seed_for(*second)) == same
    assert 0 <= seed_for(*first) < 2**63


def test_types_order_and_grouping_count() -> None:
    variants = [(1, 2), (2, 1), (12,), ("1", 2), ("1", "2"), ("12",), (1,), (-1,), (), ("",), ("", "")]
    assert len({seed_for(*parts) for parts in variants}) == len(variants)


@pytest.mark.parametrize("part", [1.0, True, None, b"a", (1,), np.int64(1), torch.tensor(1), Path("a")])
def test_what_has_no_stable_text_is_refused(part: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(part).__name__}"):
        seed_for("a", part)  # type: ignore[arg-type]


def test_equal_parts_give_equal_streams_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (torch.randn(100, generator=generator(0, "robot", k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())
    assert generator("a").device.type == "cpu"


def test_neighbouring_seeds_are_not_correlated() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator("prior", i)) for i in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max().item() < 4 / 2000**0.5


def test_no_code_draws_from_a_clock_or_from_global_state() -> None:
    """Every draw in the package names its generator; global seeds are set inside `fork_rng` only, by library models."""
    drawn = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}
    faults = []
    for path in sorted((ROOT / "cad").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            named = any(keyword.arg == "generator" for keyword in node.keywords)
            loose = called in {f"torch.{name}" for name in drawn} and not named
            hidden = called.startswith(("np.random.", "random.")) and called != "np.random.default_rng"
            unseeded = called == "np.random.default_rng" and not node.args
            clock = called in {"time.time", "datetime.now", "datetime.datetime.now", "socket.gethostname"}
            # The first prints how long is left, the second tells old leftovers by their age; neither's result lasts.
            clock = clock and path not in (ROOT / "cad/status.py", ROOT / "cad/render/build.py")
            if loose or hidden or unseeded or clock:
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
    assert faults == []
