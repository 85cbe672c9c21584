"""A function in a process of its own: its answers, its errors, and what its end leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from processes import all_end

from bench.runner.process import NoAnswerError, RemoteFunction


def calculator(offset: int) -> Callable[[str], object]:
    """Adds to the length of a text; some texts are commands."""

    def answer(text: str) -> object:
        if text == "die":
            print("cannot go on\n", file=sys.stderr, flush=True)
            os._exit(7)
        if text == "hang":
            subprocess.Popen(["sleep", "600"])
            time.sleep(600)
        if text == "group":
            print("this is not seen")
            return os.getpid()
        if text == "refuse":
            raise ValueError("text: expected another,\ngot this")
        if text == "fail":
            raise KeyError(text)
        return offset + len(text)

    return answer


def refusing() -> Callable[[str], object]:
    raise ValueError("cannot be made")


def test_a_function_answers_one_request_after_another(capfd: pytest.CaptureFixture[str]) -> None:
    with RemoteFunction(calculator, 10) as function:
        assert not function.is_running
        function.start()
        assert function.receive() is None
        function.send("four")
        assert function.receive(60) == 14
        function.send("refuse")
        with pytest.raises(ValueError, match=r"^text: expected another, got this$"):
            function.receive()
        function.send("fail")
        with pytest.raises(RuntimeError, match=r"^KeyError: 'fail'$"):
            function.receive()
        function.send("group")
        group = function.receive()
    assert all_end(group)
    assert capfd.readouterr() == ("", "")


def test_a_function_that_cannot_be_made_is_an_error() -> None:
    with RemoteFunction(refusing) as function:
        function.start()
        with pytest.raises(ValueError, match=r"^cannot be made$"):
            function.receive()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("die", "^its process ended with code 7: cannot go on$"),
        ("hang", "^no answer within 0.5 s$"),
    ],
)
def test_a_process_without_an_answer_is_gone_with_what_it_started_and_another_starts(
    request_: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with RemoteFunction(calculator, 0) as function:
        function.start()
        function.receive()
        function.send("group")
        group = function.receive()
        function.send(request_)
        with pytest.raises(NoAnswerError, match=words):
            function.receive(0.5 if request_ == "hang" else None)
        assert all_end(group)
        assert ("cannot go on" in capfd.readouterr().err) == (request_ == "die")
        function.start()
        assert function.receive() is None
