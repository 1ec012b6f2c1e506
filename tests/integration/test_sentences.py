"""What a newcomer does wrong, and the sentence that is said: one table, over one yard.

A sentence says what was wrong, what is allowed, and whose turn it is. None has an address of an object in it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import AsyncClient, AsyncInferenceQueue, Client, serve
from batchyard.cli import main as shell

from .gateways import everywhere

X = np.ones((1, 4), np.float32)
IMAGE = np.zeros((1, 8, 8, 3), np.float32)
SECONDS = "a number of seconds above 0 and up to 1,000,000,000"
NAME = "a model's name is a text that is not empty, such as 'resnet18'"
ANOTHER = "use another address (--url ipc:///tmp/other; in Python, url=)"
BY_NAME = (
    "cannot be imported by a worker; workers are other processes, and nothing is pickled: define it by `def` or "
    "`class` at the top level of a module or script, and pass it by that name"
)
KEYS = (
    "max_batch, batchable, batch_axis, trusted, warmup, idempotent, join, cache_ms, cache_bytes, pad, "
    "batch_elements_max, run_seconds_max, buckets"
)
MODELS_ARE = 'models is a file, a function, or a mapping such as {{"name": "file.onnx"}}'
CONNECT = "connect_timeout is a number of seconds, from 0 to 1,000,000,000"
FIELDS = "it has the fields data, model, priority, deadline_ms"
URLS = "a yard URL is ipc:///absolute/folder or tcp://host:port"
NOBODY = (
    "start one with `batchyard up`, or name the one that runs (BATCHYARD_URL, --url, or url= in Python)"
)


def undecorated(x: Any) -> Any:
    return x


MODELS = ("fixed", "image", "net", "pair")
Mistake = tuple[str, Callable[[Any], Any], str]

# What is wrong -> the call, and the sentence, with {url}, {root} and {pid} of the yard.
CALLS: list[Mistake] = [
    # names
    ("a model's name misspelt", lambda w: w.infer("nte", X), "no model is called 'nte'; this yard has: {models}"),
    ("no name", lambda w: w.infer("", X), f"{NAME}, not ''"),
    ("a number as a name", lambda w: w.client.wait_ready(3), f"{NAME}, not 3"),
    ("one array for two inputs", lambda w: w.infer("pair", X), "'pair' has several inputs: pass a mapping of a, b to arrays"),
    ("an input left out", lambda w: w.infer("pair", {"a": X}), "'pair' has the inputs a, b; the request has the input a"),
    ("an input misspelt", lambda w: w.infer("net", {"y": X}), "'net' has the input x; the request has the input y"),
    # types
    ("float64", lambda w: w.infer("net", X.astype("f8")), "input x: float32[n, 4] of 'net' was given float64; convert it explicitly: x.astype(np.float32)"),
    ("an image of bytes", lambda w: w.infer("image", IMAGE.astype("u1")), "input x: float32[n, 3, 8, 8] of 'image' was given uint8; convert it explicitly: x.astype(np.float32)"),
    ("text", lambda w: w.infer("net", "hello"), "input x: float32[n, 4] of 'net' was given text (<U5); convert it explicitly to an array of float32"),
    ("a list of words", lambda w: w.infer("net", ["a"]), "input x: float32[n, 4] of 'net': list can't be read as an array: could not convert string to float: 'a'"),
    ("an object", lambda w: w.infer("net", w), "input x: float32[n, 4] of 'net' was given an object of type SimpleNamespace, which is no array of numbers"),
    ("nothing", lambda w: w.infer("net", None), "input x: float32[n, 4] of 'net' was given None, and is not optional"),
    ("a masked array", lambda w: w.infer("net", np.ma.masked_array(X)), "input x: float32[n, 4] of 'net': a masked array was passed, and a model knows no mask: pass x.filled(value), or x.data to ignore the mask"),
    ("an element type of its own", lambda w: w.client.empty(3, "float33"), "a tensor's dtype is one such as np.float32, not 'float33'"),
    ("a tensor's text", lambda w: batchyard.model(inputs="float32[3,"), "tensor 'input' is a text such as \"float32[batch, 3]\", not 'float32[3,'"),
    # shapes
    ("no batch axis", lambda w: w.infer("net", X[0]), "input x: float32[n, 4] of 'net' was given the shape (4,); axis 0 is the batch: pass x[None] for one row"),
    ("too wide", lambda w: w.infer("net", np.ones((1, 5), "f4")), "input x: float32[n, 4] of 'net' was given the shape (1, 5); axis 1 must be 4"),
    ("channels last", lambda w: w.infer("image", IMAGE), "input x: float32[n, 3, 8, 8] of 'image' was given the shape (1, 8, 8, 3); axis 1 must be 3, axis 3 must be 8"),
    ("a batch of batches", lambda w: w.infer("net", X[None]), "input x: float32[n, 4] of 'net' was given the shape (1, 1, 4); it needs 2 axes, not 3"),
    ("inputs that disagree", lambda w: w.infer("pair", {"a": np.ones((2, 4), "f4"), "b": np.ones((3, 4), "f4")}), "'pair' failed: Attempting to broadcast an axis by a dimension other than 1. 2 by 3 (in the operator Sub)"),
    ("too many rows", lambda w: w.infer("net", np.ones((60_000, 4), "f4")), "60,000 rows exceed the 58,982 allowed (90 % of queue_rows_max = 65,536); split the request into parts of at most 16,384 rows"),
    ("more than the arena", lambda w: w.small.infer("net", np.ones((10_000, 4), "f4")), "160,000 bytes exceed the whole arena of 65,536: pass a larger arena_bytes="),
    ("half an element", lambda w: w.client.empty(2.5), "a shape is a whole number or several, such as (8, 3), not 2.5"),
    # options
    ("no time", lambda w: w.infer("net", X, timeout=0), f"timeout is {SECONDS}, not 0"),
    ("time as text", lambda w: w.client.submit("net", X, timeout="5"), f"timeout is {SECONDS}, not '5'"),
    ("a deadline in the past", lambda w: w.infer("net", X, deadline=-1), f"deadline is {SECONDS}, not -1"),
    ("a class of its own", lambda w: w.infer("net", X, priority="soon"), "priority is one of URGENT, HIGH, NORMAL, LOW, not 'soon'"),
    ("a window of nothing", lambda w: w.client.map("net", [X], window=0), "window is how many requests are under way at once: 1 or more, not 0"),
    ("a map over a number", lambda w: w.client.map("net", 3), "map goes over a list of inputs, or another iterable, not 3"),
    ("memory in words", lambda w: Client(w.url, arena_bytes="1G"), "arena_bytes is a number of bytes, 1 or more, not '1G'"),
    ("memory of another kind", lambda w: Client(w.url, segment="shm").empty(3), "no segment backend 'shm' on linux: segment is one of memfd, named, frames"),
    ("no workers", lambda w: serve(w.root / "net.onnx", workers=0), "workers is a number of 1 or more, not 0"),
    # files
    ("no such file", lambda w: serve("nofile.onnx"), "model 'nofile': there is no file 'nofile.onnx'"),
    ("a folder", lambda w: serve({"net": w.root}), "model 'net': '{root}' is a folder, not an ONNX file"),
    ("a lambda", lambda w: serve(lambda x: x), f"'<lambda>' {BY_NAME}"),
    ("a function without its form", lambda w: serve(undecorated), "'undecorated' does not say what it takes and gives: put @batchyard.model(inputs={{\"x\": \"float32[batch, 4]\"}}, outputs={{\"y\": \"float32[batch]\"}}) on it"),
    ("no file to load", lambda w: w.operator.load("a", "a.onnx"), "models.a: expected a file, found \"a.onnx\": no such file: {root}/a.onnx"),
    ("a file that is no model", lambda w: w.operator.load("a", "not.onnx"), "could not load 'a': it is no ONNX file, or it was not copied, or downloaded, to its end (worker 1)"),
    ("a file elsewhere", lambda w: w.operator.load("a", "../a.onnx"), "models.a: expected a file inside models_root ({root}), found \"../a.onnx\", which is {parent}/a.onnx"),
    ("Python where none may be", lambda w: w.operator.load("a", "a.py:f"), "models.a: \"a.py:f\" is Python, and this yard loads none by order: the operator must set load_python = true in batchyard.toml"),
    ("an option misspelt", lambda w: w.operator.load("a", "net.onnx", options={"max_bacth": 3}), f'models.a.max_bacth: unknown key, did you mean "max_batch"? allowed here: {KEYS}'),
    ("no rows in a batch", lambda w: w.operator.load("a", "net.onnx", 0), "max_batch is a number of rows, 1 to 1024, not 0"),
    ("too many rows in a batch", lambda w: w.operator.load("a", "net.onnx", 1025), "max_batch is a number of rows, 1 to 1024, not 1025"),
    ("a folder in place of a file", lambda w: w.operator.load("a", "."), 'models.a: expected a file, found ".": it is a folder'),
    ("a name that is taken", lambda w: w.operator.load("net", "net.onnx"), "'net' is served already: swap it, or unload it first"),
    ("another model's file", lambda w: w.operator.swap("net", "fixed.onnx"), "'net' was not changed: its input is x: float32[1, 4], and that of the one that serves is x: float32[n, 4] (worker 1); revision 1 serves on"),
    # places and users
    ("no scheme", lambda w: Client("localhost:7070"), f"'localhost:7070' has no scheme that batchyard knows: {URLS}"),
    ("no port", lambda w: Client("tcp://localhost"), "'tcp://localhost' has no port: write tcp://host:port (an IPv6 host in [brackets])"),
    ("no absolute folder", lambda w: Client("ipc://yard"), "'ipc://yard' does not name an absolute folder: write ipc:///folder, three slashes"),
    ("no keys", lambda w: Client("tcp://127.0.0.1:7070", keys=w.root / "keys").models(), "no usable key in {root}/keys/client.key_secret (No such file or directory); `batchyard keys create {root}/keys` makes a pair"),
    ("a yard that runs already", lambda w: w.claim(w.url), f"a yard already runs at {{url}} (process {{pid}}): stop it, or {ANOTHER}"),
    ("a folder for all", lambda w: w.claim(f"ipc://{w.root}/open"), "{root}/open is open to other users (mode 0755): run `chmod 700 {root}/open`"),
    ("a file as a folder", lambda w: w.claim(f"ipc://{w.root}/net.onnx"), f"{{root}}/net.onnx is not a folder: remove it, or {ANOTHER}"),
    ("the whole network", lambda w: w.claim("tcp://0.0.0.0:7070"), "refuses to start on tcp://0.0.0.0:7070 without CURVE keys: everybody who reaches the port would be served. Make keys with `batchyard keys create FOLDER` and run `batchyard up --keys FOLDER`"),
    ("every user of the machine", lambda w: w.claim("tcp://127.0.0.1:7070"), "refuses to start on tcp://127.0.0.1:7070 without CURVE keys: every user of this machine could send requests there. Make keys with `batchyard keys create FOLDER` and run `batchyard up --keys FOLDER`, listen on ipc:///a/folder, or, if that is meant, pass --open-to-this-machine"),
    # the order of things
    ("nobody there", lambda w: Client(f"ipc://{w.root}/no", connect_timeout=0.01).infer("net", X), f"no broker answers at ipc://{{root}}/no (waited # s); {NOBODY}"),
    ("a closed client", lambda w: w.closed.infer("net", X), "this client has been closed"),
    ("a model without state", lambda w: w.client.sequence("net").infer(X), "no output of 'net' is the next value of an input, by their names: it takes x and gives y; say which, as states={{'input': 'output'}}"),
    ("a second loop", lambda w: asyncio.run(w.elsewhere.infer("net", X)), "this AsyncClient is in use on another event loop: make one AsyncClient per loop, or close the other loop first"),
    ("a queue that is not started", lambda w: asyncio.run(AsyncInferenceQueue(undecorated).submit(X)), "the queue is not started: `async with queue`, or `await queue.start()`"),
    ("a job that is unknown", lambda w: asyncio.run(AsyncInferenceQueue(undecorated).get_result("7")), "there is no job '7'; results are kept for 300 s"),
    ("a queue of nothing", lambda w: AsyncInferenceQueue(), "a queue needs either an inference_fn, or a model of a running yard"),
    # more of each
    ("half a character in a name", lambda w: w.infer("n\udcff", X), "a model's name is a text that UTF-8 can hold, not 'n\\udcff'"),
    ("a file's name for the model's", lambda w: w.infer("net.onnx", X), "no model is called 'net.onnx'; this yard has: {models}"),
    ("an input too many", lambda w: w.infer("net", {"x": X, "z": X}), "'net' has the input x; the request has the inputs x, z"),
    ("complex numbers", lambda w: w.infer("net", X.astype("c16")), "input x: float32[n, 4] of 'net' was given complex128; convert it explicitly: x.astype(np.float32)"),
    ("a file's path in place of an array", lambda w: w.infer("net", w.root / "x.npy"), "input x: float32[n, 4] of 'net' was given an object of type PosixPath, which is no array of numbers"),
    ("rows of different lengths", lambda w: w.infer("net", [[1, 2], [3]]), "input x: float32[n, 4] of 'net': list can't be read as an array: its lists have different lengths"),
    ("a generator", lambda w: w.infer("net", (n for n in X)), "input x: float32[n, 4] of 'net' was given an object of type generator, which is no array of numbers"),
    ("a number", lambda w: w.infer("net", 3.0), "input x: float32[n, 4] of 'net' was given the shape (); it needs 2 axes, not 0"),
    ("rows for a model that takes one", lambda w: w.infer("fixed", np.ones((2, 4), "f4")), "input x: float32[1, 4] of 'fixed' was given the shape (2, 4); axis 0 must be 1"),
    ("a map over the rows of an array", lambda w: list(w.client.map("net", X)), "input x: float32[n, 4] of 'net' was given the shape (4,); axis 0 is the batch: pass x[None] for one row"),
    ("a size below nothing", lambda w: w.client.empty(-1), "shape [-1] is not a size: every axis must be 0 or more"),
    ("a size beyond every machine", lambda w: w.client.empty(1 << 50), "shape [1125899906842624] is too large: a tensor has at most 70,368,744,177,664 bytes"),
    ("no patience", lambda w: w.infer("net", X, timeout=None), f"timeout is {SECONDS}, not None"),
    ("a point in time as a deadline", lambda w: w.infer("net", X, deadline=1796126921.5), f"deadline is {SECONDS}, not 1796126921.5"),
    ("a class's number", lambda w: w.infer("net", X, priority=7), "priority is one of URGENT, HIGH, NORMAL, LOW, not 7"),
    ("endless patience for a broker", lambda w: Client(w.url, connect_timeout=float("inf")), f"{CONNECT}, not inf"),
    ("patience for a gateway as text", lambda w: Client("http://127.0.0.1:1", connect_timeout="5"), f"{CONNECT}, not '5'"),
    ("an address that is a number", lambda w: Client(7070), f"7070 is no yard URL: {URLS}"),
    ("an address that is a path", lambda w: Client(w.root), f"an object of type PosixPath is no yard URL: {URLS}"),
    ("a gateway without its port", lambda w: Client("http://localhost"), "'http://localhost' is no gateway's address: write http://host:port"),
    ("a gateway and a path", lambda w: Client("http://localhost:8000/v2"), "'http://localhost:8000/v2' is no gateway's address: write http://host:port"),
    ("a token for a yard", lambda w: Client(w.url, token="x"), "token is for a gateway (http://, grpc://); a yard's broker takes keys"),
    ("keys for a gateway", lambda w: Client("http://localhost:1", keys="keys"), "keys are for a yard's broker; a gateway takes a token, over https or grpcs"),
    ("a token with its line break", lambda w: Client("http://localhost:1", token="secret\n"), "token is one line of plain characters (ASCII); this one ends with a line break"),
    ("a token with an accent", lambda w: Client("grpc://localhost:1", token="s\xe9cret"), "token is one line of plain characters (ASCII); this one has others"),
    ("a list of files", lambda w: serve(["a.onnx", "b.onnx"]), f"{MODELS_ARE}, not ['a.onnx', 'b.onnx']"),
    ("no model", lambda w: serve(None), f"{MODELS_ARE}, not None"),
    ("a session", lambda w: serve(w), f"{MODELS_ARE}, not an object of type SimpleNamespace"),
    ("an empty mapping", lambda w: serve({}), f"{MODELS_ARE}; none at all only with models_root, to be loaded later"),
    ("a model's name that is none", lambda w: serve({"": w.root / "net.onnx"}), "'' can't be a model's name: letters, digits, '_', '.', and '-'"),
    ("workers as text", lambda w: serve(w.root / "net.onnx", workers="2"), "workers is a number of 1 or more, not '2'"),
    ("a configuration as a model", lambda w: serve(w.root / "good.toml"), "'good' cannot be served: it is a configuration and no ONNX file: `batchyard up --config FILE` serves what it names"),
    ("a Python file as a model", lambda w: serve(w.root / "a.py"), "'a' cannot be served: it is Python and no ONNX file: name the function in it, as FILE.py:FUNCTION"),
    ("a number as a file", lambda w: w.operator.load("a", 5), "file is the path of a file in the yard's models_root, not 5"),
    ("a tolerance below nothing", lambda w: w.operator.swap("net", "net.onnx", tolerance=-1), "tolerance is a number, 0 or more, not -1"),
    ("an unknown model unloaded", lambda w: w.operator.unload("nte"), "no model is called 'nte'; this yard has: {models}"),
    ("states as a list", lambda w: w.client.sequence("net", states=["x"]).infer({}), "states is a mapping such as {{'input': 'output'}}, not ['x']"),
    ("a state misspelt", lambda w: w.client.sequence("net", states={"x": "z"}).infer({}), "states: 'net' has no output 'z'; it has y"),
    ("a first state for no input", lambda w: w.client.sequence("net", states={"x": "y"}, h=1).infer({}), "'net' has no input 'h'; it has x"),
    ("a stream of a closed client", lambda w: list(w.closed.stream("net", X)), "this client has been closed"),
    ("a size below nothing in a declaration", lambda w: batchyard.model(inputs="float32[-1]", outputs="float32[1]"), "tensor 'input': an axis is a size or a name, at most 64: 'float32[-1]'"),
    ("a list of inputs in a declaration", lambda w: batchyard.model(inputs=["float32[2]"], outputs="float32[1]"), "inputs is a text such as \"float32[batch, 3]\", or {{name: text}}, not ['float32[2]']"),
    ("a queue of two things", lambda w: AsyncInferenceQueue(undecorated, model="net"), "a queue needs either an inference_fn, or a model of a running yard"),
    ("a queue of batches of nothing", lambda w: AsyncInferenceQueue(undecorated, batch_size=0), "batch_size is a number of 1 or more, not 0"),
]  # fmt: skip

# What is typed -> the last line that is said. {port} is taken.
COMMANDS: list[tuple[str, str]] = [
    ("modles", "batchyard: no verb 'modles'; did you mean `batchyard models`?"),
    ("up -c nofile.toml", "Write that, or pass --config FILE. `batchyard demo` needs no file."),
    ("up -c broken.toml", "not TOML: Expected ']' at the end of a table declaration*"),
    ("up -c typo.toml", "models.net.file: expected the model's file, inside models_root, found nothing"),
    ("up -c text.toml", 'models.net.max_batch: expected an integer from 1 to 1024, found "8"'),
    ("up -c lost.toml", 'models.net.file: expected a file, found "nte.onnx": no such file: {root}/nte.onnx'),
    ("up -c good.toml --workers 0", "batchyard up: error: argument --workers: expected a whole number of 1 or more, found '0'"),
    ("up -c good.toml --metrics 99999", "batchyard up: error: argument --metrics: expected a port, 1 to 65535, found '99999'"),
    ("up -c good.toml --metrics {port}", "batchyard: cannot listen at port {port} (Address already in use): choose another --metrics"),
    ("up -c good.toml --url {url}", f"batchyard: a yard already runs at {{url}} (process {{pid}}): stop it, or {ANOTHER}"),
    ("models show nte --url {url}", "batchyard: no model is called 'nte'; this yard has: {models}"),
    ("models watch {parent} --url {url}", "batchyard: {parent} is not this yard's models_root; watch {root} instead"),
    ("models lod x --url {url}", "batchyard models: error: argument ORDER: invalid choice: 'lod' (choose from*"),
    ("infer net nofile.npy --url {url}", "batchyard: there is no file 'nofile.npy'"),
    ("infer net x.txt --url {url}", "batchyard: x.txt is no .npy file: write one with numpy.save('x.npy', array)"),
    ("infer net xs.npz --url {url}", "batchyard: xs.npz is an archive: say which array, as in xs.npz:a; it holds a"),
    ("infer net x.npy --output y.txt --url {url}", "batchyard: --output y.txt: name a file that ends in .npy or .npz"),
    ("infer net objects.npy --url {url}", "batchyard: objects.npy holds pickled objects, which batchyard never loads: save an array of numbers"),
    ("check nofile.onnx", "batchyard: there is no file nofile.onnx"),
    ("check a.py", "batchyard: a.py is Python, and `check` examines ONNX files; see docs/python-models.md"),
    ("keys create net.onnx", "batchyard: net.onnx cannot hold the keys: File exists"),
    ("serve net.onnx", "batchyard: no verb 'serve'; did you mean `batchyard up`?"),
    ("up net.onnx", "batchyard up: error: 'net.onnx': `up` serves what a batchyard.toml names, as file = 'net.onnx' in a table [models.NAME]; pass that as --config FILE"),
    ("up -c {root}", "cannot be read: Is a directory"),
    ("up -c flat.toml", 'models.net: expected a table, [models.net], found "net.onnx"'),
    ("up -c array.toml", "models: expected a table, [models], found a list"),
    ("up -c python.toml", 'models.net.file: "a.py:f" is Python: write python = "a.py:f"'),
    ("up -c buckets.toml", "models.net.buckets: expected rising batch sizes, at most 64, the last of them max_batch = 32; found [8, 4]"),
    ("up -c name.toml", "models.\"a/b\": expected a name of 1 to 255 letters, digits, '_', '.' or '-' that starts with a letter or digit, found \"a/b\""),
    ("up -c good.toml --url http://localhost:8000", f"batchyard: 'http://localhost:8000' has no scheme that batchyard knows: {URLS}"),
    ("up -c good.toml --gateway abc", "batchyard up: error: argument --gateway: expected a port, 1 to 65535, found 'abc'"),
    ("models unload nte --url {url}", "batchyard: no model is called 'nte'; this yard has: {models}"),
    ("infer net --url {url}", "batchyard: give one input file, or --input NAME=FILE for each of the model's inputs"),
    ("infer net wide.npy --url {url}", "batchyard: input x: float32[n, 4] of 'net' was given the shape (1, 5); axis 1 must be 4"),
    ("check {root}", "batchyard: {root} is a folder, not an ONNX file"),
    ("check good.toml", "batchyard: good.toml can't be served: it is a configuration and no ONNX file: `batchyard up --config FILE` serves what it names"),
    ("check net.onnx --seconds -1", "batchyard check: error: argument --seconds: expected seconds above 0, found '-1'"),
    ("fleet status --node http://localhost:1", "batchyard fleet status: error: argument --node: expected HOST[:PORT], found 'http://localhost:1'"),
]  # fmt: skip

# What is posted to /predict -> the error that is answered.
BODIES: list[tuple[Any, str]] = [
    ("", "there is no JSON: the body is empty"),
    ([], "the JSON cannot be used: Expected `object`, got `array`"),
    ({"model": "net"}, f"the JSON cannot be used: Object missing required field `data`; {FIELDS}"),
    ({"model": "net", "inputs": [[1]]}, f"the JSON cannot be used: Object contains unknown field `inputs`; {FIELDS}"),
    ({"data": [[1]]}, "name a model: this yard serves {models}"),
    ({"model": "net", "data": {"y": [[1]]}}, "data has no input 'x'; it has y"),
    ({"model": "net", "data": [[1, 2], [3]]}, "input x: float32[n, 4] is not a tensor: its lists have different lengths"),
]  # fmt: skip


@pytest.fixture(scope="module")
def root(onnx_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root").resolve()
    models = type(onnx_models)(root)
    models.unary("net", "Neg", ["n", 4])
    models.unary("image", "Neg", ["n", 3, 8, 8])
    models.unary("fixed", "Neg", [1, 4])
    both = [("a", 1, ["n", 4]), ("b", 1, ["n", 4])]
    models.save("pair", [("Sub", ["a", "b"], ["d"], {})], both, [("d", 1, ["n", 4])])
    for name, text in {
        "not.onnx": "hello", "a.py": "# nothing", "x.txt": "1 2 3", "broken.toml": "[models.net",
        "typo.toml": "[models.net]\nfil = 'net.onnx'", "lost.toml": "[models.net]\nfile = 'nte.onnx'",
        "text.toml": "[models.net]\nfile = 'net.onnx'\nmax_batch = '8'",
        "good.toml": "[models.net]\nfile = 'net.onnx'", "flat.toml": "[models]\nnet = 'net.onnx'",
        "array.toml": "[[models]]\nfile = 'net.onnx'", "python.toml": "[models.net]\nfile = 'a.py:f'",
        "buckets.toml": "[models.net]\nfile = 'net.onnx'\nbuckets = [8, 4]",
        "name.toml": "[models.'a/b']\nfile = 'net.onnx'",
    }.items():  # fmt: skip
        (root / name).write_text(text)
    np.save(root / "x.npy", X)
    np.save(root / "wide.npy", np.ones((1, 5), np.float32))
    np.savez(root / "xs.npz", a=X)
    np.save(root / "objects.npy", np.array([{}], object), allow_pickle=True)
    (root / "open").mkdir()
    os.chmod(root / "open", 0o755)
    return root


@pytest.fixture(scope="module")
def yard(root: Path) -> Iterator[batchyard.Yard]:
    with serve({name: root / f"{name}.onnx" for name in MODELS}, threads=1, models_root=root) as made:
        yield made


@pytest.fixture(scope="module")
def world(root: Path, yard: batchyard.Yard, address: str) -> Iterator[Any]:
    with Client(address) as client, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        loop = asyncio.new_event_loop()
        elsewhere = AsyncClient(address)
        loop.run_until_complete(elsewhere.models())
        closed = Client(address)
        closed.close()
        yield SimpleNamespace(
            url=yard.url,
            root=root,
            operator=yard.operator,
            client=client,
            infer=client.infer,
            small=yard.client(arena_bytes=1 << 16),
            closed=closed,
            elsewhere=elsewhere,
            claim=lambda url: batchyard.transport.endpoints.claim(batchyard.transport.endpoints.Endpoint.parse(url)),
            names={
                "url": yard.url, "root": root, "parent": root.parent, "pid": yard.processes[0].pid,
                "port": taken.getsockname()[1], "models": ", ".join(MODELS),
            },
        )  # fmt: skip
        loop.run_until_complete(elsewhere.close())
        loop.close()


@everywhere
def test_what_a_program_does_wrong_is_told_in_a_sentence(world: Any) -> None:
    assert len(CALLS) + len(COMMANDS) >= 60
    wrong = []
    for what, call, sentence in CALLS:
        try:
            found = call(world)
            text = f"no error, but {found!r}"
        except batchyard.BatchyardError as error:
            text = str(error)
        except Exception as error:
            text = f"{type(error).__name__}, which is none of ours: {error}"
        expected = re.escape(sentence.format(**world.names)).replace(r"\#", "[0-9.e-]+")
        if not re.fullmatch(expected, text) or " at 0x" in text:
            wrong.append(f"{what}: {text}")
    assert wrong == [], '\n'.join(wrong)


@pytest.mark.parametrize("address", ["http"], indirect=True)
def test_what_is_posted_wrong_is_told_in_a_sentence(world: Any, address: str) -> None:
    wrong = []
    for body, sentence in BODIES:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", "/predict", text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        if (answer.status, found["error"]) != (400, sentence.format(**{**world.names, "models": ", ".join(sorted(MODELS))})):
            wrong.append(f"{text}: {answer.status}: {found}")
    assert wrong == [], '\n'.join(wrong)


def test_what_is_typed_wrong_is_told_in_a_sentence(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.root)
    wrong = []
    for line, sentence in COMMANDS:
        try:
            status: Any = shell.main(line.format(**world.names).split())
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr().err
        last = (said.strip().splitlines() or [""])[-1].strip()
        expected = sentence.format(**world.names)
        fits = last.startswith(expected[:-1]) if expected.endswith("*") else last == expected
        if not fits or status not in (1, 2) or "Traceback" in said:
            wrong.append(f"{line}: {status}: {said}")
    assert wrong == [], '\n'.join(wrong)


def test_a_folder_of_another_user_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchyard.transport import endpoints

    monkeypatch.setattr(endpoints.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(batchyard.Unauthorized) as error:
        endpoints.claim(endpoints.Endpoint.parse(f"ipc://{tmp_path}"))
    owner = os.stat(tmp_path).st_uid
    assert str(error.value) == (
        f"{tmp_path} belongs to user {owner}, and this process runs as user {owner + 1}: {ANOTHER}"
    )


def test_a_yards_clients_end_with_it(tmp_path: Path) -> None:
    with serve({}, models_root=tmp_path, threads=1) as yard:
        used, fresh, on_loop = yard.client(), yard.client(), yard.async_client()
        assert used.models() == []
    for call in (used.models, fresh.models, yard.client().models, yard.snapshot, lambda: asyncio.run(on_loop.models())):
        with pytest.raises(batchyard.BrokerLost, match="the yard has been closed"):
            call()
    for call in (lambda: used.infer("net", X), lambda: used.submit("net", X), lambda: list(used.map("net", [X]))):
        with pytest.raises(batchyard.BrokerLost, match="the yard has been closed"):
            call()
    used.close()
    with pytest.raises(batchyard.BrokerLost, match="this client has been closed"):
        used.submit("net", X)
