"""The dtypes that a checkpoint can hold: TensorFlow's name ↔ NumPy's dtype ↔ the name in a safetensors header."""

from __future__ import annotations


def item_size_bytes(dtype: str) -> int:
    """Bytes per element in storage; 1 for encoded dtypes. Raises ValueError for an unknown name."""
    raise NotImplementedError


def is_encoded(dtype: str) -> bool:
    """Whether the dtype's elements have no fixed size ("string"), so that a tensor is stored as encoded bytes."""
    raise NotImplementedError
