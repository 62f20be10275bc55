"""A second reader of checkpoints, written from docs/format.md alone: NumPy and json, nothing of ckptflow.

bfloat16 and smaller dtypes, which NumPy lacks, come as unsigned integers of the same bits.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128")}  # fmt: skip
DTYPES |= {"bfloat16": np.dtype("<u2")} | dict.fromkeys(
    ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float4_e2m1fn",
     "int4", "uint4", "int2", "uint2", "string", "variant"], np.dtype("u1"))  # fmt: skip

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def read_sealed(data: bytes, kind: str) -> dict[str, Any]:
    if data[-21:] != b',"crc32c":"%08x"}' % crc32c(data[:-21]):
        raise ValueError("the seal is broken")
    record: dict[str, Any] = json.loads(data)
    if (record["format"], record["version"], record["kind"]) != ("ckptflow", 1, kind):
        raise ValueError(f"a {record['kind']} of version {record['version']}")
    return record


def read_receipt(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The receipt, and the digests that its `digest` is of."""
    line, _, second = path.read_bytes().partition(b"\n")
    receipt = read_sealed(line, "receipt")
    if not receipt.get("digest"):
        return receipt, {}
    digests: dict[str, int] = read_sealed(second, "digests")["digests"]
    text = json.dumps(dict(sorted(digests.items())), separators=(",", ":"), ensure_ascii=False).encode()
    if hashlib.blake2b(text, digest_size=16).hexdigest() != receipt["digest"]:
        raise ValueError("the digest is of other ones")
    return receipt, digests


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_sealed((folder / "manifest.json").read_bytes(), "manifest")
    if manifest["folder"] != folder.name:
        raise ValueError(f"the manifest is of {manifest['folder']}")
    return manifest


def read_tensors(folder: Path) -> dict[str, Array]:
    """Every tensor of the checkpoint in `folder`, verified, by its name."""
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        if (folder / shard["name"]).stat().st_size != shard["size_bytes"]:
            raise ValueError(f"{shard['name']} has another size")
    return {tensor["name"]: read_tensor(folder, manifest["shards"], tensor) for tensor in manifest["tensors"]}


def read_tensor(folder: Path, shards: list[dict[str, Any]], tensor: dict[str, Any]) -> Array:
    dtype = DTYPES[tensor["dtype"]]
    encoded_bytes = tensor.get("encoded_bytes")
    whole = np.empty(tensor["shape"] if encoded_bytes is None else [encoded_bytes], dtype)
    covered = np.zeros(whole.shape, np.uint8)
    for piece in tensor["slices"]:
        with (folder / shards[piece["shard"]]["name"]).open("rb") as file:
            file.seek(piece["offset"])
            data = file.read(int(np.prod(piece["shape"], dtype=np.int64)) * dtype.itemsize)
        if crc32c(data) != piece["crc32c"]:
            raise ValueError(f"a slice of {tensor['name']} is damaged")
        box = tuple(slice(at, at + extent) for at, extent in zip(piece["start"], piece["shape"], strict=True))
        whole[box] = np.frombuffer(data, dtype).reshape(piece["shape"])
        covered[box] += 1
    if not (covered == 1).all():
        raise ValueError(f"{tensor['name']} is not covered exactly once")
    if encoded_bytes is not None:
        return decode_strings(whole.tobytes(), tensor["shape"])
    match tensor.get("components"):
        case "first":
            return np.asarray(whole[0])
        case "sum" | "mean" as how:
            wide = {"i": "i8", "u": "u8", "c": "c16", "b": "?"}.get(dtype.kind, "f8")
            total = whole.sum(axis=0, dtype=wide)
            mean = total // len(whole) if dtype.kind in "iu" else total / len(whole)
            return np.asarray(total if how == "sum" else mean, dtype)
    return whole


def decode_strings(data: bytes, shape: list[int]) -> Array:
    count = int.from_bytes(data[:8], "little")
    ends = 8 + 8 * count + np.cumsum(np.frombuffer(data[8 : 8 + 8 * count], "<i8"))
    begins = [8 + 8 * count, *ends.tolist()]
    if begins[-1] != len(data):
        raise ValueError("strings do not fill their bytes")
    strings = np.empty(count, object)
    strings[:] = [data[begin:end] for begin, end in itertools.pairwise(begins)]
    return strings.reshape(shape)


def read_value(value: Any) -> Any:
    """A value of `metadata` or `python_state`."""
    if isinstance(value, list):
        return [read_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$int": text, **rest} if not rest:
            return int(text, 16)
        case {"$float": text, **rest} if not rest:
            return float(text)
        case {"$bytes": text, **rest} if not rest:
            return base64.b64decode(text)
        case {"$str": text, **rest} if not rest:
            return base64.b64decode(text).decode("utf-8", "surrogatepass")
        case {"$tuple": items, **rest} if not rest:
            return tuple(read_value(item) for item in items)
        case {"$dict": pairs, **rest} if not rest:
            return {read_value(key): read_value(item) for key, item in pairs}
    return {key.removeprefix("$"): read_value(item) for key, item in value.items()}
