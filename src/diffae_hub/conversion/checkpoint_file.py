"""Reads untrusted files of torch.save with torch's weights-only loader; nothing in them is executed.

Official checkpoints hold objects of Lightning and numpy, which that loader refuses. Here an inert class stands in for
every name that torch does not know. A hostile pickle could still waste time and memory, because a few of its bytes can
copy or hash a container that was made once. So the pickle is checked before it is loaded.
"""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which torch.save writes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Tensors are stored outside the pickle. That of the largest official network, with the optimizer's state, has 0.4 MB,
# 130,000 values and about ten foreign names.
MAX_PICKLE_BYTES = 2 * 2**20
MAX_PICKLE_VALUES = 500_000
MAX_FOREIGN_NAMES = 100

_SHOWN_CHARACTERS = 200
# The functions that official checkpoints need, of those that torch would really call. The others could only waste
# memory (`bytearray(10**12)`).
_CALLED = {
    "collections.OrderedDict",
    "_codecs.encode",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_LITERALS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_LITERALS |= {"SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_DICT", "GLOBAL"}
# Opcode -> how many values it takes from the stack; None for all down to the last mark.
_ADDERS = {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "BUILD": 1}
_TAKEN = _ADDERS | {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
_TAKEN |= {"REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}


class InertRecord:
    """Stands in for an object of a class that torch does not know. It takes any arguments and state, and keeps none."""

    def __new__(cls, *arguments: object) -> InertRecord:  # noqa: D102
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def load_checkpoint(path: str | Path, argument: str = "checkpoint") -> Any:
    """Reads a file that torch.save wrote in its zip format (torch 1.6 and later), without running any of it.

    Tensors are memory-mapped: their values are read from the file when they are used. Objects of foreign classes become
    [`InertRecord`]s. Raises ValueError if the file is not intact or costs too much; the message calls it `argument`.
    """
    try:
        names = _check_pickle(_read_pickle(Path(path)))
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if len(foreign) > MAX_FOREIGN_NAMES:
            raise ValueError(f"it has more than {MAX_FOREIGN_NAMES} foreign classes")
        for name in sorted(names - set(foreign) - _CALLED):
            if not re.fullmatch(r"torch\.\w+(?<!Tensor)", name):  # storages, dtypes, Size
                raise ValueError(f"official checkpoints do not use {shown(name)}")
        with torch.serialization.safe_globals([(InertRecord, name) for name in foreign]):
            return torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # a bad file can raise almost anything
        reason = error.__context__ or error  # torch wraps it in advice to load the file unsafely
        raise ValueError(
            f"{argument} must be an intact file written by torch.save, but {path} cannot be read: "
            f"{shown(str(reason) or type(reason).__name__)}"
        ) from error


def _read_pickle(path: Path) -> bytes:
    """Reads the pickle of a checkpoint, after checking all checksums in the file."""
    if not path.is_file():
        raise ValueError("it is not a file")
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip file, as torch 1.6 and later write it, or is truncated")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]  # torch's reader ignores case
        pickles = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
        one_folder = len({name.split("/")[0] for name in names}) == 1 and len(set(names)) == len(names)
        if len(pickles) != 1 or not one_folder or archive.comment:
            raise ValueError("it is not a zip file of one folder with one data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("it has compressed or encrypted entries; torch.save writes none")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries claim more bytes than the file has")
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the entry {damaged} does not have its checksum (CRC-32)")
        return archive.read(pickles[0])


@dataclass(slots=True)
class _Value:
    """A value that a pickle would make."""

    size: int  # number of values and characters, written out in full
    text: str | None = None  # a string, or the name of a class or function
    parts: list[_Value] | None = None  # the elements of a tuple


def _check_pickle(pickled: bytes) -> set[str]:
    """Follows a pickle as torch's loader would, refuses one that costs too much, and returns the names it uses.

    - A value that is used again counts in full each time, because each use may copy it.
    - Keys must not be tuples or large integers. Their hashes are predictable, so a file could hold many keys with the
      same hash; and hashing nested tuples exhausts the stack.
    """
    names: set[str] = set()
    memo: dict[int, _Value] = {}
    stack: list[_Value] = []
    below: list[list[_Value]] = []  # the stacks before each mark
    left = MAX_PICKLE_VALUES
    for opcode, argument, _ in pickletools.genops(pickled):
        code = opcode.name
        left -= 1
        if left < 0:
            raise ValueError(f"its pickle has more than {MAX_PICKLE_VALUES:,} values")
        if code in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            left -= stack[-1].size
        elif code == "MARK":
            below.append(stack)
            stack = []
        elif code in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > 60:
                raise ValueError("it has an integer of more than 60 bits")
            if code == "GLOBAL":
                module, _, name = argument.partition(" ")
                argument = ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
                names.add(argument)
            text = argument if isinstance(argument, str) else None
            stack.append(_Value(1 + len(text or ""), text))
        elif code in _TAKEN:
            if _TAKEN[code] is None:
                parts, stack = stack, below.pop()
            else:
                parts = [stack.pop() for _ in range(_TAKEN[code])][::-1]
            _check_parts(code, parts)
            size = sum(part.size for part in parts)
            if code in _ADDERS:
                stack[-1].size += size
            else:
                stack.append(_Value(1 + size, parts=parts if "TUPLE" in code else None))
        elif code != "STOP" and (code, argument) != ("PROTO", 2):
            raise ValueError(f"torch.save does not write {code} {shown(str(argument))}")
    return names


def _check_parts(code: str, parts: list[_Value]) -> None:
    """Checks what an opcode takes from the stack: keys, and arguments of functions that copy them."""
    keys: list[_Value] = []
    if code in ("SETITEM", "SETITEMS"):
        keys = parts[::2]
    elif code == "BINPERSID":  # torch looks a storage up by what this tuple holds
        keys = parts[0].parts or []
    elif code in ("REDUCE", "NEWOBJ"):
        function, arguments = parts[0].text, parts[1].parts
        if function == "collections.OrderedDict" and arguments != []:
            raise ValueError("it has an ordered dict that is not empty when it is made")
        if function == "_codecs.encode" and [part.text for part in arguments or []][1:] != ["latin1"]:
            raise ValueError("it has bytes in another encoding than latin1")
    if any(key.parts is not None for key in keys):
        raise ValueError("it has a tuple as a key")


def shown(text: str) -> str:
    """Shortens text from a file for messages, and escapes its control characters, which terminals would obey."""
    cut = repr(text[:_SHOWN_CHARACTERS])[1:-1]
    return cut if len(text) <= _SHOWN_CHARACTERS else f"{cut}..."


def is_whole(tensor: torch.Tensor) -> bool:
    """Tells whether the file holds all values of a tensor. A hostile one may expand a single number to any size."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize <= tensor.untyped_storage().nbytes()
