"""What a user writes by hand: pyzmq and pickle over ipc, one process, no batches. argv: model, address."""

import pickle
import sys

import onnxruntime
import zmq

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[2])
while True:
    client, number, request = socket.recv_multipart()
    try:
        answer = session.run(None, {"image": pickle.loads(request)})[0]  # noqa: S301 - what people write
    except Exception as error:
        answer = error
    socket.send_multipart([client, number, pickle.dumps(answer, protocol=5)])
