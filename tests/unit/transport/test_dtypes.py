"""The table of element types, held against onnx's own enumeration and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from batchyard.transport import dtypes
from batchyard.transport.dtypes import BITS, BY_CODE, BY_NAME, CODE_BY_NUMPY, ITEMSIZE, DType
from onnx import TensorProto, helper

# Codes that no handle may carry, and why. A new onnx with a new code must be decided on here.
NOT_CARRIED = {
    "UNDEFINED": "no type",
    "FLOAT4E2M1": "onnxruntime has no tensor of it",
    "UINT2": "onnxruntime has no tensor of it",
    "INT2": "onnxruntime has no tensor of it",
    "FLOAT6E2M3": "onnxruntime has no tensor of it",
    "FLOAT6E3M2": "onnxruntime has no tensor of it",
    "FLOAT8E8M0": "a scale, not an element; onnxruntime has no tensor of it",
}
OURS = {"FLOAT": "float32", "DOUBLE": "float64"}
WHOLE = [entry for entry in BY_CODE.values() if entry.itemsize]  # an array's bytes are the tensor's
OTHERS = {"string", "int4", "uint4"}


def test_every_onnx_element_type_is_in_the_table_or_refused_for_a_reason() -> None:
    codes = {name: code for name, code in TensorProto.DataType.items() if name not in NOT_CARRIED}
    assert {OURS.get(name, name.lower()): code for name, code in codes.items()} == {
        entry.name: entry.code for entry in BY_CODE.values()
    }


@pytest.mark.parametrize("entry", WHOLE, ids=lambda entry: entry.name)
def test_itemsize_is_that_of_onnx_and_of_the_numpy_carrier(entry: DType) -> None:
    assert entry.itemsize == helper.tensor_dtype_to_np_dtype(entry.code).itemsize
    assert entry.itemsize == entry.numpy.itemsize == ITEMSIZE[entry.code]
    assert BITS[entry.code] == entry.bits == 8 * entry.itemsize


@pytest.mark.parametrize("entry", WHOLE, ids=lambda entry: entry.name)
def test_a_numpy_type_leads_back_to_its_own_code(entry: DType) -> None:
    assert CODE_BY_NUMPY[entry.numpy] == entry.code
    assert BY_NAME[entry.name] is entry


def test_a_tensor_of_strings_or_of_half_bytes_is_never_taken_for_its_arrays_bytes() -> None:
    """`client.empty` gives views on shared memory: of objects, they would be pointers that a peer writes."""
    assert {entry.name for entry in BY_CODE.values()} - {entry.name for entry in WHOLE} == OTHERS
    for name in OTHERS:
        assert BY_NAME[name].code not in CODE_BY_NUMPY.values()
        assert BY_NAME[name].code not in ITEMSIZE
    assert BITS[BY_NAME["int4"].code] == BITS[BY_NAME["uint4"].code] == 4
    assert BY_NAME["string"].code not in BITS


def test_only_strings_are_carried_as_references() -> None:
    assert [entry.name for entry in BY_CODE.values() if entry.numpy.hasobject] == ["string"]


@pytest.mark.parametrize(
    ("name", "top"), [("int4", 8), ("uint4", 16), ("int8", 128), ("uint8", 256), ("int64", 1 << 63)]
)
def test_the_greatest_whole_number_of_a_type_is_known(name: str, top: int) -> None:
    assert BY_NAME[name].top == top


def test_object_string_and_structured_types_have_no_code() -> None:
    for text in ("O", "S4", "U4", "V8", "M8[ns]", "m8[ns]", ">f4"):
        assert np.dtype(text) not in CODE_BY_NUMPY


def test_a_type_that_is_not_in_the_table_is_still_named_in_a_sentence() -> None:
    assert dtypes.name_of(1) == "float32"
    assert dtypes.name_of(8) == "string"
    assert dtypes.name_of(23) == "dtype code 23"
    assert dtypes.name_of(-5) == "dtype code -5"


def test_without_ml_dtypes_raw_bits_stand_in_and_plain_integers_keep_their_code() -> None:
    """The client installs without ml_dtypes: then several types share one carrier."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import numpy as np\n"
        "from batchyard.transport.dtypes import BY_NAME, CODE_BY_NUMPY\n"
        "assert BY_NAME['bfloat16'].numpy == np.dtype('<u2')\n"
        "assert BY_NAME['float8e5m2'].numpy == np.dtype('u1')\n"
        "assert CODE_BY_NUMPY[np.dtype('u1')] == 2 and CODE_BY_NUMPY[np.dtype('<u2')] == 4\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
