"""Reading files of torch.save without unpickling: a small interpreter of pickle programs that calls nothing.

A pickle is a program, and Python's unpickler runs whatever function it names. The interpreter here knows the opcodes
but imports nothing: numbers, strings and plain containers become what they are, tensors become [`StoredTensor`]s, which
say where in the file the values lie, and everything else becomes an [`InertRecord`] that only remembers a name. Values
are read when they are asked for, one tensor at a time.
"""

from __future__ import annotations

import io
import math
import operator
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# Checkpoints hold their tensors beside the pickle. With the optimizer's state, the largest official network takes
# 0.4 MB and 130,000 opcodes. These bound what a hostile pickle costs: a few hundred megabytes and seconds.
MAX_PICKLE_BYTES = 4 * 2**20
MAX_PICKLE_ELEMENTS = 1_000_000  # opcodes, and elements of the containers that one opcode copies or hashes

_SHOWN_CHARACTERS = 200
_MAX_DIMENSIONS = 64  # of a tensor, as in torch
_CRC_CHUNK = 2**20

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles that torch.save wrote before version 1.6
_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


@dataclass(eq=False)
class InertRecord:
    """What stands for an object of a class, or a function, that is not admitted. Nothing of it has run.

    Args:
        name: Its name, "module.name", cut after 200 characters.
        arguments: What the pickle wanted it to be called with; None for a mere reference to the class or function.
        state: What the pickle wanted to set as its state.
        items: What the pickle wanted to append to it (values) or to set in it (pairs).
    """

    name: str
    arguments: Any = None
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.name[:_SHOWN_CHARACTERS]

    def __repr__(self) -> str:
        return f"InertRecord({self.name!r})"


@dataclass(eq=False)
class _Storage:
    """The bytes of one storage.

    Args:
        dtype: Type of the elements.
        numel: Number of elements.
        position: Where the bytes begin in the file.
        checksum: Their CRC-32, until they have been compared with it; None if the file has none.
    """

    dtype: torch.dtype
    numel: int
    position: int | None = None
    checksum: int | None = None


@dataclass(eq=False)
class StoredTensor:
    """A tensor whose values are still in the file.

    Args:
        path: The file.
        storage: The storage that it is a view of.
        storage_offset: First element, counted in the storage.
        shape: Shape.
        stride: Strides, in elements.
    """

    path: Path
    storage: _Storage = field(repr=False)
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.storage.dtype

    def is_same_view(self, other: StoredTensor) -> bool:
        """Whether both are the same elements of the same storage: one tensor under two names."""
        return self.storage is other.storage and (self.storage_offset, self.shape, self.stride) == (
            other.storage_offset,
            other.shape,
            other.stride,
        )

    def load(self) -> torch.Tensor:
        """Reads the values: a new tensor on the CPU, of this shape and dtype.

        Raises:
            ValueError: If the file has become shorter since it was opened, or the bytes of the storage do not have the
                checksum that the file announces.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        size = self.dtype.itemsize
        buffer = torch.empty(_extent(self.shape, self.stride) * size, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        with self.path.open("rb") as file:
            self._compare_checksum(file)
            file.seek(self.storage.position + self.storage_offset * size)
            if file.readinto(view) != len(view):
                raise ValueError(f"checkpoint must not change while it is read, but {self.path} has become shorter")
        return buffer.view(self.dtype).as_strided(self.shape, self.stride)

    def _compare_checksum(self, file: io.BufferedReader) -> None:
        """Compares the whole storage with its CRC-32, once for all of its tensors."""
        if self.storage.checksum is None:
            return
        file.seek(self.storage.position)
        checksum, left = 0, self.storage.numel * self.dtype.itemsize
        while left > 0 and (chunk := file.read(min(left, _CRC_CHUNK))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
        if left == 0 and checksum != self.storage.checksum:  # what is too short is the caller's to say
            raise ValueError(
                f"checkpoint must be intact, but {self.path} is damaged: the values of a tensor of shape "
                f"{shown(str(self.shape))} do not have the checksum (CRC-32) that was saved with them"
            )
        self.storage.checksum = None


class _Damaged(Exception):
    """Why a file cannot be read, as the end of a sentence."""


def load_checkpoint(path: str | Path, argument: str = "checkpoint") -> Any:
    """Reads a file that torch.save wrote, without running any of it.

    Args:
        path: The file, in the zip format (torch 1.6 and later) or the one before it.
        argument: What error messages call the file.

    Returns:
        What was saved: numbers, strings, bytes, None, lists, tuples, sets and dicts (ordered ones too become dicts), in
        which tensors and parameters are [`StoredTensor`]s and everything else is an [`InertRecord`].

    Raises:
        ValueError: If the file is missing, was not written by torch.save, is damaged or truncated, or claims more than
            it holds.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{argument} must be the path of a checkpoint, but {path} does not exist")
    if not path.is_file():
        raise ValueError(f"{argument} must be the path of a checkpoint, but {path} is not a file")
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                return _read_zip(path, file)
            file.seek(0)
            return _read_legacy(path, file)
    except _Damaged as error:
        raise ValueError(f"{argument} must be an intact file written by torch.save, but {path} {error}") from error


