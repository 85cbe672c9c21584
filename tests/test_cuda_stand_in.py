"""The rules of CUDA and NCCL that the stand-in keeps, each beside the page that states it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

pytestmark = pytest.mark.slow


def lines(cuda: StandIn, code: str, *, devices: int = 1, **env: str) -> list[str]:
    """What a program prints."""
    done = cuda.run(textwrap.dedent(code), devices=devices, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_captured_update_repeats_the_eager_one(cuda_stand_in: StandIn) -> None:
    code = """
    from bench.contract import largest_difference
    from swap_fast.execution import Execution
    execution = Execution(device_type="cuda", precision="fp16", capture=True)
    print(largest_difference(execution, scaled=True))
    """
    assert lines(cuda_stand_in, code) == ["0.0"]
