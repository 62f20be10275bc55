"""The settings of the matrix, the processes that each is run by, and the state that all of them hold. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

# The rows and the columns of the table.
SQUARE = {
    "none": "no strategy",
    "mirrored": "Mirrored x2",
    "workers-2": "MultiWorkerMirrored x2",
    "workers-3": "MultiWorkerMirrored x3",
    "servers-2": "ParameterServer 2 parts",
    "servers-3": "ParameterServer 3 parts",
    "mesh-2x2": "DTensor 2x2",
    "mesh-4x1": "DTensor 4x1",
    "mesh-replicated": "DTensor, replicated",
}
EXTRAS = {
    "one-device": "OneDevice",
    "servers-min": "ParameterServer, MinSizePartitioner",
    "servers-max": "ParameterServer, MaxSizePartitioner",
    "mesh-1d": "DTensor, one dimension of 4",
    "clients-2": "DTensor, 2 clients with 2 devices each",
    "tpu": "TPU's variables, on CPUs",
    "tpu-spmd": "TPU's variables for SPMD, on CPUs",
}


@dataclass(frozen=True)
class Group:
    """Processes that are started together, and the settings that they can be in, one after the other."""

    name: str
    tasks: tuple[str, ...]  # as in TF_CONFIG; "client" is a client of DTensor, "local" a process on its own
    settings: tuple[str, ...]


GROUPS = (
    Group("local", ("local",), ("none", "mirrored", "one-device", "tpu", "tpu-spmd")),
    # Not in the same process: the collectives of MirroredStrategy and of DTensor take one another's names.
    Group("mesh", ("local",), ("mesh-2x2", "mesh-4x1", "mesh-replicated", "mesh-1d")),
    Group("workers-2", ("worker",) * 2, ("workers-2",)),
    Group("workers-3", ("worker",) * 3, ("workers-3",)),
    Group(
        "servers",
        ("chief", "worker", "ps", "ps"),
        ("servers-2", "servers-3", "servers-min", "servers-max"),
    ),
    Group("clients-2", ("client",) * 2, ("clients-2",)),
)

# The variables of the model: those that are trained, and those that a step changes otherwise.
TRAINED: dict[str, tuple[int, ...]] = {
    "kernel": (512, 520),  # above 1 MiB, so that workers share it; 512 rows are no multiple of 3
    "bias": (520,),
    "odd": (7, 4),  # a mesh can divide it along its second axis only
    "embedding": (20, 6),
}
OTHERS: dict[str, tuple[tuple[int, ...], str]] = {
    "steps": ((), "int64"),
    "half": ((5, 8), "float16"),
    "wide": ((9,), "float64"),  # a mesh cannot divide it
    "flags": ((4, 5), "bool"),
    "seen": ((3,), "float32"),  # kept per replica, and summed when it is read
}
FIRST_STEP = 3  # of the first save in a root: so many are trained before it
SLOTS = ("momentum", "velocity")

# The layers of the tf_keras model.
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "first": {"kernel": (8, 6), "bias": (6,)},
    "norm": {"gamma": (6,), "beta": (6,), "moving_mean": (6,), "moving_variance": (6,)},
    "last": {"kernel": (6, 4), "bias": (4,)},
}

Described = dict[str, tuple[tuple[int, ...], str]]  # global shape and dtype by name
_COUNTERS: Described = {"iterations": ((), "int64"), "learning_rate": ((), "float32")}


def _module_tensors() -> Described:
    found: Described = {f"optimizer/{name}": described for name, described in _COUNTERS.items()}
    found |= {f"model/{name}": described for name, described in OTHERS.items()}
    for name, shape in TRAINED.items():
        for path in ("model", *(f"optimizer/{slot}/model" for slot in SLOTS)):
            found[f"{path}/{name}"] = (shape, "float32")
    return found


def _net_tensors() -> Described:
    found: Described = {f"net/optimizer/{name}": described for name, described in _COUNTERS.items()}
    for layer, attributes in LAYERS.items():
        for attribute, shape in attributes.items():
            slots = () if attribute.startswith("moving") else SLOTS
            for path in ("net", *(f"net/optimizer/{slot}" for slot in slots)):
                found[f"{path}/{layer}/{attribute}"] = (shape, "float32")
    return found


# Every tensor of every checkpoint, by what is trained.
TENSORS: dict[str, Described] = {"module": _module_tensors(), "net": _net_tensors()}


def group_of(setting: str) -> Group:
    """The processes that a setting needs."""
    return next(group for group in GROUPS if setting in group.settings)


def label_of(setting: str) -> str:
    """What the table calls a setting."""
    return {**SQUARE, **EXTRAS}[setting]
