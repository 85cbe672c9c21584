"""The device's own limits, measured as ways beside the steps: a matrix product, and a copy."""

import torch

from bench.micro.footprint import synchronize
from bench.micro.interleave import Way, Work
from swap_fast.config.execution import DTYPES

MATRIX_SIZE = {"cpu": 4096, "cuda": 8192}
"""Rows of the square matrices: large enough that larger ones are no faster."""
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Of the copy's source: more than any cache holds."""
PRODUCTS = {"cpu": 1, "cuda": 20}  # a turn


def roof_ways(device_type: str, precision: str, shapes: list[tuple[int, int]]) -> list[Way]:
    """A matrix product and a copy for each (processes, threads) that a step was given."""
    return [
        way
        for processes, threads in shapes
        for way in (
            Way(
                name=f"roof: {precision} matrix product",
                make=matrix_product,
                arguments=(device_type, precision, MATRIX_SIZE[device_type]),
                processes=processes,
                threads=threads,
                unit="FLOP",
            ),
            Way(
                name="roof: copy in memory",
                make=memory_copy,
                arguments=(device_type, COPIED_BYTES[device_type] // processes),
                processes=processes,
                threads=threads,
                unit="bytes",
            ),
        )
    ]


def matrix_product(device_type: str, precision: str, size: int) -> Work:
    """Products of two square matrices, into a third: 2 size^3 operations each."""
    device, dtype = torch.device(device_type), DTYPES[precision]
    products = PRODUCTS[device_type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def work() -> int:
        for _ in range(products):
            torch.mm(left, right, out=product)
        synchronize(device)
        return products * 2 * size**3

    work()
    return work


def memory_copy(device_type: str, num_bytes: int) -> Work:
    """A copy of so many bytes: each is read once and written once, and counted twice."""
    device = torch.device(device_type)
    # Of ones: zeros that were never written may all be one page of the system's.
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.ones_like(source)

    def work() -> int:
        target.copy_(source)
        synchronize(device)
        return 2 * source.numel() * 4

    work()
    return work
