"""Mosec: HTTP in Rust, one Python worker; little-endian float32 in and out. $MODEL; its own arguments in argv."""

import os

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Infer(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]

    def deserialize(self, data):
        return np.frombuffer(data, np.float32).reshape(self.shape)

    def forward(self, data):
        return list(self.session.run(None, {"image": np.stack(data)})[0])

    def serialize(self, data):
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Infer, num=1, max_batch_size=8, max_wait_time=2)  # milliseconds
    server.run()
