#!/usr/bin/env python3
"""Calls every public method of tritonclient's clients (HTTP and gRPC) on a running `fcdcc serve`.

    pip install 'tritonclient[http,grpc]'
    fcdcc demo --write . && mkdir -p models/lenet5/1 && cp lenet5.onnx models/lenet5/1/model.onnx
    cp labels.txt models/lenet5/1 && printf 'labels = "labels.txt"\\n[picture]\\n' > models/lenet5/1/model.toml
    fcdcc serve models --http 127.0.0.1:8000 --grpc 127.0.0.1:8001
    scripts/check_triton_clients.py 127.0.0.1:8000 127.0.0.1:8001 digit.png

A method works, or it says that the server does not support it; anything else fails. The two protocols must give the same
numbers, and a comparison with a wrong number must fail.
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

MODEL = "lenet5"
UNSUPPORTED = {
    "get_cuda_shared_memory_status": (),
    "get_system_shared_memory_status": (),
    "get_log_settings": (),
    "get_trace_settings": (),
    "register_cuda_shared_memory": ("r", b"aGFuZGxl", 0, 64),
    "register_system_shared_memory": ("r", "key", 64),
    "unregister_cuda_shared_memory": (),
    "unregister_system_shared_memory": (),
    "update_log_settings": ({"log_info": True},),
    "update_trace_settings": (None, {"trace_rate": ["1"]}),
}
seen = set()


def method(client, name):
    seen.add((type(client).__module__, name))
    return getattr(client, name)


def refused(what, call, part):
    try:
        call()
    except InferenceServerException as error:
        assert part in str(error), f"{what}: {error}"
        return
    raise AssertionError(f"{what} was not refused")


def image_input(library, values):
    image = library.InferInput("image", list(values.shape), "FP32")
    image.set_data_from_numpy(values)
    return image


def describes(client, http):
    assert method(client, "is_server_live")() and method(client, "is_server_ready")()
    assert method(client, "is_model_ready")(MODEL) and method(client, "is_model_ready")(MODEL, "1")
    as_json = {} if http else {"as_json": True}
    assert method(client, "get_server_metadata")(**as_json)["name"] == "fcdcc"
    metadata = method(client, "get_model_metadata")(MODEL, **as_json)
    assert metadata["inputs"][0]["name"] == "image", metadata
    config = method(client, "get_model_config")(MODEL, **as_json)
    config = config if http else config["config"]
    assert config["input"][0]["data_type"] == "TYPE_FP32" and config["backend"] == "fcdcc", config
    index = method(client, "get_model_repository_index")(**as_json)
    rows = index if http else index["models"]
    assert [row["state"] for row in rows if row["name"] == MODEL] == ["READY"], index
    method(client, "get_inference_statistics")(**as_json)
    stats = method(client, "get_inference_statistics")(MODEL, **as_json)["model_stats"][0]
    assert int(stats["inference_stats"]["success"].get("count", 0)) >= 0, stats
    method(client, "unload_model")(MODEL)
    assert not client.is_model_ready(MODEL)
    method(client, "load_model")(MODEL)
    assert client.is_model_ready(MODEL)
    refused("a model of the client", lambda: client.load_model(MODEL, config="{}"), "not supported")
    return metadata["outputs"][0]["name"]


def infers(client, library, http, values, output, picture):
    infer = method(client, "infer")
    scores = infer(MODEL, [image_input(library, values)], request_id="7").as_numpy(output)
    assert scores.shape == (len(values), 10)
    packings = ["gzip", "deflate"]
    for packing in packings:
        if http:
            options = {"request_compression_algorithm": packing, "response_compression_algorithm": packing}
        else:
            options = {"compression_algorithm": packing}
        again = infer(MODEL, [image_input(library, values)], **options).as_numpy(output)
        same(again, scores)
    options = {"priority": 1, "timeout": 30_000_000, "parameters": {"report": True}}
    answer = infer(MODEL, [image_input(library, values)], **options).get_response()
    report = answer["parameters"]["report"] if http else answer.parameters["report"].string_param
    assert json.loads(report)["layers"], report
    if http:
        image = library.InferInput("image", list(values.shape), "FP32")
        image.set_data_from_numpy(values, binary_data=False)
        listed = [library.InferRequestedOutput(output, binary_data=False)]
        same(infer(MODEL, [image], outputs=listed).as_numpy(output), scores)
    # A picture in, its classes out.
    element = library.InferInput("image", [1], "BYTES")
    element.set_data_from_numpy(np.array([picture], dtype=np.object_))
    best = infer(MODEL, [element], outputs=[library.InferRequestedOutput(output, class_count=3)])
    best = best.as_numpy(output)
    assert best.shape == (1, 3) and best[0][0].decode().count(":") == 2, best
    refused("a sequence", lambda: infer(MODEL, [image_input(library, values)], sequence_id=3), "parameter sequence_")
    refused("a wrong name", lambda: infer("nothing", [image_input(library, values)]), "no model")
    refused("no time", lambda: infer(MODEL, [image_input(library, values)], timeout=1), "no result within")
    # Many at once.
    if http:
        calls = [method(client, "async_infer")(MODEL, [image_input(library, values)]) for _ in range(8)]
        results = [call.get_result() for call in calls]
    else:
        arrived = queue.Queue()
        for _ in range(8):
            put = lambda result, error: arrived.put((result, error))  # noqa: E731
            method(client, "async_infer")(MODEL, [image_input(library, values)], put)
        results = [arrived.get(timeout=60) for _ in range(8)]
        assert all(error is None for _, error in results), results
        results = [result for result, _ in results]
    for result in results:
        same(result.as_numpy(output), scores)
    return scores, best


def streams(client, values, output, scores):
    arrived = queue.Queue()
    method(client, "start_stream")(lambda result, error: arrived.put((result, error)))
    for _ in range(4):
        method(client, "async_stream_infer")(
            MODEL, [image_input(over_grpc, values)], enable_empty_final_response=True
        )
    client.async_stream_infer("nothing", [image_input(over_grpc, values)])
    answers = [arrived.get(timeout=60) for _ in range(5)]
    for result, error in answers[:4]:
        assert error is None, error
        same(result.as_numpy(output), scores)
        assert result.get_response().parameters["triton_final_response"].bool_param
    assert "no model" in str(answers[4][1]), answers[4]
    method(client, "stop_stream")()


def same(got, expected):
    assert np.allclose(got, expected, rtol=1e-4, atol=1e-4), (got, expected)
    wrong = got.copy()
    wrong.flat[0] += 1
    assert not np.allclose(wrong, expected, rtol=1e-4, atol=1e-4), "the comparison sees nothing"


def main():
    http_address, grpc_address, picture = sys.argv[1:]
    with open(picture, "rb") as file:
        picture = file.read()
    values = (np.arange(3 * 1024).reshape(3, 1, 32, 32) * 37 % 101 / 101).astype(np.float32)
    clients = [
        (over_http.InferenceServerClient(http_address, concurrency=4), over_http, True),
        (over_grpc.InferenceServerClient(grpc_address), over_grpc, False),
    ]
    outcomes = []
    for client, library, http in clients:
        output = describes(client, http)
        for name, arguments in UNSUPPORTED.items():
            refused(name, lambda: method(client, name)(*arguments), "not supported")
        scores, best = infers(client, library, http, values, output, picture)
        if not http:
            streams(client, values, output, scores)
        outcomes.append((scores, best))
    same(outcomes[0][0], outcomes[1][0])
    assert [text.split(b":")[1:] for text in outcomes[0][1][0]] == [
        text.split(b":")[1:] for text in outcomes[1][1][0]
    ]
    for client, library, _ in clients:
        method(client, "close")()
        # Helpers of the client alone, which talk to no server.
        local = {"plugin", "register_plugin", "unregister_plugin", "generate_request_body", "parse_response_body"}
        public = {name for name in dir(client) if not name.startswith("_")} - local
        left = {name for name in public if (type(client).__module__, name) not in seen}
        assert not left, f"not called: {left}"
        print(f"{library.__name__}: {len(public)} methods work or are refused as not supported")


if __name__ == "__main__":
    main()
