"""A model that is to be built from somebody else's config is built by a process of its own first, see `probe`.

That builds the same model only if it goes by the same: what this program has registered, Keras's settings, and the
numbers in the names that Keras gives to layers that have none.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.keras.config import build_with_optimizer, framework_of
from ckptflow.interop.untrusted import probe
from ckptflow.interop.untrusted.budget import builder_bytes
from ckptflow.interop.untrusted.keras_trust import Framework, known_to_program, loaded, needed_of_program
from ckptflow.state.limits import VariablesRefusedError
from ckptflow.state.private import kerases

_THERE = (
    "That was in the process that builds it first, which has no GPU, no strategy and nothing that your program has set"
)


def check_model(
    function: str,
    path: str,
    files: Sequence[str],
    config: Any,
    framework: Framework,
    *,
    imports: Sequence[str],
    arguments: Mapping[str, Any],
    size_bytes: int | None = None,
    memory_bytes: int | None = None,
    scratch_bytes: int = 0,
) -> None:
    """As `probe.check`, for a `function` that builds a model, of that `framework`, from `config`; it gets `imports`
    beside the `arguments`.

    Where the config needs what this program has registered, and a process that imports `imports` does not have, the
    files pass: that is found before it looks at them.
    """
    probe.check(
        "ckptflow.interop.untrusted.model_probe:make",
        path,
        files,
        size_bytes=size_bytes,
        memory_bytes=memory_bytes,
        scratch_bytes=scratch_bytes,
        imports=(*imports, "tensorflow", function.partition(":")[0]),  # before there are limits
        more_imports=[module.__name__ for module in loaded(imports) if not module.__name__.endswith("__main__")],
        arguments={
            "function": function,
            "framework": framework,
            "needed": needed_of_program(config, framework, imports),
            "settings": _settings(framework),
            "arguments": {**arguments, "imports": list(imports)},
        },
    )


def _settings(framework: Framework) -> dict[str, Any] | None:
    """What another process is to build by; None where that cannot be written down."""
    try:
        found: dict[str, Any] = kerases.of(framework).settings()
        json.dumps(found)
    except Exception:  # of a dtype policy of the program's own
        return None
    return found


def make(
    path: str,
    function: str,
    framework: Framework,
    needed: dict[str, str],
    settings: dict[str, Any] | None,
    arguments: dict[str, Any],
) -> str | None:
    """Has `function` build a model as the program would that asks for it, if that can be done. For a process of its
    own: it may die of it."""
    if settings is None or not needed.items() <= known_to_program(framework, arguments["imports"]).items():
        return probe.UNTRIED
    try:
        kerases.of(framework).use_settings(settings)
    except Exception:  # a dtype policy of a class of the program's own
        return probe.UNTRIED
    module, _, name = function.partition(":")
    try:
        getattr(sys.modules[module], name)(path, **arguments)
    except VariablesRefusedError:
        raise
    except UsageError as error:
        if not arguments["imports"]:
            raise
        raise UsageError(f"{error}. {_THERE}") from error
    return None


def check_builds(
    models: Mapping[str, Any], path: str, optimizer_path: str | None, stored_bytes: int, *, imports: tuple[str, ...]
) -> None:
    """Raises `CorruptCheckpointError` where a process that builds the model, and its optimizer, dies of it, takes more
    memory than goes with what is stored of it, or comes to no end; `UsageError` where its variables would; and whatever
    error of ours is raised there."""
    needed = {name: each for name, each in models.items() if name in (path, f"{path}/optimizer", optimizer_path)}
    configs = [needed[name].get("config") for name in needed.keys() & {path, optimizer_path}]
    with tempfile.TemporaryDirectory(prefix="ckptflow-model-") as folder:
        file = os.path.join(folder, "model.json")
        with open(file, "w", encoding="utf-8") as out:
            json.dump({"models": needed, "path": path, "optimizer_path": optimizer_path}, out)
        try:
            check_model(
                "ckptflow.interop.untrusted.model_probe:build",
                file,
                [file],
                configs,
                framework_of(models[path], path),
                imports=imports,
                arguments={"stored_bytes": stored_bytes},
                size_bytes=stored_bytes,
                memory_bytes=builder_bytes(stored_bytes),
            )
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(str(error).replace(file, f"the config of {path}")) from error


def build(file: str, imports: list[str], stored_bytes: int) -> None:
    """Builds the model that the file describes. For a process of its own: it may die of it."""
    with open(file, encoding="utf-8") as source:
        asked = json.load(source)
    build_with_optimizer(**asked, imports=tuple(imports), stored_bytes=stored_bytes)
