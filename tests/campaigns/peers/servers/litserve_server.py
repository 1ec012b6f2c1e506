"""LitServe: raw bytes through a FastAPI dependency, since it has JSON, forms and pydantic only. $MODEL, $PORT."""

import os
from typing import Annotated

import litserve
import numpy as np
import onnxruntime
from fastapi import Depends, Request, Response


async def body(request: Request) -> bytes:
    return await request.body()


class API(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shape = [3, 32, 32]

    def decode_request(self, request: Annotated[bytes, Depends(body)]):
        return np.frombuffer(request, np.float32).reshape(self.shape)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.session.run(None, {"image": x})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output) -> Response:
        return Response(content=output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(
        API(max_batch_size=8, batch_timeout=0.002), accelerator="cpu", workers_per_device=1, timeout=60
    )
    server.run(
        host="127.0.0.1", port=int(os.environ["PORT"]), num_api_servers=1, generate_client_file=False,
        log_level="warning", access_log=False,
    )  # fmt: skip
