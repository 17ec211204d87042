"""Ways to spoil a file: as bytes, as text, as JSON or YAML, as safetensors. Every one is a function of a random generator.

Knows nothing about commands.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Damage = Callable[[Path, random.Random], str]
"""spoils a file and returns in words how"""

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "x", "\0",
    "a\nb", "../../etc/passwd", "/etc/passwd", "é\u202e\ud7ff", "x" * 5000, [], [None], [[[]]], {}, {"a": {}}, {"": None}, "nan",
    "2:4", "auto", "!!python/object/apply:os.system [ls]", "float8_e4m3fn", ["llama"], "${oc.env:HOME}",
)  # fmt: skip


def _bytes(change: Callable[[bytes, random.Random], bytes], words: str) -> Damage:
    def damage(path: Path, draw: random.Random) -> str:
        path.write_bytes(change(path.read_bytes(), draw))
        return words

    return damage


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(draw.choice([1, 1, 2, 8])):
        # Half of them near the start, where formats keep what they say of themselves.
        stop = len(changed) if draw.random() < 0.5 else min(len(changed), 400)
        changed[draw.randrange(stop)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut_out(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(max(1, len(data)))
    return data[:start] + data[start + draw.randint(1, 64) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.randbytes(draw.randint(1, 64)) + data[place:]


def _utf16(data: bytes, _: random.Random) -> bytes:
    return data.decode("latin-1").encode("utf-16")


BYTES: tuple[Damage, ...] = (
    _bytes(lambda data, draw: data[: draw.randrange(max(1, len(data)))], "truncated"),
    _bytes(_flip, "bits flipped"),
    _bytes(_flip, "bits flipped"),
    _bytes(_cut_out, "bytes missing"),
    _bytes(_insert, "bytes too many"),
    _bytes(lambda *_: b"", "empty"),
    _bytes(lambda _, draw: draw.randbytes(3000), "binary"),
    _bytes(lambda data, _: data + data, "twice"),
)
TEXT: tuple[Damage, ...] = (
    *BYTES,
    _bytes(_utf16, "UTF-16"),
    _bytes(lambda data, _: data + b"\xff\xfe", "Latin-1 at the end"),
    _bytes(lambda *_: b"a" * 300_000, "one huge line"),
    _bytes(lambda *_: b"[" * 200_000, "nested too deep"),
    _bytes(lambda *_: b"\n" * 1000, "only newlines"),
    _bytes(lambda data, _: b"\xef\xbb\xbf" + data, "byte order mark"),
)


def _places(values: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Return every container and key of a tree."""
    found = [] if found is None else found
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(items):
        found.append((values, key))
        _places(value, found)
    return found


def change_tree(values: Any, draw: random.Random) -> str:
    """Change one value of a tree, drop it, or add one; return in words what."""
    places = _places(values)
    if not places:
        return "left as it is"
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
        return f"{key} dropped"
    value = draw.choice(ODD_VALUES)
    holder[key] = value
    return f"{key} = {str(value)[:30]!r}"


def tree(path: Path, draw: random.Random) -> str:
    """Change some values of a JSON or YAML file, by its suffix."""
    load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    values = load(path.read_text(encoding="utf-8"))
    words = [change_tree(values, draw) for _ in range(draw.choice([1, 1, 1, 2, 4]))]
    path.write_text(dump(values), encoding="utf-8")
    return ", ".join(words)


def rows(path: Path, draw: random.Random) -> str:
    """Change values of some rows of a .jsonl file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    words = ""
    for _ in range(draw.choice([1, 3, 20])):
        place = draw.randrange(len(lines))
        try:
            values = json.loads(lines[place])
        except ValueError:
            continue
        words = change_tree(values, draw)
        lines[place] = json.dumps(values)
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"rows: {words}"


def header(path: Path, draw: random.Random) -> str:
    """Change the JSON in front of the tensors of a .safetensors file; its length then fits again, or not."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    values = json.loads(data[8 : 8 + size])
    words = change_tree(values, draw)
    text = json.dumps(values).encode()
    length = len(text) if draw.random() < 0.8 else draw.choice([0, size - 1, 2**40, 2**63])
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])
    return f"header: {words}"


def not_finite(path: Path, draw: random.Random) -> str:
    """Put a NaN or an infinity into one float32 of the tensors of a .safetensors file."""
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", bytes(data[:8]))[0]
    place = start + 4 * draw.randrange((len(data) - start) // 4)
    value = draw.choice([float("nan"), float("inf"), float("-inf")])
    data[place : place + 4] = struct.pack("<f", value)
    path.write_bytes(bytes(data))
    return f"a weight is {value}"


def _entries(change: Callable[[list[Path], random.Random], object], words: str) -> Damage:
    """Return a damage of a folder of folders; `change` gets them in order."""

    def damage(path: Path, draw: random.Random) -> str:
        change(sorted(path.iterdir()), draw)
        return words

    return damage


FOLDER: tuple[Damage, ...] = (
    _entries(lambda found, _: [shutil.rmtree(folder) for folder in found], "no class is left"),
    _entries(lambda found, _: [file.unlink() for file in found[0].iterdir()], "a class is empty"),
    _entries(lambda found, _: found[1].rename(found[1].with_name("purple")), "a class has another name"),
    _entries(lambda found, _: [shutil.rmtree(folder) for folder in found[1:]], "one class is left"),
    _entries(lambda found, _: (found[0] / "notes.txt").write_text("words"), "a text among the images"),
    _entries(lambda found, _: (found[0] / "words.png").write_text("words"), "a text called .png"),
    _entries(lambda found, _: (found[0].parent / "stray.png").touch(), "a file among the classes"),
    _entries(lambda found, _: (found[0] / "more.png").mkdir(), "a folder called .png"),
    _entries(lambda found, draw: (found[0] / "5.jpg").write_bytes(draw.randbytes(500)), "a binary called .jpg"),
    _entries(lambda found, _: (found[0] / "0.png").rename(found[0] / ".0.png"), "an image is hidden"),
    _entries(lambda found, _: [found[0].rename(found[0].with_name("train")), found[1].rename(found[1].with_name("test"))], "splits"),
)  # fmt: skip
