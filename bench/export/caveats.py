"""What a reader must know of a run that leaves its report: why it is no official result. No torch.

Tables have captions and a list of other runs for this; an exported run carries it along.
"""

from bench.records.grouping import device_type, recipe_of, why_not_comparable
from swap_fast.record import RunRecord


def caveats_of(record: RunRecord) -> list[str]:
    """Every reason why a run's figures are not those of a published benchmark; may be empty."""
    recipe, found = recipe_of(record), []
    kind, train, test = (record.data.get(name) for name in ("kind", "train_images", "test_images"))
    if reason := why_not_comparable(record, kinds=(str(kind),)):
        found.append(reason)
    if kind != "published":
        found.append(f"{train} training and {test} test images, which are not the published set")
    if not recipe["paper_scale"]:
        found.append(f"{recipe['net']} of width {recipe['width']}, a form for a CPU")
    if held_out := record.data.get("held_out"):
        found.append(f"tested on {held_out} held-out training images")
    if device_type(record) == "cpu":
        found.append("run on a CPU")
    if record.start is not None:
        found.append(f"phase 1 and its time are those of {record.start['run_id']}")
    if record.interruptions is not None:
        found.append("the run was interrupted; lost work is not counted")
    return found
