"""What the user of an average of files should know."""

from collections.abc import Mapping, Sequence

from swap_fast.averaging_files.file_means import differing
from swap_fast.averaging_files.weight_files import WeightFile

TEST_CHOSEN = (
    "the soup was chosen by the test images, so that its accuracy on them flatters it; choose by "
    "held-out data instead"
)


def soup_notes(
    files: Sequence[WeightFile],
    names: Sequence[str],
    batch_norm: str,
    barriers: Mapping[int, float],
    max_barrier: float,
    *,
    tried: bool,
) -> list[str]:
    """One line for each thing that might be overlooked.

    Arguments:
        batch_norm: as in a `SoupReport`.
        barriers: of each file's segment to the average, by number.
        tried: whether there was a net.
    """
    notes = []
    if batch_norm == "averaged":
        notes.append(
            "the batch-norm statistics are mere averages, which do not fit the averaged weights: "
            "give --model and --data with training batches, and they are computed anew"
        )
    if not tried:
        notes.append(
            "whether the models share a basin was not tested: give --model and --data with test "
            "batches"
        )
    for i, drop in barriers.items():
        if drop > max_barrier:
            notes.append(
                f"{names[i]} lies in another basin: on the way from the average the accuracy falls "
                f"{100 * drop:.2f} points below the straight line; leave it out"
            )
    first: dict[str, int] = {}
    for i, file in enumerate(files):
        if file.sha256 in first:
            twin = names[first[file.sha256]]
            notes.append(f"{names[i]} has the bytes of {twin}: the model counts twice")
        first.setdefault(file.sha256, i)
    if whole := differing(files):
        notes.append(
            f"{whole[0]} holds whole numbers that differ, of which none is the mean"
            + (f", and so do {len(whole) - 1} more" if whole[1:] else "")
            + f": those of {names[0]} are kept"
        )
    if left := files[0].left_out:
        notes.append(f"left out, for they are no tensors: {', '.join(left[:8])}")
    return notes
