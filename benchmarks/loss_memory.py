"""The loss of a large vocabulary: memory and time of our chunked loss against torch's cross-entropy over all scores.

    python -m benchmarks.loss_memory [--tokens 4096] [--width 512] [--vocabulary 32000 128000] [--json]

Each side runs forward and backward in a process of its own, started anew; the memory is the growth of its peak (VmHWM)
over what it held when hidden states and weights lay ready, so the gradients of both, which every side must make, are
in it. The losses and the gradients are compared too. Time is the wall's, a round of each in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rounds import Value
from benchmarks.support import Ratio, parser, show

CHILD = "--child"


def main() -> None:
    """Measure and print."""
    if CHILD in sys.argv:
        print(json.dumps(measure(*sys.argv[sys.argv.index(CHILD) + 1 :])))
        return
    made = parser(__doc__, rounds=3)
    made.add_argument("--tokens", type=int, default=4096, metavar="N", help="predicted at once (default 4096)")
    made.add_argument("--width", type=int, default=512, metavar="H", help="of the hidden states (default 512)")
    made.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 128_000], metavar="V", help="sizes")
    options = made.parse_args()
    results: list[Ratio | Value] = []
    for vocabulary in options.vocabulary:
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(child("chunked", options.tokens, options.width, vocabulary))
            theirs.append(child("whole", options.tokens, options.width, vocabulary))
        results += compare(f"vocabulary of {vocabulary:,}", ours, theirs)
    settings = {"tokens": options.tokens, "width": options.width, "precision": "fp32"}
    show("loss_memory", results, as_json=options.json, packages=("torch",), settings=settings)


def compare(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[Ratio | Value]:
    """Time as a ratio; memory of each, and how far the results are apart."""

    def middle(side: list[dict[str, Any]], key: str) -> float:
        return statistics.median(float(one[key]) for one in side)

    ratios = [their["wall_s"] / our["wall_s"] for our, their in zip(ours, theirs, strict=True)]
    loss_apart = abs(middle(ours, "loss") - middle(theirs, "loss")) / middle(theirs, "loss")
    grad_apart = abs(middle(ours, "gradient") - middle(theirs, "gradient")) / middle(theirs, "gradient")
    less = middle(theirs, "peak_mib") / middle(ours, "peak_mib")
    return [
        Ratio(
            name=f"{name}, forward and backward",
            peer="torch's linear and cross_entropy",
            rounds=len(ours),
            ours_s=middle(ours, "wall_s"),
            peer_s=middle(theirs, "wall_s"),
            ours_cpu_s=middle(ours, "cpu_s"),
            peer_cpu_s=middle(theirs, "cpu_s"),
            ratio=statistics.median(ratios),
            ratio_min=min(ratios),
            ratio_max=max(ratios),
            bar=None,
        ),
        Value(f"{name}: peak memory, ours", middle(ours, "peak_mib"), "MiB"),
        Value(f"{name}: peak memory, all scores", middle(theirs, "peak_mib"), "MiB"),
        Value(f"{name}: times less memory", less, ""),
        Value(f"{name}: loss and gradient norm apart, the larger", max(loss_apart, grad_apart), ""),
    ]


def child(side: str, tokens: int, width: int, vocabulary: int) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.loss_memory", CHILD, side, str(tokens), str(width), str(vocabulary)]
    # glibc otherwise keeps what was freed, and the peak tells of its pools.
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(side: str, tokens: str, width: str, vocabulary: str) -> dict[str, float]:
    """Forward and backward once."""
    import time

    import torch

    from launcher.models.chunked_loss import chunked_loss

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((int(tokens), int(width)), generator=generator, requires_grad=True)
    weight = (torch.randn((int(vocabulary), int(width)), generator=generator) * 0.02).requires_grad_()
    targets = torch.randint(0, int(vocabulary), (int(tokens),), generator=generator)
    chunked_loss(hidden[:8], weight[:64], None, targets[:8] % 64)[0].backward()  # libraries are loaded now
    for tensor in (hidden, weight):
        tensor.grad = None
    before = memory_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    if side == "chunked":
        loss = chunked_loss(hidden, weight, None, targets)[0]
    else:
        loss = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    loss.backward()
    took = time.perf_counter() - wall, time.process_time() - cpu
    assert hidden.grad is not None
    assert weight.grad is not None
    gradient = float(hidden.grad.norm() + weight.grad.norm())
    return {
        "wall_s": took[0],
        "cpu_s": took[1],
        "peak_mib": memory_mib() - before,
        "loss": loss.item(),
        "gradient": gradient,
    }


def memory_mib() -> float:
    """The highest resident memory of this process so far."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
