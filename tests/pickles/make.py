"""Makes the pickles that tests/pickles.rs follows: good ones by torch and numpy, bad ones by Python's own pickle.

Run by hand with torch 2.15.0 and numpy 2.4.6 (Python 3.11): python make.py. The outputs are committed; the tests need
no Python. Nothing bad here does harm: every command is `true`.
"""
import argparse, collections, io, os, pickle, struct, sys, tarfile, zipfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
GOOD, BAD = HERE / "good", HERE / "bad"


def state():
    torch.manual_seed(7)
    layer = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    odd = torch.arange(24.0).reshape(4, 6)
    return {
        "model": layer.state_dict(),
        "half": torch.ones(2, 3, dtype=torch.float16),
        "bf16": torch.ones(7, dtype=torch.bfloat16),
        "ints": torch.arange(6, dtype=torch.int32),
        "mask": torch.tensor([True, False]),
        "transposed": odd.t(),
        "part": odd[1:3, 2:5],
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "empty": torch.empty(0, 4),
        "steps": 3,
        "rate": 0.5,
        "names": ["a", "b"],
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
    }


def good():
    torch.save(state(), GOOD / "zip.pth")
    torch.save(state(), GOOD / "legacy.pth", _use_new_zipfile_serialization=False)
    for protocol in (1, 3, 4, 5):
        torch.save(state(), GOOD / f"zip-protocol-{protocol}.pt", pickle_protocol=protocol)
    torch.save(state(), GOOD / "legacy-protocol-4.pt", _use_new_zipfile_serialization=False, pickle_protocol=4)
    torch.save({"w": torch.ones(3, 4).to(torch.float8_e4m3fn), "u": torch.ones(5, dtype=torch.uint16)}, GOOD / "float8.pt")
    layer = torch.nn.Linear(4, 4)
    adam = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    adam.step()
    torch.save({"model": layer.state_dict(), "optimizer": adam.state_dict()}, GOOD / "optimizer.ckpt")
    arrays = {"a": np.arange(6.0).reshape(2, 3), "n": np.float64(3.5), "i": np.int64(4)}
    torch.save({"w": torch.ones(2), "stats": arrays}, GOOD / "numpy.pt")
    for protocol in range(6):
        (GOOD / f"arrays-protocol-{protocol}.pkl").write_bytes(pickle.dumps(arrays, protocol))
    np.savez(GOOD / "arrays.npz", a=arrays["a"], b=np.arange(4))
    np.save(GOOD / "array.npy", arrays["a"])
    np.savez_compressed(GOOD / "arrays-compressed.npz", **arrays)
    hidden(GOOD, {"a": [1, 2.5, "b"]})


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Inside:
    """Pickles as attributes of an object of a class that nobody allowed."""

    def __init__(self):
        self.tensor = 1


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def reduced(imported):
    return imported + short("true") + b"\x85R."


