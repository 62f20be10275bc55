"""Every architecture in every format that can hold it, both ways.

Stock writes, and a run starts from it; a run is exported, and stock reads it. Predictions agree within 1e-6; the
optimizer's variables, where the format has them, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptflow
from ckptflow import CheckpointManager, export_checkpoint, import_model
from ckptflow.interop.untrusted import probe
from tests.interop.both_ways import NAMES, WRITTEN, build, facts, in_stock
from tests.interop.models import CASES, KERASES, Array, Case

TOLERANCE = 1e-6  # of predictions, relative to the largest one where that is above 1
LITE_TOLERANCE = 1e-5  # LiteRT has other kernels

# The formats from which stock readers get the optimizer's variables, and those from which a run of ours gets them.
# Keras 3 writes them into .h5 and does not read them, nor does tf_keras what it writes into a SavedModel.
STOCK_READS_OPTIMIZER = {
    "keras": {"keras", "weights", "tf-checkpoint"},
    "tf_keras": {"keras", "h5", "weights", "tf-checkpoint"},
    "tensorflow": set[str](),
}
TAKES_OPTIMIZER = {
    "keras": STOCK_READS_OPTIMIZER["keras"] | {"h5"},
    "tf_keras": STOCK_READS_OPTIMIZER["tf_keras"] | {"saved-model", "hub"},
    "tensorflow": set[str](),
}


def formats_of(case: Case, framework: str) -> list[str]:
    """All that can hold it."""
    if framework == "tensorflow":
        return ["saved-model", "hub", "tf-checkpoint", "safetensors"]
    found = list(NAMES)
    if case.name == "subclassed" or (case.name == "text" and framework == "tf_keras"):
        found.remove("h5")  # neither Keras takes a subclassed model, and tf_keras no vocabulary
    if case.name in ("text", "recurrent"):
        found.remove("tflite")  # LiteRT has no strings, nor loops, without TensorFlow's own kernels
    return found


@dataclass
class Both:
    """One group of architectures under one framework, in one folder."""

    framework: str
    folder: Path
    formats: Mapping[str, Sequence[str]]
    is_probed: Callable[[str, str], bool] = lambda *_: True  # for a case and a format
    problems: list[str] = field(default_factory=list)

    def stock(self, do: str, where: str, formats: Mapping[str, Sequence[str]]) -> set[str]:
        """A stock process that writes or reads; returns what it could not."""
        failures = in_stock(do, self.framework, formats, self.folder / where)
        self.problems += [f"stock cannot {do} {what}: {why}" for what, why in failures.items()]
        return set(failures)

    @contextlib.contextmanager
    def noted(self, name: str, form: str, way: str) -> Iterator[None]:
        """What goes wrong with one format does not hide the others."""
        what = f"{name} {way} {form}"
        try:
            with pytest.MonkeyPatch.context() as patch:
                if not self.is_probed(name, form):
                    patch.setattr(probe, "check", lambda *_, **__: None)
                yield
        except Exception as error:
            self.problems.append(f"{self.framework} {what}: {type(error).__name__}: {str(error)[:1500]}")

    def expected(self, name: str) -> dict[str, Array]:
        with np.load(self.folder / "stock" / name / "expected.npz") as arrays:
            return dict(arrays)

    def compare(self, got: Mapping[str, Array], name: str, form: str, *, keeps_optimizer: bool) -> None:
        expected = self.expected(name)
        scale = max(1.0, float(np.abs(expected["predictions"]).max()))
        tolerance = scale * (LITE_TOLERANCE if form == "tflite" else TOLERANCE)
        np.testing.assert_allclose(got["predictions"], expected["predictions"], rtol=0, atol=tolerance)
        if keeps_optimizer:
            assert set(got) == set(expected)
            for key in sorted(set(expected) - {"predictions"}):
                np.testing.assert_array_equal(got[key], expected[key], err_msg=key)

    def take_in(self, case: Case, form: str) -> Any:
        """A run from what stock wrote, and a new program's model restored from that run."""
        source = self.folder / "stock" / case.name / NAMES[form]
        url = self.folder / "runs" / f"{case.name}-{form}"
        needs_model = form == "weights" or (form in ("saved-model", "hub") and self.framework != "tf_keras")
        given = {"model": build(case, self.framework)} if needs_model else None
        # What was adapted lies in the graph alone, as stock writes it.
        needs_graph = form in ("saved-model", "hub") and self.framework == "tf_keras" and case.name == "text"
        import_model(source, url, model=given, imports=case.modules, step=7, unsafe=needs_graph)
        model = case.build(self.framework)
        state = {"model": model}
        if form == "tf-checkpoint" and self.framework != "tensorflow":
            state["optimizer"] = model.optimizer
        with CheckpointManager(url, state) as manager:
            # The graph leaves out the seeds of Keras 3, and the vocabularies of both.
            is_partial = form == "tf-checkpoint" and (self.framework == "keras" or case.name == "text")
            restored = manager.restore_latest(partial=is_partial)
        assert restored is not None
        assert restored.step == 7
        return model

    def run(self) -> None:
        from_stock = {name: [form for form in forms if form in WRITTEN] for name, forms in self.formats.items()}
        failed = self.stock("write", "stock", from_stock)
        exported: dict[str, list[str]] = {}
        for name in self.formats:
            models = []
            for form in from_stock[name]:
                if f"{name}/{form}" not in failed:
                    with self.noted(name, form, "from"):
                        models.append(self.take_in(CASES[name], form))
                        self.check_taken(CASES[name], form, models[-1])
            exported[name] = self.put_out(CASES[name], models[0]) if models else []
        failed = self.stock("read", "ours", exported)
        for name in self.formats:
            for form in exported[name]:
                if f"{name}/{form}" not in failed:
                    with self.noted(name, form, "to"):
                        self.check_read(CASES[name], form)
        assert self.problems == [], "\n".join(self.problems)

    def check_taken(self, case: Case, form: str, model: Any) -> None:
        self.compare(facts(case, model), case.name, form, keeps_optimizer=form in TAKES_OPTIMIZER[self.framework])

    def put_out(self, case: Case, model: Any) -> list[str]:
        """A run of this very model, exported to every format; returns those that were."""
        run, folder = self.folder / "runs" / case.name, self.folder / "ours" / case.name
        folder.mkdir(parents=True)
        with CheckpointManager(run, {"model": model}) as manager:
            manager.save(9)
        done = []
        for form in self.formats[case.name]:
            with self.noted(case.name, form, "to"):
                given = model if self.framework == "tensorflow" and form in ("saved-model", "hub") else None
                exported = export_checkpoint(run, folder / NAMES[form], format=form, model=given, imports=case.modules)
                done.append(form)
                assert exported.step == 9
        return done

    def check_read(self, case: Case, form: str) -> None:
        with np.load(self.folder / "ours" / case.name / f"{form}.npz") as arrays:
            got = dict(arrays)
        if form == "safetensors":
            with ckptflow.open_checkpoint(self.folder / "runs" / case.name) as opened:
                for tensor, array in opened.items():
                    if array.dtype != object:
                        np.testing.assert_array_equal(got[tensor], array, err_msg=tensor)
        else:
            self.compare(got, case.name, form, keeps_optimizer=form in STOCK_READS_OPTIMIZER[self.framework])


