"""Files that are written whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swap_fast.files import remove_parts, write_file


def test_a_new_file_takes_no_name_that_is_taken_but_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "record.json"
    write_file(path, b"first", new=True)
    with pytest.raises(FileExistsError):
        write_file(path, b"second", new=True)
    assert path.read_bytes() == b"first"
    path.write_bytes(b"")  # as of a process that was killed between the name and the content
    write_file(path, b"second", new=True)
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_of_two_that_take_a_new_name_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace, others = tmp_path / "record.json", Path.replace, []

    def late(part: Path, to: Path) -> Path:
        """The other comes while the first has the name and not yet the content."""
        if not others:
            others.append("it comes")
            with pytest.raises(FileExistsError):
                write_file(path, b"second", new=True)
            others.append("and is refused")
        return replace(part, to)

    monkeypatch.setattr(Path, "replace", late)
    write_file(path, b"first", new=True)
    assert len(others) == 2
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "record.json", b"content", new=True)
    assert (tmp_path / "record.json").read_bytes() == b"content"


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"another's")
    (tmp_path / "file").symlink_to(tmp_path / "other")
    write_file(tmp_path / "file", b"ours")
    assert (tmp_path / "other").read_bytes() == b"another's"
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert not (tmp_path / "file").is_symlink()


def test_a_rename_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError, match="3 bytes of file could not be written"):
        write_file(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_the_parts_of_one_name_are_removed(tmp_path: Path) -> None:
    names = [".a.json.123.part", ".ab.json.123.part", "a.json", "a.part.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    remove_parts(tmp_path, "a.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])
    remove_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[2:])
