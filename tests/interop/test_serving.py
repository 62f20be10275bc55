"""A PredictRequest, as a client of TensorFlow Serving sends it, answered through the loader that Serving uses.

There is no server in the package registries. What Serving does with a model is: load it by its tag `serve` into a
session, initialize its tables, look the request's signature up, feed and fetch by tensor name. So does this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckptflow.interop.tensorflow.reusable import write_saved_model
from tests.interop import models
from tests.interop.stock import run_stock

pytestmark = pytest.mark.usefixtures("unprobed")

SERVER = """
import numpy as np, tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

def request_for(signature, inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "model", signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request.SerializeToString()  # what goes over the wire

def respond(session, signatures, wire):
    request = predict_pb2.PredictRequest.FromString(wire)
    signature = signatures[request.model_spec.signature_name]
    assert signature.method_name == "tensorflow/serving/predict", signature.method_name
    assert set(request.inputs) == set(signature.inputs), list(signature.inputs)
    feed = {signature.inputs[name].name: tf.make_ndarray(value) for name, value in request.inputs.items()}
    values = session.run({name: info.name for name, info in signature.outputs.items()}, feed)
    response = predict_pb2.PredictResponse()
    for name, value in values.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return response.SerializeToString()

answer = {}
for name, case in argument.items():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], case["folder"])
        data = dict(np.load(case["inputs"]))
        wire = request_for(case["signature"], data)
        for _ in range(2):  # what a model keeps between two requests is no part of the answer
            response = predict_pb2.PredictResponse.FromString(respond(session, loaded.signature_def, wire))
        outputs = {key: tf.make_ndarray(value).tolist() for key, value in response.outputs.items()}
        answer[name] = {"outputs": outputs, "signatures": sorted(loaded.signature_def)}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the server answered, what the model in memory says), by name of the model."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("served")
    requests, expected = {}, {}

    def add(name: str, model: Any, inputs: dict[str, Any], outputs: Any, signature: str, **how: Any) -> None:
        folder = root / name / "1"  # Serving looks for versions, in folders with a number
        write_saved_model(str(folder), model, None, **how)
        np.savez(root / f"{name}.npz", **{key: np.asarray(value.tolist()) for key, value in inputs.items()})  # type: ignore[arg-type]
        requests[name] = {"folder": str(folder), "inputs": str(root / f"{name}.npz"), "signature": signature}
        expected[name] = np.asarray(outputs)

    text = models.CASES["text"]  # of tf_keras: see test_saved_model
    model = text.make("keras")
    add("text", model, text.sample_inputs(), text.predict(model), "serving_default")
    dense = models.CASES["dense"]
    model = dense.make("keras")

    def normalized(model: Any) -> dict[str, Any]:
        @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.int64, name="raw")])
        def raw(raw: Any) -> dict[str, Any]:
            scores = model(tf.cast(raw, tf.float32) / 255.0, training=False)
            return {"scores": scores, "best": tf.argmax(scores, axis=-1)}

        return {"raw": raw}

    pixels = np.random.default_rng(0).integers(0, 256, (3, 8))
    scores = model((pixels / 255.0).astype(np.float32), training=False)
    add("raw", model, {"raw": pixels}, scores, "raw", signatures=normalized)
    return run_stock(SERVER, requests), expected


@pytest.mark.parametrize("name", ["text", "raw"])
def test_a_request_is_answered(name: str, served: tuple[dict[str, Any], dict[str, Any]]) -> None:
    answers, expected = served
    outputs = answers[name]["outputs"]
    scores = outputs["scores"] if name == "raw" else next(iter(outputs.values()))
    np.testing.assert_allclose(scores, expected[name], atol=1e-6)


def test_signatures_are_served_by_name(served: tuple[dict[str, Any], dict[str, Any]]) -> None:
    answers, expected = served
    assert {"raw", "serving_default"} <= set(answers["raw"]["signatures"])
    assert answers["raw"]["outputs"]["best"] == expected["raw"].argmax(axis=-1).tolist()
