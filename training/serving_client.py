r"""Asks a server of an export for the classes, maps and boxes of photos.

    cam-tf export models/lite0/1
    tensorflow_model_server --model_name=lite0 --model_base_path=$PWD/models/lite0 \
        --rest_api_port=8501 --port=8500
    python training/serving_client.py photo.jpg --rest http://localhost:8501/v1/models/lite0
    python training/serving_client.py photo.jpg --grpc localhost:8500 --name lite0 --classes 281 285

Over REST it needs the standard library alone, over gRPC ``pip install tensorflow-serving-api``. The
REST request, whose rows are the photos, and its answer are

    {"signature_name": "serving_bytes", "instances": [{"image_bytes": {"b64": "/9j/4AAQ..."}}]}
    {"predictions": [{"class_ids": [...], "scores": [...], "maps": [...], "boxes": [...], ...}]}

and with ``"signature_name": "given_classes_bytes"`` each row has ``"class_ids": [281, 285]`` too.

TensorFlow Serving's binary is no Python package, and this was not run against it. The tests run
this client against a stand-in that speaks both protocols as documented and answers with the export
as ``tf.saved_model.load`` gives it (``tests/export/stand_in_server.py``); ``saved_model_cli run``
runs the same signatures in a session, as TensorFlow Serving does.
"""

import argparse
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

TIMEOUT = 60.0  # seconds


def rest_request(files: Sequence[bytes], classes: Sequence[int] | None = None) -> dict:
    """The JSON that explains the predicted classes of each file, or the given ones."""
    rows = [{"image_bytes": {"b64": base64.b64encode(file).decode()}} for file in files]
    if classes is None:
        return {"signature_name": "serving_bytes", "instances": rows}
    rows = [{**row, "class_ids": list(classes)} for row in rows]
    return {"signature_name": "given_classes_bytes", "instances": rows}


def ask_rest(
    url: str, files: Sequence[bytes], classes: Sequence[int] | None = None
) -> list[dict[str, list]]:
    """Asks over REST.

    Args:
        url: of the model, such as http://localhost:8501/v1/models/lite0.
        files: JPEG or PNG files.
        classes: ids; default: the predicted classes.

    Returns:
        For each file ``class_ids``, ``scores``, ``maps``, ``boxes`` and perhaps ``class_names``.

    Raises:
        ValueError: the server refuses the request; its words.
        OSError: no server answers.
    """
    body = json.dumps(rest_request(files, classes)).encode()
    request = urllib.request.Request(f"{url}:predict", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise ValueError(f"{url} answers with {error.code}: {text}") from error


def ask_grpc(
    target: str, name: str, files: Sequence[bytes], classes: Sequence[int] | None = None
) -> list[dict[str, list]]:
    """Asks over gRPC.

    Args:
        target: host and port, such as localhost:8500.
        name: the model's name on the server.
        files: JPEG or PNG files.
        classes: ids; default: the predicted classes.

    Returns:
        As ``ask_rest``.

    Raises:
        ValueError: the server refuses the request; its words.
        OSError: no server answers.
    """
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = "serving_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(list(files), shape=[len(files)]))
    if classes is not None:
        request.model_spec.signature_name = "given_classes_bytes"
        ids = tf.make_tensor_proto([list(classes)] * len(files), dtype=tf.int32)
        request.inputs["class_ids"].CopyFrom(ids)
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, unlimited) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = stub.Predict(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            refused = error.code() == grpc.StatusCode.INVALID_ARGUMENT
            kind = ValueError if refused else OSError
            raise kind(f"{target} answers with {error.code().name}: {error.details()}") from error
    outputs = {key: tf.make_ndarray(value) for key, value in response.outputs.items()}
    return [{key: _plain(value[i]) for key, value in outputs.items()} for i in range(len(files))]


def _plain(array) -> list:
    values = array.tolist()
    return [one.decode() for one in values] if array.dtype == object else values


def main() -> None:
    """Prints a line for each class of each photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path)
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--rest", metavar="URL")
    server.add_argument("--grpc", metavar="HOST:PORT")
    parser.add_argument("--name", default="lite0", help="the model's name, for --grpc")
    parser.add_argument("--classes", nargs="+", type=int, help="ids; default: the predicted ones")
    given = parser.parse_args()
    files = [photo.read_bytes() for photo in given.photos]
    if given.rest:
        answers = ask_rest(given.rest, files, given.classes)
    else:
        answers = ask_grpc(given.grpc, given.name, files, given.classes)
    for photo, answer in zip(given.photos, answers, strict=True):
        names = answer.get("class_names", answer["class_ids"])
        for name, score, box in zip(names, answer["scores"], answer["boxes"], strict=True):
            edges = ", ".join(f"{edge:.3f}" for edge in box)
            print(f"{photo}: {name} {score:.1%}, box {edges}")


if __name__ == "__main__":
    main()