SMALL = ("dense", "text", "transformer", "many_inputs", "subclassed")
LARGE = ("recurrent", "mobilenet_v2", "efficientnet_b0")
# A normal run tries these under each Keras, and these formats with these alone: a packed module is the SavedModel in a
# tar, and .keras holds the weights as .weights.h5 has them. `make chaos` tries all with all.
NORMAL = {"keras": ("dense", "text", "subclassed"), "tf_keras": ("dense", "many_inputs")}
THRIFTY = {
    ("keras", "keras"): ("text", "subclassed"),
    ("keras", "safetensors"): ("dense",),
    ("keras", "h5"): ("text",),
    ("keras", "weights"): ("subclassed",),
    ("keras", "saved-model"): ("text",),
    ("keras", "hub"): ("dense",),
    ("keras", "tf-checkpoint"): ("subclassed",),
    ("keras", "tflite"): ("dense",),
    ("tf_keras", "keras"): ("many_inputs",),
    ("tf_keras", "safetensors"): ("dense",),
    ("tf_keras", "h5"): ("many_inputs",),
    ("tf_keras", "weights"): ("many_inputs",),
    ("tf_keras", "saved-model"): ("dense",),
    ("tf_keras", "hub"): ("dense",),
    ("tf_keras", "tf-checkpoint"): ("many_inputs",),
    ("tf_keras", "tflite"): ("many_inputs",),
}


def is_tried_first(framework: str, name: str, form: str) -> bool:
    """Whether a file is read, or a model built, in a process of its own first: each format of one architecture, and
    each architecture in one format. It is the same process for the others, and `make chaos` starts it for all."""
    return form == "keras" or name == THRIFTY.get((framework, form), SMALL)[0]


def thrifty(framework: str) -> dict[str, list[str]]:
    return {
        name: [form for form in formats_of(CASES[name], framework) if name in THRIFTY.get((framework, form), SMALL)]
        for name in NORMAL[framework]
    }


def test_a_normal_run_tries_every_format() -> None:
    for framework in KERASES:
        assert {form for forms in thrifty(framework).values() for form in forms} == set(NAMES)


@pytest.mark.parametrize("framework", KERASES)
def test_small_models(framework: str, tmp_path: Path) -> None:
    Both(framework, tmp_path, thrifty(framework), partial(is_tried_first, framework)).run()


def test_a_module_of_tensorflow(tmp_path: Path) -> None:
    Both("tensorflow", tmp_path, {"module": formats_of(CASES["module"], "tensorflow")}).run()


def test_a_convolutional_network_in_files(tmp_path: Path) -> None:
    Both("keras", tmp_path, {"convolutional": ["keras", "safetensors"]}).run()


@pytest.mark.chaos
@pytest.mark.parametrize("name", SMALL + LARGE)
@pytest.mark.parametrize("framework", KERASES)
def test_every_format(framework: str, name: str, tmp_path: Path) -> None:
    Both(framework, tmp_path, {name: formats_of(CASES[name], framework)}).run()
