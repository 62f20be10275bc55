"""A model that another process builds first is built there as it would be here: what goes on here has gone on there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.untrusted import budget
from ckptflow.interop.untrusted.keras_trust import Framework, needed_of_program
from ckptflow.interop.untrusted.model_probe import check_builds, check_model
from ckptflow.state.private import kerases
from tests.interop import custom, hostile_keras
from tests.interop.models import KERASES

KITS = {"keras": keras, "tf_keras": tf_keras}
DESCRIBED = {"kind": "model", "framework": "keras", "class": "keras.Functional"}


@pytest.fixture(autouse=True)
def _only_what_these_tests_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of another test's would let a config pass that has its name."""
    for kit in KITS.values():
        known = kit.saving.get_custom_objects()
        for name in [name for name, each in known.items() if each.__module__ != custom.__name__]:
            monkeypatch.delitem(known, name)


@pytest.fixture
def other_settings() -> Iterator[None]:
    before = {name: kerases.of(name).settings() for name in KITS}
    for kit in KITS.values():
        kit.backend.set_floatx("float64")
        kit.backend.set_image_data_format("channels_first")
        kit.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    for name, settings in before.items():
        kerases.of(name).use_settings(settings)


def tell(path: str, framework: str, imports: list[str]) -> None:
    """Makes layers, and says which."""
    kit = KITS[framework]
    made = [kit.layers.Dense(1), kit.layers.Dense(1), kit.layers.Conv2D(1, 1), kit.Sequential()]
    said = [(each.name, str(each.compute_dtype)) for each in made]
    raise UsageError(json.dumps([said, made[2].data_format, kit.backend.floatx()]))


@pytest.mark.parametrize("framework", KERASES)
def test_what_is_made_is_the_same(framework: Framework, tmp_path: Path, other_settings: None) -> None:
    (tmp_path / "file").write_text("x")
    file = str(tmp_path / "file")
    KITS[framework].layers.Dense(1)
    KITS[framework].layers.Dense(1, name="dense_1")
    with pytest.raises(UsageError) as there:
        check_model(f"{__name__}:tell", file, [file], {}, framework, imports=(), arguments={"framework": framework})
    with pytest.raises(UsageError) as here:
        tell(file, framework, [])
    assert str(there.value) == str(here.value)
    assert '"bfloat16"' in str(here.value)
    assert '"channels_first", "float64"' in str(here.value)


def test_a_config_that_would_fail_in_a_process_that_has_made_nothing() -> None:
    """Its names clash there, so that the rest of it is not built; here they do not."""
    keras.layers.Dense(1)
    config = hostile_keras.of_constants_unless_names_clash()
    with pytest.raises(CorruptCheckpointError, match=rf"the config of model .*memory.*{budget.MEMORY_VARIABLE}"):
        check_builds({"model": DESCRIBED | {"config": config}}, "model", None, 2**20, imports=())


@pytest.mark.parametrize("imports", [(), (custom.__name__,)])
def test_a_config_that_fails_there_is_not_tried_here(imports: tuple[str, ...]) -> None:
    """What a class of the user's may lack there is said."""
    config: dict[str, Any] = hostile_keras.of_constants()
    config["config"]["layers"].insert(1, {"class_name": "Dense", "config": {"units": "many"}})
    with pytest.raises(UsageError, match="Keras cannot make it from its config") as error:
        check_builds({"model": DESCRIBED | {"config": config}}, "model", None, 2**20, imports=imports)
    assert ("which has no GPU, no strategy" in str(error.value)) == bool(imports)


def test_only_a_class_that_no_other_process_can_have_lets_a_config_pass() -> None:
    """One of a module that is named is there as well, also if this program has registered it."""
    config = hostile_keras.with_layer(hostile_keras.of_constants(), custom.__name__, "Scale", "interop")
    models = {"model": DESCRIBED | {"config": config}}
    with pytest.raises(CorruptCheckpointError, match=budget.MEMORY_VARIABLE):
        check_builds(models, "model", None, 2**20, imports=(custom.__name__,))
    check_builds(models, "model", None, 2**20, imports=())
    config["config"]["layers"].pop(1)
    with pytest.raises(CorruptCheckpointError, match=budget.MEMORY_VARIABLE):
        check_builds(models, "model", None, 2**20, imports=())


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose `__init__` is empty; this program alone has loaded the module in it."""
    name = f"shop_{tmp_path.name.rstrip('0123456789')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "parts.py").write_text("def squeeze(inputs):\n    return inputs\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(f"{name}.parts")
    return name


def with_activation(shop: str) -> dict[str, Any]:
    config = hostile_keras.of_constants()
    named = {"module": f"{shop}.parts", "class_name": "function", "config": "squeeze", "registered_name": "function"}
    dense = {"name": "squeezed", "units": 2, "activation": named}
    layer = {"module": "keras.layers", "class_name": "Dense", "config": dense, "registered_name": None}
    config["config"]["layers"].insert(1, {**layer, "name": "squeezed", "inbound_nodes": []})
    return config


def test_what_a_submodule_has_is_there_as_well(shop: str) -> None:
    models = {"model": DESCRIBED | {"config": with_activation(shop)}}
    with pytest.raises(CorruptCheckpointError, match=budget.MEMORY_VARIABLE):
        check_builds(models, "model", None, 2**20, imports=(shop,))


def test_only_a_name_of_a_class_or_function_means_what_a_module_defines(shop: str) -> None:
    config = with_activation(shop)
    assert needed_of_program(config, "keras", (shop,)) == {"squeeze": f"{shop}.parts:squeeze"}
    config["config"]["layers"][1]["config"] |= {"name": "squeeze", "activation": "relu"}
    assert needed_of_program(config, "keras", (shop,)) == {}


class UnwritablePolicy(keras.DTypePolicy):  # type: ignore[misc]
    def get_config(self) -> dict[str, Any]:
        raise TypeError("not to be written down")


@pytest.fixture
def own_policy() -> Iterator[Any]:
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def test_a_policy_that_cannot_be_written_down(own_policy: Any) -> None:
    """No other process can go by it."""
    own_policy(UnwritablePolicy("float32"))
    check_builds({"model": DESCRIBED | {"config": hostile_keras.of_constants()}}, "model", None, 2**20, imports=())


def test_a_policy_stays_as_it_is(own_policy: Any) -> None:
    policy = keras.DTypePolicy("mixed_bfloat16")
    own_policy(keras.dtype_policies.DTypePolicyMap(policy_map={"dense": policy}))
    kerases.of("keras").settings()
    assert policy.name == "mixed_bfloat16"
