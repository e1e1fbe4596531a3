"""Files of torch.save that nobody vouches for: nothing in them runs, and what is no good is one sentence, soon."""

import builtins
import enum
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from diffae_hub.conversion.checkpoint_file import (
    MAX_FOREIGN_NAMES,
    MAX_PICKLE_BYTES,
    MAX_PICKLE_VALUES,
    InertRecord,
    load_checkpoint,
)
from diffae_hub.conversion.convert import convert_official_checkpoint

from .official_files import ModelCheckpoint


class Colour(enum.Enum):
    RED = 1


def save(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def rewrite(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """A zip checkpoint whose pickle is `pickled`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "data/0": bytes(64), "version": b"3", **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def refuse(path: Path, pickled: bytes | None = None) -> None:
    """The file, rewritten with that pickle if there is one, gives a short sentence."""
    if pickled is not None:
        rewrite(path, pickled)
    with pytest.raises(ValueError, match="^checkpoint must be") as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 700


# ---- what it reads ---------------------------------------------------------------------------------------------------


def test_other_classes_become_inert_records(tmp_path: Path) -> None:
    plain = {"text": "z\u00e4hl", "numbers": [1, -(2**50), 1.5, True, None], "bytes": b"\x00\xff"}
    plain |= {"nested": {5: [(1, ())]}, "types": [torch.Size([2, 3]), torch.float16]}
    foreign = {"callbacks": {ModelCheckpoint: {"best": 1}}, "object": ModelCheckpoint(), "class": int}
    foreign |= {"enum": Colour.RED, "step": np.int64(3), "array": np.zeros(3), "path": Path("a")}
    content = load_checkpoint(save(tmp_path / "file", plain | foreign))
    assert {name: content.pop(name) for name in plain} == plain
    ((key, value),) = content.pop("callbacks").items()
    assert (key, value) == (InertRecord, {"best": 1})
    assert content.pop("class") is InertRecord
    assert all(type(value) is InertRecord for value in content.values())
    allowed = [item for item in torch.serialization.get_safe_globals() if isinstance(item, tuple)]
    assert not any(InertRecord in item for item in allowed)


def test_reading_costs_little_memory(tmp_path: Path, memory_growth) -> None:
    large = save(tmp_path / "large", {f"t{index}": torch.zeros(2_000_000) for index in range(10)})  # 80 MB
    assert memory_growth(lambda: load_checkpoint(large)) < 30e6
    dear = rewrite(tmp_path / "dear", b"\x80\x02(" + b"}" * (MAX_PICKLE_VALUES - 10) + b"t.")  # allowed, but just so
    assert memory_growth(lambda: load_checkpoint(dear)) < 300e6


# ---- hostile programs ------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call

    def __call__(self) -> None:
        """So that pickle takes it for a function."""


def hostile_objects(trace: Path) -> list[object]:
    write = f"open({str(trace)!r}, 'w').close()"
    return [
        Call(os.system, f"touch {trace}"),
        Call(subprocess.call, ["touch", str(trace)]),
        Call(builtins.exec, write),
        Call(builtins.eval, write),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(OrderedDict, [("a", Call(os.mkdir, str(trace)))]),
        Call(torch.load, str(trace)),
        Call(io.open, str(trace), "w"),
    ]


def hand_written_programs(trace: Path) -> list[bytes]:
    command = f"touch {trace}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    return [
        b"(S'" + command + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'" + command + b"'\no.",
        b"\x80\x02cshutil\nrmtree\n" + text + b"\x85\x81.",
        b"\x80\x04cos\nsystem\n(S'" + command + b"'\nt}\x92.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'" + command + b"'\ntR.",
        b"\x80\x02cshutil\nrmtree\n)R}X\x09\x00\x00\x00__class__" + b"csubprocess\ncall\nsb.",
        b"\x80\x02}}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb" + text + b"b.",
        b"\x80\x02c__builtin__\nexecfile\n" + text + b"\x85R.",
    ]


@pytest.mark.parametrize("protocol", [0, 2, 5, None])
def test_hostile_programs_do_not_run(tmp_path: Path, protocol: int | None) -> None:
    path, trace = tmp_path / "file", tmp_path / "trace"
    programs = hand_written_programs(trace)
    if protocol is not None:
        states = ({"state_dict": {"ema_model.a": hostile}} for hostile in hostile_objects(trace))
        programs = [pickle.dumps(state, protocol) for state in states]
    for program in programs:
        rewrite(path, program)
        with pytest.raises(ValueError, match="^checkpoint must "):
            convert_official_checkpoint(path, tmp_path / "out")
        assert sorted(tmp_path.iterdir()) == [path]


def test_a_class_whose_import_would_run_code_is_not_imported(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(load_checkpoint(rewrite(tmp_path / "file", b"\x80\x02chostile_module\nA\n)R."))) is InertRecord
    assert "hostile_module" not in sys.modules


# ---- hostile costs ---------------------------------------------------------------------------------------------------


def storage(numel: bytes = b"K\x10", key: bytes = b"X\x01\x00\x00\x000") -> bytes:
    return b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpu" + numel + b"tQ"


def tensor(shape: bytes = b"K\x10\x85", stride: bytes = b"K\x01\x85", **options: bytes) -> bytes:
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage(**options) + b"K\x00" + shape + stride + b"\x89)tR."
    )


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


NESTED = b")" + b"\x85" * 50_000  # hashing it exhausts the stack, and the process is gone
LONG_TEXT = b"X" + struct.pack("<I", 50_000) + b"a" * 50_000
ENCODED = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
LIST = b"](" + b"K\x01" * 10_000 + b"e"
COSTLY = {
    "nested key": b"\x80\x02}" + NESTED + b"Ns.",
    "nested key of a storage": tensor(key=NESTED),
    "key of exponential size": b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns.",
    "keys of equal hashes": b"\x80\x02}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(20_000)) + b"u.",
    "set": b"\x80\x02" + LIST + b"q\x00(" + b"cbuiltins\nset\nh\x00\x85R" * 10_000 + b"t.",
    "ordered dict": b"\x80\x02](K\x01N\x86eq\x00(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10 + b"t.",
    "state of a dict": b"\x80\x02]q\x00" + LIST + b"q\x01(" + b"ccollections\nOrderedDict\n)Rh\x01b" * 100 + b"t.",
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n" + number(10**13) + b"\x85R.",
    "storage without a file": b"\x80\x02ctorch.storage\nUntypedStorage\n" + number(10**13) + b"\x85R.",
    "encodings": b"\x80\x02c_codecs\nencode\n" + LONG_TEXT + b"X\x08\x00\x00\x00punycode\x86R.",
    "encoded again": b"\x80\x02" + LONG_TEXT + b"q\x00(" + ENCODED * 1000 + b"t.",
    "grows by itself": b"\x80\x02]q\x00" + b"h\x00a" * 10_000 + b".",
    "values": b"\x80\x02(" + b"N" * (MAX_PICKLE_VALUES + 1) + b"t.",
    "bytes": b"\x80\x02X" + struct.pack("<I", MAX_PICKLE_BYTES) + b"a" * MAX_PICKLE_BYTES + b".",
    "names": b"\x80\x02(" + b"".join(b"ca\nb%d\n" % index for index in range(MAX_FOREIGN_NAMES + 1)) + b"t.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f" + b"h\x00.",
    "text longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
}


@pytest.mark.parametrize("name", list(COSTLY))
def test_what_a_pickle_may_cost(tmp_path: Path, name: str) -> None:
    refuse(tmp_path / "file", COSTLY[name])


def test_programs_that_are_no_good(tmp_path: Path) -> None:
    for program in (
        tensor(numel=number(-1)),
        tensor(shape=b"K\x11\x85"),
        tensor(shape=b"K\x02\x85", stride=b"K\x10\x85"),
        tensor(stride=number(-1) + b"\x85"),
        tensor(shape=number(2**40) * 2 + b"\x86", stride=b"K\x00K\x00\x86"),
        tensor(key=b"X\x01\x00\x00\x009"),
        tensor(key=b"X\x0a\x00\x00\x00../version"),
        b"\x80\x02NN",
        b"\x80\x02h\x05.",
        b"\x80\x02\x82\x01.",
        b"",
    ):
        refuse(tmp_path / "file", program)


def test_a_number_spread_to_any_size_has_no_values(tmp_path: Path) -> None:
    program = b"\x80\x02}X\x0a\x00\x00\x00state_dict}X\x0a\x00\x00\x00conds_mean"
    program += tensor(shape=b"K\x01" + number(10**12) + b"\x86", stride=b"K\x00K\x00\x86")[2:-1] + b"ss."
    with pytest.raises(ValueError, match="^checkpoint must .*conds_mean"):
        convert_official_checkpoint(rewrite(tmp_path / "file", program), tmp_path / "out")


# ---- damaged and foreign files ---------------------------------------------------------------------------------------


def test_zip_files_that_torch_does_not_write(tmp_path: Path) -> None:
    path, good = tmp_path / "file", pickle.dumps(1, 2)
    assert load_checkpoint(rewrite(path, good)) == 1
    for entries in (
        {"DATA.PKL": good},  # torch's reader takes either
        {"byteorder": b"big?"},
        {"constants.pkl": good},  # a program of TorchScript
    ):
        refuse(rewrite(path, good, **entries))
    for name, content, compression in (
        ("archive/data.pkl", good + bytes(2**24), zipfile.ZIP_DEFLATED),  # a bomb
        ("picture.png", b"x", zipfile.ZIP_STORED),
        ("x\x1b]0;title\x07/data.pkl", b"\x80\x02c\x1b]0;\nA\n.", zipfile.ZIP_STORED),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(name, content)
        refuse(path)


def test_entries_that_overlap_or_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    content = rewrite(tmp_path / "file", pickle.dumps(1, 2)).read_bytes()
    directory = content.rindex(b"PK\x01\x02")  # the last entry of the central directory
    for position, value in ((42, struct.pack("<I", 0)), (20, struct.pack("<II", 2**31, 2**31))):
        damaged = bytearray(content)
        damaged[directory + position : directory + position + len(value)] = value
        (tmp_path / "file").write_bytes(damaged)
        refuse(tmp_path / "file")


def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    path = save(tmp_path / "file", {"a": torch.randn(300), "b": torch.randn(7)})
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refuse(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        contents = [archive.read(f"file/{entry}") for entry in ("data/0", "data.pkl")]
    for content in contents:  # one wrong bit
        damaged = bytearray(whole)
        damaged[whole.index(content) + len(content) - 2] ^= 1
        path.write_bytes(damaged)
        refuse(path)


def test_every_flipped_byte_of_a_pickle_gives_a_value_or_a_sentence(tmp_path: Path) -> None:
    whole = save(tmp_path / "file", {"a": torch.zeros(16), "b": [1, "x", ModelCheckpoint()]})
    with zipfile.ZipFile(whole) as archive:
        pickled = archive.read("file/data.pkl")
    generator = np.random.default_rng(0)
    for position in range(len(pickled)):
        damaged = bytearray(pickled)
        damaged[position] = generator.integers(0, 256)
        try:
            load_checkpoint(rewrite(tmp_path / "damaged", bytes(damaged)))
        except ValueError as error:
            assert str(error).startswith("checkpoint must be") and str(error).isprintable()


def test_what_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    hostile = Call(os.mkdir, str(tmp_path / "trace"))
    for content in (b"text\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + bytes(100), pickle.dumps(hostile)):
        path.write_bytes(content)
        refuse(path)
    refuse(save(path, hostile, _use_new_zipfile_serialization=False))
    assert not (tmp_path / "trace").exists()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        refuse(path)
    with pytest.raises(ValueError, match="^latent_stats must be"):
        load_checkpoint(tmp_path / "nothing", "latent_stats")
