"""Read and write arrays, and summarize one in a line. Pickled objects are never loaded."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..transport.errors import InvalidRequest

Array = npt.NDArray[Any]
ARGMAX_SHOWN = 16  # rows whose largest class is shown
VALUES_SHOWN = 8  # of an array that is shown whole


def load(text: str) -> Array:
    """The array in `file.npy`, or of one name in `file.npz:name`.

    Raises InvalidRequest, which names what the file is instead.
    """
    path, name = _split(text)
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        raise InvalidRequest(_why_not(path, error)) from None
    if isinstance(found, np.ndarray):
        return found
    with found:
        names = list(found.files)
        if name in names:
            try:
                array: Array = found[name]
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise InvalidRequest(_why_not(path, error)) from None
            return array
    listed = ", ".join(names) or "nothing"
    if name:
        raise InvalidRequest(f"{path} has no array {name!r}; it holds {listed}")
    example = f"{path}:{names[0] if names else 'name'}"
    raise InvalidRequest(f"{path} is an archive: say which array, as in {example}; it holds {listed}")


def save(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write the one output as .npy, or all of them by name as .npz. Raises InvalidRequest."""
    try:
        with path.open("wb") as file:  # given a path, numpy would add a suffix that nobody asked for
            if path.suffix == ".npz":
                _save_archive(file, outputs)
            else:
                (array,) = outputs.values()
                np.save(file, array, allow_pickle=False)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}") from None


def summary(name: str, array: Array) -> list[str]:
    """Its type and shape, its range, and for [rows, classes] the largest class of each row."""
    shape = ", ".join(str(size) for size in array.shape)
    lines = [f"{name}  {array.dtype}[{shape}]"]
    if array.size == 0:
        return lines
    if array.size <= VALUES_SHOWN:
        lines.append(f"  values  {' '.join(f'{value:.6g}' for value in array.ravel().tolist())}")
    elif array.dtype.kind in "fiu":
        low, mean, high = (float(value) for value in (array.min(), array.mean(dtype=np.float64), array.max()))
        lines.append(f"  min {low:.6g}, mean {mean:.6g}, max {high:.6g}")
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "fiu":
        largest = array[:ARGMAX_SHOWN].argmax(axis=1)
        more = f" ... ({len(array)} rows)" if len(array) > ARGMAX_SHOWN else ""
        lines.append(f"  argmax  {' '.join(str(index) for index in largest)}{more}")
    return lines


def _save_archive(file: IO[bytes], outputs: Mapping[str, Array]) -> None:
    """Like numpy.savez, but an array may be called `file`."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _split(text: str) -> tuple[Path, str]:
    """(`archive.npz`, `name`) of `archive.npz:name`; any other colon belongs to the path."""
    path, separator, name = text.rpartition(".npz:")
    if separator and not os.path.exists(text):
        return Path(f"{path}.npz"), name
    return Path(text), ""


def _why_not(path: Path, error: Exception) -> str:
    if "Object arrays" in str(error):
        return f"{path} holds pickled objects, which batchyard never loads: save an array of numbers"
    if "pickle" in str(error):  # numpy's guess about every file that has neither of its magic numbers
        return f"{path} is no .npy file: write one with numpy.save({path.with_suffix('.npy').name!r}, array)"
    return f"{path} is no readable .npy file: {error}"