def archive(name, members, comment=b"", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(BAD / name, "w", compression) as out:
        for member, content in members:
            info = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
            info.compress_type = compression
            out.writestr(info, content)
        out.comment = comment


def tar(name, members):
    with tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as out:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


# Pickles in archives that torch does not write, or not any more: `last` is what they hold at their end.
def hidden(folder, last):
    def packed(name, members, compression):
        with zipfile.ZipFile(folder / name, "w") as out:
            for member, content in members:
                info = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
                info.compress_type = compression
                out.writestr(info, content)

    text = ("readme.txt", b"numbers\n" * 9)
    for protocol in (0, 4):
        members = [text, ("weights/object.pkl", pickle.dumps(last, protocol))]
        packed(f"stored-{protocol}.zip", members, zipfile.ZIP_STORED)
        packed(f"deflated-{protocol}.zip", members, zipfile.ZIP_DEFLATED)
    packed("unnamed.zip", [text, ("weights", pickle.dumps(last, 4))], zipfile.ZIP_DEFLATED)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as out:
        out.writestr(zipfile.ZipInfo("object.pkl", (1980, 1, 1, 0, 0, 0)), pickle.dumps(last, 4))
    packed("inner.zip", [("more.zip", inner.getvalue())], zipfile.ZIP_STORED)
    dump = lambda value: pickle.dumps(value, 2)
    numbers = lambda count, width: struct.pack("<q", count) + bytes(count * width)
    storages = dump(3) + dump(("0", "cpu", 1)) + numbers(5, 4) + dump(("1", "cpu", 1)) + numbers(3, 8) + dump(last) + numbers(1, 1)
    tensor = lambda key, *sides: dump(key) + struct.pack("<q", len(sides)) + bytes(16 * len(sides) + 8)
    tensors = dump(2) + tensor(("0", "0"), 5) + tensor(("1", "1"), 3, 1) + (dump(last) + tensor(0)[4:] if folder == BAD else b"")
    tar(folder / "storages.tar", [("sys_info", dump({})), ("pickle", dump({})), ("storages", storages), ("tensors", dump(0))])
    tar(folder / "tensors.tar", [("sys_info", dump({})), ("pickle", dump({})), ("storages", dump(0)), ("tensors", tensors)])
    tar(folder / "object.tar", [("sys_info", dump({})), ("pickle", dump(last)), ("storages", dump(0)), ("tensors", dump(0))])


# Where larder stops following: what lies behind must not pass for harmless.
def unfollowed(last):
    content, name = pickle.dumps(last), "object.pkl"
    for _ in range(7):
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as out:
            out.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
        content, name = outer.getvalue(), "more.zip"
    (BAD / "deep.zip").write_bytes(content)
    archive("behind-many.zip", [("many.pkl", pickle.dumps(1) * (1 << 16) + pickle.dumps(last))], compression=zipfile.ZIP_DEFLATED)


def bad():
    for protocol in range(6):
        (BAD / f"system-protocol-{protocol}.bin").write_bytes(pickle.dumps(Call(os.system, "true"), protocol))
    torch.save({"w": torch.ones(2), "x": Call(os.system, "true")}, BAD / "zip.pth")
    torch.save({"w": torch.ones(2), "x": Call(eval, "1")}, BAD / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), BAD / "whole-module.pt")
    torch.save({"args": argparse.Namespace(a=1)}, BAD / "namespace.pt")
    nested = pickle.dumps(Call(os.system, "true"))
    write = lambda name, data: (BAD / name).write_bytes(data)
    write("load-from-bytes.pkl", pickle.dumps(Call(torch.storage._load_from_bytes, nested)))
    write("loads.pkl", pickle.dumps(Call(pickle.loads, nested)))
    write("instance.pkl", pickle.dumps(Inside()))
    start = b"\x80\x04"
    builtins = b"cbuiltins\n__import__\nX\x08\0\0\0builtins\x85R"
    write("getattr.pkl", b"\x80\x03cbuiltins\ngetattr\n" + builtins + b"X\x04\0\0\0eval\x86RX\x01\0\0\x001\x85R.")
    # The name comes out of the memo, where another text was put over it.
    write("memo.pkl", start + short("collections") + b"\x940" + short("os") + b"q\x000h\x00" + reduced(short("system") + b"\x93"))
    write("dup-and-pop.pkl", start + short("os") + b"2" + b"0" + reduced(short("system") + b"\x93"))
    write("dotted.pkl", start + reduced(short("torch") + short("_utils.sys.modules") + b"\x93"))
    write("bytes-as-name.pkl", start + b"C\x02os" + reduced(short("system") + b"\x93"))
    write("computed-name.pkl", start + b"(lp0\n0" + short("os") + b"h\x00" + b"\x93.")
    write("escaped.pkl", b"\x80\x04V\\u006fs\nV\\U00000073ystem\n\x93" + short("true") + b"\x85R.")
    write("string.pkl", b"\x80\x04S'os'\nS'system'\n\x93" + short("true") + b"\x85R.")
    write("string-escape.pkl", b"\x80\x04S'\\x6fs'\nS'system'\n\x93" + short("true") + b"\x85R.")
    write("inst.pkl", b"\x80\x02(S'true'\nios\nsystem\n.")
    write("obj.pkl", b"\x80\x02(cos\nsystem\nS'true'\no.")
    write("newobj-ex.pkl", start + b"csubprocess\nPopen\n" + short("true") + b"\x85}\x92.")
    write("extension.pkl", b"\x80\x02\x82\x07)R.")
    write("changed-class.pkl", start + b"ccollections\nOrderedDict\n}" + short("x") + b"K\x01sb.")
    write("call-of-a-result.pkl", start + b"ccollections\nOrderedDict\n)R)R.")
    write("unknown-instruction.pkl", b"\x80\x05K\x01\xfe.")
    write("protocol-9.pkl", b"\x80\x04\x80\x09N.")
    write("framed.pkl", b"\x80\x04\x95" + struct.pack("<Q", 12) + b"cos\nsystem\nN.")
    write("after-harmless.pkl", pickle.dumps(1) + nested)
    write("broken-after.pkl", b"\x80\x02cos\nsystem\nR")
    plain = io.BytesIO()
    torch.save({"w": torch.ones(2)}, plain)
    with zipfile.ZipFile(plain) as made:
        members = [(name, made.read(name)) for name in made.namelist()]
    folder = members[0][0].split("/")[0]
    archive("nested.pth", members + [(f"{folder}/extra", (BAD / "zip.pth").read_bytes())])
    archive("second-pickle.pth", members + [(f"{folder}/constants.pkl", nested)])
    archive("hidden-pickle.pth", members + [(f"{folder}/notes.txt", nested)])
    archive("compressed.pth", members, compression=zipfile.ZIP_DEFLATED)
    archive("twice.pth", [(f"{folder}/data.pkl", pickle.dumps({}))] + members)
    archive("two-ends.pth", members, comment=b"PK\x05\x06" + b"\0" * 18 + b"x")
    hidden(BAD, Call(os.system, "true"))
    unfollowed(Call(os.system, "true"))
    np.savez(BAD / "objects.npz", a=np.array([Call(os.system, "true")], dtype=object))
    np.savez_compressed(BAD / "objects-compressed.npz", a=np.zeros(9), b=np.array([Call(os.system, "true")], dtype=object))
    np.save(BAD / "objects.npy", np.array([Call(os.system, "true")], dtype=object), allow_pickle=True)


if __name__ == "__main__":
    for folder in (GOOD, BAD):
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
    good()
    bad()
    print(sum(file.stat().st_size for file in HERE.rglob("*.*")), "bytes")
