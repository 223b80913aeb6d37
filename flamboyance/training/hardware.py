"""Accelerators, from their makers' data sheets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Hardware:
    """One kind of accelerator. Bandwidths are bytes per second in one direction.

    Attributes:
        bf16, fp32: peak operations per second of dense matrix products with float32 sums (fp32: without TF32).
        memory: bytes, as the driver reports them.
        memory_bandwidth: of its memory.
        link: bandwidth to other devices of the node (NVLink, or PCIe).
        network: its share of the node's bandwidth to other nodes, in the maker's reference node.
        reserve: bytes that the driver, libraries and communication use before the first tensor.
        fragments: memory lost between the allocator's blocks, as a fraction of the tensors' memory.
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    memory_bandwidth: float
    link: float
    network: float
    reserve: float = 1.5 * 2**30
    fragments: float = 0.03

    def peak(self, precision: str) -> float:
        return self.bf16 if precision == "bf16" else self.fp32

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


# NVIDIA's data sheets: H100 SXM, H200 SXM, A100 SXM, L40S, L4, T4, RTX 4090 (Ada whitepaper), HGX B200. Half of the
# NVLink figures there, which count both directions; half of the matrix figures where they count sparsity. Network: 400
# Gb/s a GPU in DGX H100, H200 and B200, 200 in DGX A100; 100 with L40S and L4, 50 with T4, and a desktop's 10 with RTX
# 4090, are usual.
KINDS = {
    hardware.name: hardware
    for hardware in (
        Hardware("H100-80GB", 989e12, 67e12, 81559 * MIB, 3.35e12, 450e9, 50e9),
        Hardware("H200-141GB", 989e12, 67e12, 143771 * MIB, 4.8e12, 450e9, 50e9),
        Hardware("A100-80GB", 312e12, 19.5e12, 81920 * MIB, 2.04e12, 300e9, 25e9),
        Hardware("A100-40GB", 312e12, 19.5e12, 40960 * MIB, 1.56e12, 300e9, 25e9),
        Hardware("L40S-48GB", 362e12, 91.6e12, 46068 * MIB, 0.864e12, 32e9, 12.5e9),
        Hardware("L4-24GB", 121e12, 30.3e12, 23034 * MIB, 0.3e12, 32e9, 12.5e9),
        Hardware("T4-16GB", 8.1e12, 8.1e12, 15360 * MIB, 0.32e12, 16e9, 6.25e9),  # no bfloat16: computed in float32
        Hardware("RTX4090-24GB", 165e12, 82.6e12, 24564 * MIB, 1.008e12, 32e9, 1.25e9),
        Hardware("B200-180GB", 2250e12, 75e12, 183359 * MIB, 8e12, 900e9, 50e9),
    )
}


def has_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32: it has an NVIDIA GPU, or a processor with
    instructions for it. Does not import torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    return Path("/proc/driver/nvidia/version").exists() or "avx512_bf16" in flags or "amx_bf16" in flags


def find(name: str) -> Hardware:
    """A kind by its name or the beginning of its name; "cpu" is this machine, "16GB" one with so much main memory.

    Raises:
        ValueError: no kind or several kinds have such a name.
    """
    if name.lower() == "cpu":
        return this_machine()
    if memory := re.fullmatch(r"(\d+) ?GI?B", name.upper()):
        return replace(this_machine(), memory=int(memory[1]) * 2**30)
    fitting = [kind for known, kind in KINDS.items() if known.lower().startswith(name.lower())]
    exact = [kind for kind in fitting if name.lower() in (kind.name.lower(), kind.name.partition("-")[0].lower())]
    if len(exact or fitting) != 1:
        problem = "is unknown" if not fitting else "fits more than one kind"
        raise ValueError(
            f"--kind {name} {problem}: expected one of {', '.join(KINDS)}, cpu for this machine, or a "
            "main memory such as 16GB"
        )
    return (exact or fitting)[0]


def this_machine() -> Hardware:
    """This machine: its memory, and 32 operations per cycle and core (AVX2) at 2.5 GHz."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    speed = cores * 32 * 2.5e9
    # Python, torch and transformers take the reserve once imported. The fragments are freed blocks that glibc's malloc
    # keeps, as benchmarks/plan_memory.py measures.
    return Hardware("cpu", speed, speed, memory, 20e9, 20e9, 1.25e9, reserve=0.8e9, fragments=0.15)
