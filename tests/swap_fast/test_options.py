"""What a command does before its options are parsed."""

from __future__ import annotations

import getpass
import os

import pytest

from swap_fast.options import name_the_user


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nameless)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    name_the_user()
    assert getpass.getuser() == f"user{os.getuid()}"
    monkeypatch.setenv("USER", "somebody")
    name_the_user()
    assert os.environ["USER"] == "somebody"
