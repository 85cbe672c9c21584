"""Where `--all-reduce-buckets` cuts the gradient: of a net's parameters, and of a plan's layers."""

from collections.abc import Sequence


def cut_sizes(sizes: Sequence[int], num_buckets: int) -> list[range]:
    """Which vectors are in each bucket, from the last vector to the first.

    Each bucket but the last takes at least half of what is left, so that little is in the last
    one, whose sum no backward pass hides.

    Arguments:
        sizes: values of each vector, in the order of the forward pass.
        num_buckets: at most; of few vectors there are fewer.
    """
    buckets: list[range] = []
    end, left, taken = len(sizes), sum(sizes), 0
    for start in range(len(sizes) - 1, 0, -1):
        taken += sizes[start]
        if len(buckets) < num_buckets - 1 and 2 * taken >= left > taken:
            buckets.append(range(start, end))
            end, left, taken = start, left - taken, 0
    return [*buckets, range(end)]
