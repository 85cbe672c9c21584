"""Devices as their makers describe them. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device, and how several are joined."""

    name: str
    """As printed."""
    matrix_flop_s: float
    """Peak of dense matrix work in the training type, operations a second."""
    memory_bytes_s: float
    """Bandwidth of its memory."""
    memory_bytes: float
    """Size of its memory."""
    link_bytes_s: float
    """To the other devices of its node, one way."""
    network_bytes_s: float
    """Of a whole node to other nodes, one way."""
    gpus_per_node: int = 8
    """Devices that share a node."""
    activation_bytes: int = 2
    """Of one activation: fp16 on GPUs."""
    hop_s: float = 1e-5
    """What each step of an all-reduce takes whatever its size: our assumption."""


V100 = Hardware(
    name="V100 SXM2 (NVLink 2, 4 x 100 Gb/s a node)",
    matrix_flop_s=125e12,
    memory_bytes_s=900e9,
    memory_bytes=16e9,
    link_bytes_s=150e9,
    network_bytes_s=50e9,
)
"""NVIDIA's data sheet, and the network of its DGX-1."""

A100 = Hardware(
    name="A100 SXM 80 GB (NVLink 3, 8 x 200 Gb/s a node)",
    matrix_flop_s=312e12,
    memory_bytes_s=2.039e12,
    memory_bytes=80e9,
    link_bytes_s=300e9,
    network_bytes_s=200e9,
)
"""NVIDIA's data sheet, and the network of its DGX A100."""

H100 = Hardware(
    name="H100 SXM (NVLink 4, 8 x 400 Gb/s a node)",
    matrix_flop_s=989e12,
    memory_bytes_s=3.35e12,
    memory_bytes=80e9,
    link_bytes_s=450e9,
    network_bytes_s=400e9,
)
"""NVIDIA's data sheet, and the network of its DGX H100."""

HARDWARE = {"v100": V100, "a100": A100, "h100": H100}
"""By the name on the command line."""

DEVICE_NAMES = {"V100-SXM": "v100", "A100-SXM": "a100", "H100 80GB HBM3": "h100"}
"""What the driver's name of a device holds. Their forms as PCIe cards are slower."""


def by_device_name(name: str) -> str | None:
    """The key in `HARDWARE` of what the driver calls so; None: unknown, or a part of a device."""
    found = [key for part, key in DEVICE_NAMES.items() if part in name and "MIG" not in name]
    return found[0] if found else None
