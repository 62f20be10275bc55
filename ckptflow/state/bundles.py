"""Bundles of tables, vocabularies and trackables that say themselves how they are saved; which object is which."""

from __future__ import annotations

import codecs
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.format import dtypes
from ckptflow.format.dtypes import Array
from ckptflow.printable import printable
from ckptflow.state.bundle import OUT_OF_MEMORY, Bundle, says
from ckptflow.state.iterators import IteratorBundle
from ckptflow.state.kinds import CONTAINERS, Kind, keras3, kind_of, overrides
from ckptflow.state.private import kerases
from ckptflow.state.private import tensorflow as private

logger = logging.getLogger("ckptflow")


class TableBundle(Bundle):
    """A mutable or dense hash table. Keys that are not in a checkpoint are removed when it is restored."""

    stock_names: Mapping[str, str] = {"keys": "-keys", "values": "-values"}

    def __init__(self, table: Any) -> None:
        self.obj = self._table = table
        self._is_dense = isinstance(table, tf.lookup.experimental.DenseHashTable)
        self.dtypes = {"keys": table.key_dtype.name, "values": table.value_dtype.name}
        if self._is_dense:
            self._marks = [tf.constant(key, table.key_dtype) for key in private.marks_of_dense(table)]
            self.stock_names = {}  # all its buckets, in the order of their hashes

    def read(self) -> dict[str, Any]:
        keys, values = self._table.export()
        if self._is_dense:
            keys, values = self._in_use(keys, values)
        return {"keys": keys, "values": values}

    def write(self, parts: Mapping[str, Array]) -> None:
        keys = tf.constant(parts["keys"], self._table.key_dtype)
        values = tf.constant(parts["values"], self._table.value_dtype)
        if self._is_dense:  # one that TensorFlow has saved holds them all
            keys, values = self._in_use(keys, values)
        present = self.read()["keys"]
        if present.shape[0]:
            self._table.remove(present)
        if keys.shape[0]:
            self._table.insert(keys, values)

    def misfit(self, parts: Mapping[str, Array]) -> str:
        keys, values = parts["keys"], parts["values"]
        key_shape = tuple(self._marks[0].shape) if self._is_dense else ()
        value_shape = tuple(private.value_shape(self._table).as_list())
        if self._is_dense and not key_shape:  # TensorFlow's own checkpoints hold scalars as vectors of one
            keys, values = keys.reshape(-1), values.reshape(-1, *value_shape)
        if keys.shape[1:] != key_shape or values.shape != (*keys.shape[:1], *value_shape):
            return (
                f"its keys are of shape {key_shape} and its values of shape {value_shape}, those in the checkpoint of "
                f"{keys.shape[1:]} and {values.shape[1:]}, in {keys.shape[0]} and {values.shape[0]} rows"
            )
        return self._marked(keys) if self._is_dense and len(keys) else ""

    def _marked(self, keys: Array) -> str:
        """Why rows would be taken for empty ones. One that TensorFlow has saved does hold these, most of them often."""
        rows = set(map(tuple, keys.reshape(len(keys), -1).tolist()))
        marks = {tuple(np.asarray(mark.numpy()).reshape(-1).tolist()) for mark in self._marks}
        if len(rows) < len(keys) or not marks & rows:
            return ""
        return "the checkpoint has a key in it that is its empty_key or deleted_key"

    def _in_use(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """A dense table's rows without its empty buckets, which it exports, too, and scalars as vectors of one."""
        keys = tf.reshape(keys, [-1, *self._marks[0].shape])
        values = tf.reshape(values, [-1, *private.value_shape(self._table)])
        axes = list(range(1, keys.shape.rank))
        unused = [tf.reduce_all(tf.equal(keys, mark), axis=axes) for mark in self._marks]
        rows = tf.where(~(unused[0] | unused[1]))[:, 0]
        return tf.gather(keys, rows), tf.gather(values, rows)


class VocabularyBundle(Bundle):
    """The vocabulary of a StringLookup, IntegerLookup or, inside of it, TextVectorization layer, of either Keras."""

    def __init__(self, layer: Any) -> None:
        self.obj = self._layer = layer
        self._read_of: Any = None
        self._read: dict[str, Any] = {}
        self.dtypes = {"vocabulary": layer.vocabulary_dtype}
        if layer.output_mode == "tf_idf":
            self.dtypes["idf_weights"] = _dtype_of_weights(layer)

    def read(self) -> dict[str, Any]:
        # Setting a vocabulary makes a new table, which nothing changes later: the table tells whether it is still the
        # one that was read. It is held, so that its identity cannot be that of a later one.
        if self._read_of is not self._layer.lookup_table:
            table = self._layer.lookup_table
            self._read = self._read_now()
            if why_not := self._cannot_set(self._read["vocabulary"]):
                logger.warning("%s %s: %s", type(self._layer).__name__, printable(str(self._layer.name)), why_not)
            self._read_of = table
        return self._read

    def _read_now(self) -> dict[str, Any]:
        layer = self._layer
        try:
            adapted = int(layer.lookup_table.size()) > 0
        except tf.errors.FailedPreconditionError:
            adapted = False
        parts: dict[str, Any] = {"vocabulary": self._words() if adapted else np.array([], self._dtype)}
        if "idf_weights" in self.dtypes:
            none = np.zeros([0], dtypes.numpy_dtype(self.dtypes["idf_weights"]))
            parts["idf_weights"] = layer.idf_weights.numpy() if adapted else none
        return parts

    @property
    def _dtype(self) -> Any:
        return object if self._layer.vocabulary_dtype == "string" else self._layer.vocabulary_dtype

    def _words(self) -> Array:
        """What `get_vocabulary` gives, without making a Python object of each word twice: there may be millions."""
        layer = self._layer
        keys, values = layer.lookup_table.export()
        words, places = (values, keys) if layer.invert else (keys, values)
        encoding = layer.encoding if self._dtype is object else None

        def plain(token: Any) -> Any:
            return token if encoding is None else str(token).encode(encoding)

        found = np.full(layer.vocabulary_size(), plain(layer.oov_token), self._dtype)
        found[places.numpy()] = words.numpy()
        if layer.mask_token is not None and layer.output_mode == "int":
            found[0] = plain(layer.mask_token)
        if encoding is not None and not _is_unicode(encoding):
            with contextlib.suppress(UnicodeDecodeError):  # text in another encoding than the layer was told
                found = np.array([word.decode(encoding).encode() for word in found], object)
        return found

    def _cannot_set(self, words: Array) -> str:
        """Why Keras's `set_vocabulary`, which takes text, would take these for others, or not at all."""
        if self._dtype is not object:
            return ""
        is_unicode = _is_unicode(self._layer.encoding)
        try:
            b" ".join(words).decode("utf-8" if is_unicode else "ascii")
        except UnicodeDecodeError as error:
            what = "is not UTF-8" if is_unicode else f"is not ASCII, and its encoding is {self._layer.encoding}"
            found = error.object[error.start : error.start + 20]
            return f"its vocabulary {what} ({found!r}), so that Keras cannot set it: adapt the layer before the restore"
        return ""

    def write(self, parts: Mapping[str, Array]) -> None:
        words = parts["vocabulary"]
        if self._is(parts):
            return
        layer = self._layer
        if not len(words):
            _warn_of_none(layer, "vocabulary")
            return
        vocabulary = [word.decode() for word in words] if layer.vocabulary_dtype == "string" else words.tolist()
        if "idf_weights" not in self.dtypes:
            layer.set_vocabulary(vocabulary)
            return
        weights = parts["idf_weights"]
        layer.set_vocabulary(vocabulary, weights[: len(vocabulary)])
        # The layer pads and averages what it is given; these are the weights as they were.
        layer.idf_weights.assign(weights)
        layer.idf_weights_const = layer.idf_weights.value()

    def misfit(self, parts: Mapping[str, Array]) -> str:
        """Tried on a layer of the same config. Special tokens elsewhere, as with another `num_oov_indices`, can be
        taken for words, without an error."""
        if self._is(parts):
            return ""
        if not len(parts["vocabulary"]):
            return ""
        if why_not := self._cannot_set(parts["vocabulary"]):
            return why_not
        try:
            spare = VocabularyBundle(self._spare())
        except Exception:  # a layer like no other: `write` will tell
            return ""
        try:
            spare.write(parts)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            return says(error)
        return (
            "" if spare._is(parts) else "its special tokens are not those of the checkpoint (mask, oov, their number)"
        )

    def parts_of(self, words: list[Any], weights: list[float] | None = None) -> dict[str, Any]:
        """What the parts are once such a layer is given these words, as configs hold them: without special tokens.
        Raises whatever Keras does for words that cannot be."""
        spare = self._spare()
        is_weighted = "idf_weights" in self.dtypes and weights is not None
        spare.set_vocabulary(words, weights) if is_weighted else spare.set_vocabulary(words)
        return VocabularyBundle(spare).read()

    def _spare(self) -> Any:
        """One that was not adapted, of Keras's own class: a derived one may have another config and constructor."""
        layer = self._layer
        stock: Any = next(c for c in type(layer).__mro__ if c.__module__.partition(".")[0] in ("keras", "tf_keras"))
        spare = stock.from_config({**stock.get_config(layer), "vocabulary": None, "idf_weights": None})
        setattr(spare, kerases.FROZEN_SIZE, getattr(layer, kerases.FROZEN_SIZE, None))
        return spare

    def _is(self, parts: Mapping[str, Array]) -> bool:
        now = self.read()
        return all(now[name].shape == parts[name].shape and (now[name] == parts[name]).all() for name in self.dtypes)


def _is_unicode(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _dtype_of_weights(layer: Any) -> str:
    """Of a layer of Keras 3 that was not adapted there are none yet."""
    weights = getattr(layer, "idf_weights", None)
    return str(weights.dtype.name if weights is not None else keras3().config.floatx())


class BoundariesBundle(Bundle):
    """The boundaries of an adapted Discretization layer, of either Keras."""

    def __init__(self, layer: Any) -> None:
        self.dtypes = {"bin_boundaries": "float64"}
        self.obj = self._layer = layer

    def read(self) -> dict[str, Any]:
        boundaries = self._layer.bin_boundaries
        return {"bin_boundaries": np.array([] if boundaries is None else boundaries, dtype=np.float64)}

    def write(self, parts: Mapping[str, Array]) -> None:
        boundaries = parts["bin_boundaries"].tolist()
        if boundaries:
            self._layer.bin_boundaries = boundaries
        elif len(self.read()["bin_boundaries"]):
            _warn_of_none(self._layer, "boundaries")

    def misfit(self, parts: Mapping[str, Array]) -> str:
        """It takes any numbers; a layer without any could not be put back."""
        return ""


def _warn_of_none(layer: Any, what: str) -> None:
    """As with Keras's own files: a vocabulary is made before training, and an .h5 has none of a layer that has one."""
    logger.warning(
        "%s %s: the checkpoint has no %s of it, it was saved before adapt() or comes from a file without; "
        "the layer keeps its state",
        type(layer).__name__,
        printable(str(layer.name)),
        what,
    )


class TrackableBundle(Bundle):
    """Any other trackable that tells TensorFlow's own checkpoints which tensors it is made of."""

    def __init__(self, trackable: Any) -> None:
        self.obj = self._trackable = trackable
        read = self.read()
        self.dtypes = {name: tensor.dtype.name for name, tensor in read.items()}
        self.stock_names = _parts_of(private.to_tensors(trackable))

    def read(self) -> dict[str, Any]:
        tensors = private.to_tensors(self._trackable)
        values = {name: tensor() if callable(tensor) else tensor for name, tensor in tensors.items()}
        return {part: tf.convert_to_tensor(values[name]) for part, name in _parts_of(values).items()}

    def write(self, parts: Mapping[str, Array]) -> None:
        if isinstance(self._trackable, tf.train.experimental.PythonState):
            self._trackable.deserialize(parts["py_state"].item())
            return
        names = _parts_of(private.to_tensors(self._trackable))
        private.from_tensors(self._trackable, {name: tf.constant(parts[part]) for part, name in names.items()})


def _parts_of(stock_names: Iterable[str]) -> dict[str, str]:
    """TensorFlow's names by ours, which are without what joins theirs to something, but where two would become one."""
    parts = {name: name.strip("-_/") or "state" for name in stock_names}
    counts = Counter(parts.values())
    return {(part if counts[part] == 1 else name or '""'): name for name, part in parts.items()}


class FactoriesBundle(Bundle):
    """A trackable that has, as TensorFlow's old way is, something that makes what saves it: a table of a SavedModel."""

    def __init__(self, trackable: Any) -> None:
        self.obj = self._trackable = trackable
        self.dtypes = {name: tensor.dtype.name for name, tensor in self.read().items()}
        self.stock_names = {name: name for name in self.dtypes}

    def _saveables(self) -> list[Any]:
        return [factory(name=name) for name, factory in private.factories(self._trackable).items()]

    def read(self) -> dict[str, Any]:
        return {spec.name: tf.convert_to_tensor(spec.tensor) for each in self._saveables() for spec in each.specs}

    def write(self, parts: Mapping[str, Array]) -> None:
        for each in self._saveables():
            each.restore([tf.constant(parts[spec.name]) for spec in each.specs], None)


def _by_factories(obj: Any, path: str) -> Bundle:
    try:
        return FactoriesBundle(obj)
    except Exception as error:  # whatever code of another's may raise
        raise UnsupportedStateError(
            f"{path}: a {type(obj).__qualname__} gives TensorFlow what it is made of in its old way, and that fails: "
            f"{type(error).__name__}: {error}. Pass the object that it was made from, or leave it out of the state"
        ) from error


def bundle_of(obj: Any, path: str) -> Bundle | None:
    """The bundle that an object is, or None. Raises `UnsupportedStateError` for an iterator that cannot be saved."""
    kind = kind_of(obj)
    if kind is Kind.TABLE:
        return TableBundle(obj)
    if kind is Kind.ITERATOR:
        iterator = IteratorBundle(obj)
        iterator.check(path)
        return iterator
    if kind is Kind.LOOKUP:
        return VocabularyBundle(obj)
    if kind is Kind.DISCRETIZATION:
        return BoundariesBundle(obj)
    if isinstance(obj, tf.data.NumpyIterator):
        raise UnsupportedStateError(
            f"{path}: the position of as_numpy_iterator() cannot be saved; hold iter(dataset), and call numpy() on "
            "what it gives"
        )
    if kind is Kind.TRACKABLE and private.has_tensors_by_class(obj):
        return TrackableBundle(obj)
    if isinstance(obj, private.Trackable) and kind not in CONTAINERS:
        if overrides(obj, private.TO_TENSORS):
            return TrackableBundle(obj)
        if overrides(obj, private.TO_FACTORIES):
            raise UnsupportedStateError(
                f"{path}: a {type(obj).__qualname__} gives TensorFlow what it is made of in its old way, by "
                "_gather_saveables_for_checkpoint; give it _serialize_to_tensors and _restore_from_tensors instead, or "
                "get_state and set_state"
            )
        if private.TO_TENSORS in getattr(obj, "__dict__", {}):  # loaded from a SavedModel
            return TrackableBundle(obj)
        if private.factories(obj):
            return _by_factories(obj, path)
    return None
