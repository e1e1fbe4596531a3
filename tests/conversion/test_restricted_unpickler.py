"""The restricted unpickler: reads what torch.save writes, runs nothing, and says what is wrong with anything else."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from diffae_hub.conversion.convert import convert_official_checkpoint
from diffae_hub.conversion.restricted_unpickler import (
    MAX_PICKLE_BYTES,
    InertRecord,
    StoredTensor,
    load_checkpoint,
)

from .official_files import ModelCheckpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path: Path, content: object, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def rewrite(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip checkpoint whose pickle is `pickled`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(64))
        archive.writestr("archive/version", "3")
    return path


# ---- what it reads ---------------------------------------------------------------------------------------------------


@FORMATS
def test_tensors_and_plain_values(tmp_path: Path, zipped: bool) -> None:
    matrix = torch.randn(6, 4)
    tensors = {
        "float": matrix,
        "row": matrix[2],
        "transposed": matrix.t(),
        "strided": matrix[::2, 1:],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "double": torch.randn(2, dtype=torch.float64),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    plain = {
        "text": "z\u00e4hl",
        "numbers": [1, -(2**80), 1.5, True, None],
        "nested": {"a": (1, (2, 3)), 5: [()]},
        "set": {1, 2},
        "size": torch.Size([2, 3]),
        "dictionaries": (defaultdict(list, a=1), OrderedDict(b=2)),
    }
    path = save(tmp_path / "file", {"state_dict": OrderedDict(tensors), **plain}, zipped)
    content = load_checkpoint(path)
    for name, tensor in tensors.items():
        stored = content["state_dict"][name]
        assert (stored.shape, stored.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(stored.load(), tensor.detach())
    for name, value in plain.items():
        assert content[name] == value


@FORMATS
def test_one_tensor_under_two_names_is_recognised(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.randn(4)
    content = load_checkpoint(save(tmp_path / "file", [tensor, tensor, tensor[:2], tensor.clone()], zipped))
    assert [content[0].is_same_view(other) for other in content[1:]] == [True, False, False]


@FORMATS
def test_other_classes_become_inert_records(tmp_path: Path, zipped: bool) -> None:
    content = load_checkpoint(
        save(
            tmp_path / "file",
            {"callbacks": {ModelCheckpoint: ModelCheckpoint(best=1)}, "step": np.int64(3), "path": Path("a")},
            zipped,
        )
    )
    ((key, value),) = content["callbacks"].items()
    assert isinstance(key, InertRecord)
    assert isinstance(value, InertRecord)
    assert value.name.endswith("ModelCheckpoint")
    assert value.items == [("best", 1)]
    assert isinstance(content["step"], InertRecord)
    assert isinstance(content["path"], InertRecord)


def test_reading_costs_no_memory_until_a_tensor_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "file", {f"t{index}": torch.zeros(2_000_000) for index in range(20)})  # 160 MB
    code = (
        "import resource, sys\n"
        "from diffae_hub.conversion.restricted_unpickler import load_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for tensor in load_checkpoint(sys.argv[1]).values():\n"
        "    assert tensor.load().sum() == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert int(result.stdout) < 40_000  # kilobytes: a few tensors of 8 MB


# ---- hostile programs ------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call

    def __call__(self) -> None:
        """So that pickle takes it for a function."""


def hostile_objects(trace: Path) -> dict[str, object]:
    write = f"open({str(trace)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {trace}"),
        "builtins.exec": Call(builtins.exec, write),
        "builtins.eval": Call(builtins.eval, write),
        "nested": Call(getattr, Call(__import__, "os"), "system"),
        "call of a call": Call(Call(getattr, Call(__import__, "os"), "mkdir"), str(trace)),
        "in the arguments": Call(OrderedDict, [("a", Call(os.mkdir, str(trace)))]),
        "torch.load": Call(torch.load, str(trace)),
        "io.open": Call(io.open, str(trace), "w"),
    }


def hand_written_programs(trace: Path) -> dict[str, bytes]:
    command = f"touch {trace}".encode()
    return {
        "INST": b"(S'" + command + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command + b"'\no.",
        "NEWOBJ_EX": b"\x80\x04cos\nsystem\n(S'" + command + b"'\nt}\x92.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'" + command + b"'\ntR.",
        "BUILD": b"\x80\x02cos\nsystem\n}S'__class__'\ncos\nsystem\nsb.",
        "BUILD of a dict": b"\x80\x02}}S'__setstate__'\ncos\nsystem\nsbS'" + command + b"'\nb.",
    }


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "protocol 0", "protocol 5"])
@pytest.mark.parametrize("name", list(hostile_objects(Path())))
def test_hostile_calls_do_not_run(tmp_path: Path, name: str, kind: str) -> None:
    trace = tmp_path / "trace"
    hostile = hostile_objects(trace)[name]
    path = tmp_path / "file"
    if kind in ("zip", "legacy"):
        save(path, hostile, zipped=kind == "zip")
        load_checkpoint(path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(hostile))
    else:
        rewrite(path, pickle.dumps({"state_dict": {"ema_model.a": hostile}}, protocol=int(kind[-1])))
        assert isinstance(load_checkpoint(path)["state_dict"]["ema_model.a"], (InertRecord, dict))
    with pytest.raises(ValueError, match="checkpoint must "):
        convert_official_checkpoint(path, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", list(hand_written_programs(Path())))
def test_hostile_opcodes_do_not_run(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    path = rewrite(tmp_path / "file", hand_written_programs(trace)[name])
    load_checkpoint(path)
    with pytest.raises(ValueError, match="checkpoint must be a Lightning checkpoint with a state_dict"):
        convert_official_checkpoint(path, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_class_whose_import_would_run_code_is_not_imported(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    content = load_checkpoint(rewrite(tmp_path / "file", b"\x80\x02chostile_module\nA\n)R."))
    assert content.name == "hostile_module.A"
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02r\xff\xff\xff\xffN.", "takes more from its stack"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", None),  # stores at position 2^31: Python's own makes a table of that size
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "does not hold a complete pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "does not hold a complete pickle"),
        (b"\x80\x02" + b"(" * 1000 + b".", "takes more from its stack"),
        (b"\x80\x02" + b"]" + b"]a" * 1000 + b".", None),
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.", "as a key"),
        (b"\x80\x02)" + b"\x85" * 100_000 + b".", None),
        (b"\x80\x02NN.", "more than one value"),
        (b"\x80\x02N", "does not hold a complete pickle"),
        (b"\x80\x02h\x05.", "recalls what it has not stored"),
        (b"\x80\x02K\x01Na.", "appends to a value of type int"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02Pstorage\n.", "opcode PERSID"),
        (b"L" + b"9" * 10_000 + b"L\n.", "does not hold a complete pickle"),
        (b"\x80\x02}\x8a\x08" + struct.pack("<Q", 2**61 - 1) + b"Ns.", "more than 60 bits as a key"),
        (b"\x80\x02}\x8a\x08" + struct.pack("<Q", 2**60 - 1) + b"Ns.", None),
        (b"\x80\x02}K\x01\x85Ns.", "as a key"),  # a tuple's hash is known where those of its elements are
        (b"\x80\x02}X\x01\x00\x00\x00a\x85Ns.", None),
        (b"\x80\x02Np2305843009213693951\n.", "more than 60 bits as a key"),  # a place in the memo
        (b"\xff\xfe\xfd", "does not hold a complete pickle"),
        (b"", "does not hold a complete pickle"),
    ],
)
def test_programs_that_are_no_good(tmp_path: Path, program: bytes, message: str | None) -> None:
    path = rewrite(tmp_path / "file", program)
    if message is None:
        load_checkpoint(path)
    else:
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path)


def recalled(made_once: bytes, taken: bytes, times: int) -> bytes:
    """A program that stores one value, and then takes it many times."""
    return b"\x80\x04" + made_once + b"q\x00(" + taken * times + b"t\x86."


LIST = b"](" + b"".join(b"J" + struct.pack("<i", number) for number in range(1000)) + b"e"
PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", number) + b"N\x86" for number in range(1000)) + b"e"
NAME = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000


@pytest.mark.parametrize(
    ("made_once", "taken", "times"),
    [
        (PAIRS, b"ccollections\nOrderedDict\nh\x00\x85R", 1000),
        (LIST, b"cbuiltins\nset\nh\x00\x85R", 1000),
        (LIST, b"c__builtin__\nfrozenset\nh\x00\x85R", 1000),
        (b"(" + b"N" * 1000 + b"t", b"}h\x00Ns", 1000),
        (NAME, b"h\x00h\x00\x93", 100),
        (b"N", b"h\x00", 1_000_000),
    ],
    ids=["ordered dict", "set", "frozenset", "key", "class", "opcodes"],
)
def test_what_a_pickle_may_cost(tmp_path: Path, made_once: bytes, taken: bytes, times: int) -> None:
    """A container that is made once can be copied, or hashed, with every few bytes: 100 KB would become gigabytes."""
    load_checkpoint(rewrite(tmp_path / "file", recalled(made_once, taken, times // 10)))
    with pytest.raises(ValueError, match="holds a pickle of more than 1,000,000 elements"):
        load_checkpoint(rewrite(tmp_path / "file", recalled(made_once, taken, times)))


def storage_program(
    kind: bytes, key: bytes, numel: bytes, shape: bytes, stride: bytes, offset: bytes = b"K\x00"
) -> bytes:
    identifier = b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\nX" + struct.pack("<I", len(key)) + key
    identifier += b"X\x03\x00\x00\x00cpu" + numel + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + identifier + offset + shape + stride + b"\x89)tR."


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x10\x85", b"K\x01\x85"), None),
        (storage_program(b"FloatStorage", b"0", b"K\x11", b"K\x10\x85", b"K\x01\x85"), "are announced"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x11\x85", b"K\x01\x85"), "larger than its storage"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x02\x85", b"K\x10\x85"), "larger than its storage"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"J\x00\x00\x00\x7f\x85", b"K\x00\x85"), "larger than its"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x10\x85", b"K\x01\x85", b"K\x01"), "larger than its"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x10\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"), "is none"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x10\x85", b"J\xff\xff\xff\xff\x85"), "is none"),
        (storage_program(b"FloatStorage", b"0", b"K\x10", b"K\x10\x85", b"K\x01K\x01\x86"), "is none"),
        (
            storage_program(b"FloatStorage", b"9", b"K\x10", b"K\x10\x85", b"K\x01\x85"),
            "lacks the entry archive/data/9",
        ),
        (storage_program(b"FloatStorage", b"../version", b"K\x10", b"K\x10\x85", b"K\x01\x85"), "lacks the entry"),
        (storage_program(b"FloatStorage", b"0", b"N", b"K\x10\x85", b"K\x01\x85"), "in an unknown way"),
        (
            storage_program(b"FloatStorage", b"0", b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000, b")", b")"),
            "in an unknown way",
        ),
        (
            storage_program(b"FloatStorage", b"0", b"K\x10", b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t"),
            "whose shape is none",
        ),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path: Path, program: bytes, message: str | None) -> None:
    path = rewrite(tmp_path / "file", program)
    if message is None:
        assert torch.equal(load_checkpoint(path).load(), torch.zeros(16))
    else:
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path)


def test_unknown_kinds_of_numbers_are_inert(tmp_path: Path) -> None:
    content = load_checkpoint(save(tmp_path / "file", {"complex": torch.zeros(3, dtype=torch.complex64)}))
    assert isinstance(content["complex"], InertRecord)
    assert "ComplexFloatStorage" in content["complex"].name


# ---- hostile and damaged files ---------------------------------------------------------------------------------------


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    compressed = tmp_path / "compressed"
    with (
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(512):
            entry.write(bytes(2**20))
    assert compressed.stat().st_size < 2**20
    with pytest.raises(ValueError, match="compressed or encrypted entry 'archive/data.pkl'"):
        load_checkpoint(compressed)

    large = rewrite(tmp_path / "large", bytes(MAX_PICKLE_BYTES + 1))
    with pytest.raises(ValueError, match="data.pkl of 4,194,305 bytes, where at most"):
        load_checkpoint(large)


def test_entries_that_overlap_or_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "file", pickle.dumps(1))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")  # the last entry of the central directory
    for position, value, message in (
        (directory + 42, struct.pack("<I", 0), "overlaps another"),  # its data are those of the first
        (directory + 20, struct.pack("<II", 2**31, 2**31), "more than the file holds|overlaps|not an intact zip"),
    ):
        damaged = bytearray(content)
        damaged[position : position + len(value)] = value
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path)


@FORMATS
def test_truncated_files(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "file", {"a": torch.randn(300), "b": torch.randn(7)}, zipped)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint must be an intact file written by torch.save"):
            load_checkpoint(path)


def test_every_flipped_byte_of_a_pickle_gives_a_value_or_a_clear_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(
        save(tmp_path / "file", {"a": torch.zeros(16), "b": [1, "x", ModelCheckpoint(c=2)]})
    ) as archive:
        pickled = archive.read("file/data.pkl")
    generator = np.random.default_rng(0)
    for position in range(len(pickled)):
        for value in generator.integers(0, 256, 3):
            damaged = bytearray(pickled)
            damaged[position] = value
            try:
                load_checkpoint(rewrite(tmp_path / "damaged", bytes(damaged)))
            except ValueError as error:
                assert "must be an intact file written by torch.save" in str(error)


def test_legacy_files_whose_storages_end_nowhere(tmp_path: Path) -> None:
    huge = b"\x8a\x08" + struct.pack("<Q", 2**62)
    tensors = [storage_program(b"FloatStorage", key, huge, b"K\x10\x85", b"K\x01\x85") for key in (b"0", b"1")]
    content = b"\x80\x02" + tensors[0][2:-1] + tensors[1][2:-1] + b"\x86."
    path = tmp_path / "file"
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C)
        + pickle.dumps(1001)
        + pickle.dumps({"little_endian": True})
        + content
        + pickle.dumps(["0", "1"])
        + struct.pack("<Q", 2**62)
        + bytes(100)
    )
    with pytest.raises(ValueError, match="is truncated: .* bytes, where storage 0 ends at 18,446,744,073,709,5"):
        load_checkpoint(path)


@pytest.mark.parametrize("place", ["class", "storage", "entry"])
@pytest.mark.parametrize(
    "hostile", ["\x1b]0;title\x07", "\u202e", "\ud800", "x" * 100_000], ids=["escape", "bidi", "half", "long"]
)
def test_names_in_messages_are_short_and_printable(tmp_path: Path, hostile: str, place: str) -> None:
    path, name = tmp_path / "file", hostile.encode("utf-8", "surrogatepass")
    text = b"X" + struct.pack("<I", len(name)) + name
    if place == "class":
        path.write_bytes(b"\x80\x04" + text + text + b"\x93.")
    elif place == "storage":
        rewrite(path, storage_program(b"FloatStorage", name, b"K\x10", b"K\x10\x85", b"K\x01\x85"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            entry = hostile[:60_000].encode("utf-8", "replace").decode()
            archive.writestr(f"archive/{entry}", bytes(100), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="an object of|lacks the entry|compressed or encrypted entry") as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("entry", ["data/0", "data.pkl"])
def test_damaged_values_do_not_have_their_checksum(tmp_path: Path, entry: str) -> None:
    path = save(tmp_path / "file", {"whole": (tensor := torch.arange(5000.0)), "part": tensor[:3]})
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"file/{entry}")
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + len(content) - 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"checkpoint must be .* {path} is damaged: .*checksum"):
        load_checkpoint(path)["part"].load()  # the damage is elsewhere in its storage


def test_files_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "file", torch.arange(5.0))
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    assert torch.equal(load_checkpoint(path).load(), torch.arange(5.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a zip file nor a pickle"),
        (b"not a pickle at all, but text\n", "neither a zip file nor a pickle"),
        (bytes(range(256)) * 10, "neither a zip file nor a pickle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither a zip file nor a pickle"),
        (b"PK\x03\x04" + bytes(100), "not an intact zip file"),
        (pickle.dumps({"state_dict": {}}), "a pickle of something else"),
        (pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1), "unknown version"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^latent_stats must be .* but {path} .*{message}"):
        load_checkpoint(path, "latent_stats")


def test_zip_files_without_a_checkpoint_missing_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("picture.png", b"x")
    with pytest.raises(ValueError, match="without the entry data.pkl"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="checkpoint must be the path of a checkpoint, but .*nothing does not exist"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not a file"):
        load_checkpoint(tmp_path)


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        load_checkpoint(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = save(tmp_path / "file", torch.randn(1000))
    tensor = load_checkpoint(path)
    assert isinstance(tensor, StoredTensor)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="has become shorter"):
        tensor.load()
