"""A made-up state: as many tensors and bytes as asked for, a third of the tensors small, as biases and norms are."""

from __future__ import annotations

import random

from ckptflow.format.spec import TensorSpec

_ROW = 1024  # float32 elements
_SMALL = 3  # of so many tensors one is small


def make_specs(tensor_count: int, size_bytes: int, seed: int) -> list[TensorSpec]:
    """The same for a seed. The sizes of large ones are lognormal: a few are a hundred times as large as most."""
    chance = random.Random(seed)
    large = [number for number in range(tensor_count) if number % _SMALL]
    weights = {number: chance.lognormvariate(0.0, 1.5) for number in large}
    total = sum(weights.values())
    specs = []
    for number in range(tensor_count):
        name = f"model/layer_{number // 8:05d}/{'abcdefgh'[number % 8]}/weight"
        rows = round(weights[number] / total * size_bytes / (4 * _ROW)) if number in weights else 0
        specs.append(TensorSpec(name, "float32", (max(rows, 257), _ROW) if number in weights else (_ROW,)))
    return specs
