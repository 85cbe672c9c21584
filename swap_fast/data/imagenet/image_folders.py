"""Which files a tree of class folders holds, and which links in it cannot be followed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that cannot be used."""

    name: str
    """Path below the tree's folder."""
    reason: str
    """Why, in a few words."""

    def __str__(self) -> str:
        """One line, whatever the name holds."""
        return f"{self.name!r} ({self.reason})"


def find_split(root: Path, *names: str) -> Path:
    """The first of these folders that is there.

    Raises:
        ValueError: none is, or it is a link out of the tree.
    """
    for name in names:
        if (root / name).is_dir():
            if not _is_inside(root / name, root):
                raise ValueError(f"{root / name}: expected a folder in the tree, got a link out")
            return root / name
    raise ValueError(f"{root}: expected a folder {' or '.join(names)} in it, found none")


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root)


def common_classes(folders: Sequence[Path]) -> tuple[str, ...]:
    """The names of the class folders, sorted, which both splits must have.

    Raises:
        ValueError: a split has none, or the two differ.
    """
    found = []
    for folder in folders:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        found.append(sorted(entry.name for entry in visible if entry.is_dir()))
        if not found[-1]:
            raise ValueError(
                f"{folder}: expected a folder a class, got {len(visible):,} files and no folder"
            )
    train, test = found
    if train != test:
        name = min(set(train) ^ set(test))
        here, there = folders if name in train else reversed(folders)
        raise ValueError(
            f"{folders[0].parent}: expected the same classes in {folders[0].name} and "
            f"{folders[1].name}, got class {name!r} in {here.name} and not in {there.name} "
            f"({len(set(train) ^ set(test))} differ)"
        )
    return tuple(train)


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """A file to look at."""

    name: str
    label: int


def list_files(
    root: Path, folder: Path, classes: Sequence[str]
) -> tuple[list[ListedFile], list[BadFile]]:
    """The files of all classes, sorted, and the links that cannot be followed.

    Hidden files and folders are left out; folders in class folders are gone through.
    """
    files: list[ListedFile] = []
    bad: list[BadFile] = []
    for label, name in enumerate(classes):
        # Byte order, so that every locale and every file system gives one order.
        for found, reason in sorted(
            _walk(root, folder, name, ()), key=lambda item: os.fsencode(item[0])
        ):
            if reason is None:
                files.append(ListedFile(name=found, label=label))
            else:
                bad.append(BadFile(name=f"{folder.name}/{found}", reason=reason))
    return files, bad


def _walk(
    root: Path, folder: Path, name: str, above: tuple[Path, ...]
) -> Iterator[tuple[str, str | None]]:
    """Each file below a class folder with None, or with why it is not looked at."""
    here = (folder / name).resolve()
    if not here.is_relative_to(root):
        yield name, "a link out of the tree"
        return
    if here in above:
        yield name, "a link to a folder that holds it"
        return
    with os.scandir(folder / name) as entries:
        for entry in entries:
            below = f"{name}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(root, folder, below, (*above, here))
            elif entry.is_symlink() and not _is_inside(Path(entry.path), root):
                yield below, "a link out of the tree"
            elif not entry.is_file():
                yield below, "no file" if not entry.is_symlink() else "a link to nothing"
            else:
                yield below, None
