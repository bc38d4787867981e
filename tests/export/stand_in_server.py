"""Speaks TensorFlow Serving's REST and gRPC predict, and answers with a loaded SavedModel.

What it does with JSON follows the documentation of TensorFlow Serving's RESTful API: rows of named
inputs, ``{"b64": ...}`` for bytes, numbers cast to the signature's type, and an ``error`` with
status 400 for invalid arguments. No batching, no versions: it stands in for the protocol.
"""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import tensorflow as tf


def _unpacked(value):
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_unpacked(one) for one in value] if isinstance(value, list) else value


def _jsonable(value):
    if isinstance(value, bytes):
        return value.decode()
    return [_jsonable(one) for one in value] if isinstance(value, list) else value


def _predict(signatures, name: str, inputs: dict) -> dict:
    return {key: value.numpy() for key, value in signatures[name](**inputs).items()}


@contextmanager
def rest_server(signatures, name: str) -> Iterator[str]:
    """Serves over HTTP while the block lasts; gives the model's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            signature = body.get("signature_name", "serving_default")
            specs = signatures[signature].structured_input_signature[1]
            rows = body["instances"]
            try:
                inputs = {
                    key: tf.constant([_unpacked(row[key]) for row in rows], spec.dtype)
                    for key, spec in specs.items()
                }
                found = _predict(signatures, signature, inputs)
                columns = {key: _jsonable(value.tolist()) for key, value in found.items()}
                rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values())]  # noqa: B905
                self._send(200, {"predictions": rows})
            except tf.errors.InvalidArgumentError as error:
                self._send(400, {"error": error.message})

        def _send(self, status, content):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/v1/models/{name}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_server(signatures) -> Iterator[str]:
    """Serves over gRPC while the block lasts; gives host and port."""
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            inputs = {
                key: tf.constant(tf.make_ndarray(value), tf.DType(value.dtype))
                for key, value in request.inputs.items()
            }
            try:
                found = _predict(signatures, request.model_spec.signature_name, inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            response = predict_pb2.PredictResponse()
            for key, value in found.items():
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()