# ---- the two formats -------------------------------------------------------------------------------------------------


def _read_zip(path: Path, file: io.BufferedReader) -> Any:
    """The format since torch 1.6: one pickle, and one uncompressed entry per storage."""
    entries = _zip_entries(path, file)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _Damaged("is a zip file without the entry data.pkl of a checkpoint")
    prefix = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        position, size, checksum = entries[name]
        if size > MAX_PICKLE_BYTES:
            raise _Damaged(
                f"has an entry {shown(name)} of {size:,} bytes, where at most {MAX_PICKLE_BYTES:,} are allowed"
            )
        file.seek(position)
        content = file.read(size)
        if checksum is not None and zlib.crc32(content) != checksum:
            raise _Damaged(f"is damaged: the entry {shown(name)} does not have its checksum (CRC-32)")
        return content

    if f"{prefix}byteorder" in entries and read(f"{prefix}byteorder") != b"little":
        raise _Damaged("is in big-endian byte order, which is not supported")

    def find_storage(key: str, dtype: torch.dtype, numel: int) -> _Storage:
        name = f"{prefix}data/{key}"
        if name not in entries:
            raise _Damaged(f"lacks the entry {shown(name)}")
        position, size, checksum = entries[name]
        if size != numel * dtype.itemsize:
            raise _Damaged(
                f"has {size:,} bytes in the entry {shown(name)}, where {numel * dtype.itemsize:,} are announced"
            )
        return _Storage(dtype, numel, position, checksum)

    return _Interpreter(path, find_storage).run(io.BytesIO(read(pickles[0])))


def _zip_entries(path: Path, file: io.BufferedReader) -> dict[str, tuple[int, int, int | None]]:
    """Name -> (position of the data, size, CRC-32) of every entry; only such archives as torch writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise _Damaged(f"is not an intact zip file (truncated?): {shown(str(error))}") from error
    length = path.stat().st_size
    entries: dict[str, tuple[int, int, int | None]] = {}
    free_from = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = shown(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise _Damaged(f"has a compressed or encrypted entry '{name}'; torch.save writes none")
        if not free_from <= info.header_offset <= length - _LOCAL_HEADER.size:
            raise _Damaged(f"has an entry '{name}' that overlaps another or lies outside the file")
        file.seek(info.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        position = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        free_from = position + info.file_size
        if signature != _ZIP_MAGIC or free_from > length:
            raise _Damaged(f"has a damaged entry '{name}', or one that claims more than the file holds")
        if info.filename in entries:
            raise _Damaged(f"has the entry '{name}' twice")
        # torch.save writes 0 everywhere if it is told to compute none.
        entries[info.filename] = (position, info.file_size, info.CRC or None)
    return entries


def _read_legacy(path: Path, file: io.BufferedReader) -> Any:
    """The format before torch 1.6: five pickles one after another, then the storages in the order of the fifth."""
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    storages: dict[str, _Storage] = {}

    def find_storage(key: str, dtype: torch.dtype, numel: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, numel))

    try:
        magic = _Interpreter(path, None).run(head)
    except _Damaged as error:
        raise _Damaged(f"is neither a zip file nor a pickle, or is truncated: it {error}") from error
    if magic != _LEGACY_MAGIC or type(magic) is not int:
        raise _Damaged(f"is a pickle of something else ({describe(magic)}); nothing of it was run")
    if _Interpreter(path, None).run(head) != _LEGACY_PROTOCOL:
        raise _Damaged("is in an unknown version of the format")
    system = _Interpreter(path, None).run(head)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Damaged("is in big-endian byte order, which is not supported")
    content = _Interpreter(path, find_storage).run(head)
    keys = _Interpreter(path, None).run(head)
    if not isinstance(keys, list) or not set(map(type, keys)) <= {str} or sorted(keys) != sorted(storages):
        raise _Damaged("does not list the storages that its tensors use")
    position, length = head.tell(), path.stat().st_size
    for key in keys:
        storage = storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise _Damaged(f"has another number of elements in storage {shown(key)} than announced, or is truncated")
        storage.position = position + 8
        position = storage.position + storage.numel * storage.dtype.itemsize
        if position > length:
            raise _Damaged(f"is truncated: {length:,} bytes, where storage {shown(key)} ends at {position:,}")
    return content


def shown(text: str) -> str:
    """Text from a file as messages may show it: no control characters (terminals obey them), and not too much of it."""
    cut = repr(text[:_SHOWN_CHARACTERS])[1:-1]
    return cut if len(text) <= _SHOWN_CHARACTERS else f"{cut}..."


def describe(value: object) -> str:
    """A few words about a loaded value, for error messages; never its content."""
    if isinstance(value, InertRecord):
        return f"an object of {shown(value.name[:100])}"
    if isinstance(value, StoredTensor):
        return f"a tensor of shape {shown(str(value.shape))} and {value.dtype}"
    return f"a value of type {type(value).__name__}"


# ---- the interpreter -------------------------------------------------------------------------------------------------

_MARK = object()

_LITERALS = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Interpreter:
    """Runs pickle programs on a stack of plain values.

    Args:
        path: The file, for the tensors.
        find_storage: (key, dtype, number of elements) -> storage; None where the program may not name any.
    """

    def __init__(self, path: Path, find_storage: Callable[[str, torch.dtype, int], _Storage] | None) -> None:
        self._path = path
        self._find_storage = find_storage
        self._storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._elements_left = MAX_PICKLE_ELEMENTS

    def run(self, stream: io.BytesIO) -> Any:
        """Runs one program, up to its STOP, and returns what it leaves."""
        self._stack, self._memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    result = self._pop()
                    if self._stack:
                        raise _Damaged("holds a pickle that leaves more than one value")
                    return result
                self._spend(1)
                self._execute(opcode.name, argument)
        except (ValueError, EOFError, IndexError, OverflowError, struct.error) as error:
            # What pickletools raises on bytes that are no pickle, or only half of one.
            raise _Damaged(f"does not hold a complete pickle: {shown(str(error))}") from error
        raise _Damaged("holds a pickle without an end")

    def _spend(self, elements: int) -> None:
        """Counts what the program costs: an opcode may take a container that was made once as often as it likes."""
        self._elements_left -= elements
        if self._elements_left < 0:
            raise _Damaged(f"holds a pickle of more than {MAX_PICKLE_ELEMENTS:,} elements")

    # ---- the stack

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Damaged("holds a pickle that takes more from its stack than is there")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise _Damaged("holds a pickle that takes more from its stack than is there")

    # ---- the opcodes

    def _execute(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[self._as_key(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self._memo:
                raise _Damaged("holds a pickle that recalls what it has not stored")
            push(self._memo[argument])
        elif name == "MARK":
            push(_MARK)
        elif name == "POP":
            if not self._stack:
                raise _Damaged("holds a pickle that takes more from its stack than is there")
            self._stack.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            push(self._top())
        elif name in _TUPLES:
            push(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name == "LIST":
            push(self._pop_to_mark())
        elif name == "DICT":
            values = self._pop_to_mark()
            push({})
            self._set_items(values)
        elif name == "FROZENSET":
            push(frozenset(map(self._as_key, self._pop_to_mark())))
        elif name == "APPEND":
            self._append([self._pop()])
        elif name == "APPENDS":
            self._append(self._pop_to_mark())
        elif name == "ADDITEMS":
            values = self._pop_to_mark()
            container = self._top()
            if not isinstance(container, set):
                raise _Damaged("holds a pickle that adds to something that is no set")
            container.update(map(self._as_key, values))
        elif name == "SETITEM":
            value, key = self._pop(), self._pop()
            self._set_items([key, value])
        elif name == "SETITEMS":
            self._set_items(self._pop_to_mark())
        elif name == "GLOBAL":
            push(InertRecord(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            if not isinstance(attribute, str) or not isinstance(module, str):
                raise _Damaged("holds a pickle that names a class by something that is no string")
            self._spend(len(module) + len(attribute))
            push(InertRecord(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self._pop(), self._pop()
            push(self._reduce(function, arguments))
        elif name == "NEWOBJ_EX":
            keywords, arguments, function = self._pop(), self._pop(), self._pop()
            push(InertRecord(_name_of(function), (arguments, keywords)))
        elif name == "INST":
            push(InertRecord(str(argument).replace(" ", ".", 1), tuple(self._pop_to_mark())))
        elif name == "OBJ":
            function, *arguments = self._pop_to_mark() or [None]
            push(InertRecord(_name_of(function), tuple(arguments)))
        elif name == "BUILD":
            state = self._pop()
            target = self._top()
            if isinstance(target, InertRecord):
                target.state = state
            elif not isinstance(target, (dict, StoredTensor)):  # attributes of these are not kept
                raise _Damaged(f"holds a pickle that sets attributes of {describe(target)}")
        elif name == "BINPERSID":
            push(self._persistent(self._pop()))
        else:
            raise _Damaged(f"holds a pickle with the opcode {name}, which torch.save does not write")

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, InertRecord):
            target.items.extend(values)
        else:
            raise _Damaged(f"holds a pickle that appends to {describe(target)}")

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise _Damaged("holds a pickle that sets a key without a value")
        target = self._top()
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, dict):
            target.update((self._as_key(key), value) for key, value in pairs)
        elif isinstance(target, InertRecord):
            target.items.extend(pairs)
        else:
            raise _Damaged(f"holds a pickle that sets items of {describe(target)}")

    def _as_key(self, value: Any) -> Any:
        """`value`, if it may be a key.

        Hashing a deeply nested value would exhaust the stack. Hashes of numbers are known beforehand, so that keys with
        one and the same hash can be made of large integers and of tuples with numbers; a dict of them takes forever.
        """
        scalars = (str, bytes, type(None), InertRecord)
        if isinstance(value, int) and value.bit_length() > 60:
            raise _Damaged("holds a dict or set with an integer of more than 60 bits as a key")
        if isinstance(value, (*scalars, int, float)):
            return value
        if isinstance(value, tuple):
            self._spend(len(value))
            if all(isinstance(item, scalars) for item in value):
                return value
        raise _Damaged(f"holds a dict or set with {describe(value)} as a key")

    def _reduce(self, function: Any, arguments: Any) -> Any:
        """What a call is replaced by: a value that is made here, or an inert record."""
        if not isinstance(arguments, tuple):
            raise _Damaged("holds a pickle that calls something with no tuple of arguments")
        name = _name_of(function)
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor(arguments)
        if name == "torch._utils._rebuild_parameter" and arguments and isinstance(arguments[0], StoredTensor):
            return arguments[0]
        if name == "collections.OrderedDict":
            pairs = arguments[0] if arguments else []
            if not isinstance(pairs, list) or not all(
                isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
            ):
                raise _Damaged("holds an ordered dict that is not made of pairs")
            self._spend(len(pairs))
            return {self._as_key(key): value for key, value in pairs}
        if name == "collections.defaultdict":
            return {}
        if name in ("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"):
            values = arguments[0] if arguments else []
            if not isinstance(values, list):
                raise _Damaged("holds a set that is not made from a list")
            self._spend(len(values))
            return (frozenset if name.endswith("frozenset") else set)(map(self._as_key, values))
        if name == "torch.Size" and arguments and isinstance(arguments[0], tuple):
            return arguments[0]
        return InertRecord(name, arguments)

    def _persistent(self, identifier: Any) -> Any:
        """The storage that a persistent id of torch.save names."""
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            return InertRecord("a persistent object", identifier)
        _, kind, key, _, numel, *view = identifier
        module, _, storage_name = _name_of(kind).rpartition(".")
        if module not in ("torch", "torch.cuda") or storage_name not in _STORAGE_DTYPES:
            return InertRecord(_name_of(kind), identifier)
        if not isinstance(key, str) or not _is_count(numel) or any(part is not None for part in view):
            raise _Damaged("holds a pickle that describes a storage in an unknown way")
        if self._find_storage is None:
            raise _Damaged("holds tensors where none belong")
        dtype = _STORAGE_DTYPES[storage_name]
        if key not in self._storages:
            self._storages[key] = self._find_storage(key, dtype, numel)
        storage = self._storages[key]
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise _Damaged(f"describes storage {shown(key)} in two ways")
        return storage

    def _tensor(self, arguments: tuple) -> StoredTensor | InertRecord:
        if len(arguments) < 4:
            raise _Damaged("holds a tensor without a shape")
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, InertRecord):  # of complex or quantized numbers, say
            return InertRecord(f"torch.Tensor ({storage.name[:100]})", arguments)
        if not isinstance(storage, _Storage):
            raise _Damaged("holds a tensor without a storage")
        if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
            raise _Damaged("holds a tensor whose shape is none")
        if len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, (offset, *shape, *stride))):
            raise _Damaged("holds a tensor whose shape is none")
        # The second condition keeps a few stored numbers from being expanded to any size.
        numel = math.prod(shape)
        if numel and (offset + _extent(shape, stride) > storage.numel or numel > storage.numel):
            raise _Damaged("holds a tensor that is larger than its storage")
        return StoredTensor(self._path, storage, offset, shape, stride)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Number of elements from the first to the last of a view that is not empty."""
    return 1 + sum(map(operator.mul, (size - 1 for size in shape), stride))


def _name_of(function: Any) -> str:
    """The dotted name of a class or function; of anything else, what it is."""
    if isinstance(function, InertRecord) and function.arguments is None:
        return function.name
    return f"<{describe(function)}>"


def _is_count(value: Any) -> bool:
    """Whether `value` may be a size, a stride or an offset: an integer of 63 bits."""
    return type(value) is int and 0 <= value < 2**63
