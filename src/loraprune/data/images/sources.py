"""From a name to labelled images: CLASS folders, a parquet or arrow file, a data set of the hub, or a benchmark's name.

Knows nothing about models. Images stay as they are stored until a row is asked for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from PIL import Image

from loraprune.data.files import OWN_NAMES, Columns, loaded
from loraprune.data.held import splits_of
from loraprune.data.images.benchmarks import BENCHMARKS, DRAW_SEED, JUDGED, TRAINED, VTAB_PREFIX, Named, find_benchmark
from loraprune.data.sources import HELD_OUT_SPLITS, is_saved, load_hub, load_saved, naming, split_tables
from loraprune.errors import DataError, nearest
from loraprune.runtime.held import held

SUFFIXES = (".parquet", ".arrow")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "webp", "jpg", "png"), ("label", "labels", "fine_label", "cls")
HELD_OUT_SHARE = 10
"""one image of a class in so many is held out where the source has no split for it"""

Stored: TypeAlias = Path | bytes
"""an image as a file stores it, or the bytes of one"""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images, each with the number of its class."""

    source: str
    split: str
    images: tuple[Stored, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    """names by number"""
    places: tuple[str, ...]
    """what an error message calls each image"""

    def take(self, chosen: Sequence[int], *, split: str) -> LabelledImages:
        """Return some of the images, as a split of another name."""
        return replace(
            self, split=split, images=tuple(self.images[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen),
            places=tuple(self.places[i] for i in chosen),
        )  # fmt: skip

    def with_classes(self, classes: Sequence[str]) -> LabelledImages:
        """Return the same images with classes in another order, or with more of them.

        Raises:
            DataError: if a class is not among them.
        """
        for label, name in enumerate(self.classes):
            if name not in classes and label in self.labels:
                known = f"{len(classes)} are known{nearest(name, classes)}"
                raise DataError(
                    f"{self.source}: the class {name!r} is not one of those that the model is trained for: {known}"
                )
        numbers = {name: number for number, name in enumerate(classes)}
        labels = tuple(numbers[self.classes[label]] for label in self.labels)
        return replace(self, labels=labels, classes=tuple(classes))


Splits: TypeAlias = dict[str, LabelledImages]
"""either `all`, or `train` and `held_out`"""


def load_images(
    data: str | None, held_out: str | None, *, seed: int, columns: Columns = OWN_NAMES
) -> tuple[LabelledImages | None, LabelledImages]:
    """Read images for training and images for evaluation, of the same classes; without `data` only the latter.

    Without `held_out` the images for evaluation are the test split of `data`, or a tenth of every class.

    Raises:
        DataError: if a name does not exist or has no labelled images, or the two share files or differ in classes.
    """
    if data is None:
        assert held_out is not None
        with naming("--data"):
            splits = _open(held_out, columns)
            return None, splits.get("held_out") or splits["all"]
    with naming("--data"):
        splits = _open(data, columns)
        if held_out is None:
            return _hold_out(splits["all"], seed=seed) if "all" in splits else (splits["train"], splits["held_out"])
    train = splits.get("train") or splits["all"]
    with naming("--eval"):
        others = _open(held_out, columns)
        evaluated = others.get("held_out") or others["all"]
        shared = _files(train) & _files(evaluated)
        if shared or (held_out == data and "held_out" not in splits):
            raise DataError(
                f"{held_out}: {min(shared, default='all of it')} is trained on as part of --data: name other images"
            )
        return train, evaluated.with_classes(train.classes)


def _files(images: LabelledImages) -> set[str]:
    return {str(each.resolve()) for each in images.images if isinstance(each, Path)}


def open_images(name: str, part: str, columns: Columns = OWN_NAMES) -> LabelledImages:
    """Read the part `train` or `held_out` of a source, or all of it where it has no parts.

    Raises:
        DataError: if a name leads nowhere or to no labelled images.
    """
    splits = _open(name, columns)
    return splits.get(part) or splits["all"]


def _hold_out(whole: LabelledImages, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Hold out a tenth of every class, at least one of two images."""
    draw, held = random.Random(seed), set[int]()
    for label in range(len(whole.classes)):
        members = [place for place, each in enumerate(whole.labels) if each == label]
        held |= set(draw.sample(members, len(members) // HELD_OUT_SHARE or int(len(members) > 1)))
    kept = [place for place in range(len(whole.images)) if place not in held]
    if not kept or not held:
        raise DataError(f"{whole.source}: {len(whole.images)} images are too few for training and evaluation")
    return whole.take(kept, split="train"), whole.take(sorted(held), split="held_out")


def _benchmark(name: str, named: Named) -> Splits:
    """Return the images of a benchmark by its protocol."""
    splits = _read(named.folder) if named.folder else _hub(named.benchmark.hub)
    train = splits.get("train") or splits["all"]
    chosen = random.Random(DRAW_SEED).sample(range(len(train.images)), min(TRAINED + JUDGED, len(train.images)))
    if named.final:
        if "held_out" not in splits:
            raise DataError(f"{name}: {train.source} has no test split: leave `:test` out")
        return {"train": train.take(chosen, split="train"), "held_out": splits["held_out"]}
    if len(chosen) < TRAINED + JUDGED:
        raise DataError(f"{name}: {train.source} has {len(chosen)} images, the protocol draws {TRAINED + JUDGED}")
    return {
        "train": train.take(chosen[:TRAINED], split="train"),
        "held_out": train.take(chosen[TRAINED:], split="held_out"),
    }


def _open(name: str, columns: Columns) -> Splits:
    if name in held().data:
        return _held(name, held().data[name], columns)
    named = find_benchmark(name)
    return _benchmark(name, named) if named else _read(name, columns)


def _held(name: str, rows: Any, columns: Columns) -> Splits:
    if isinstance(rows, list):
        raise DataError(f"{name}: a list holds texts; give images as a Dataset with the columns `image` and `label`")
    parts = split_tables(name, splits_of(rows)).items()
    return {part: _table(name, split, table, columns) for part, (split, table) in parts}


def _read(name: str, columns: Columns = OWN_NAMES) -> Splits:
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):
        if is_saved(path):
            return {part: _table(name, split, table, columns) for part, (split, table) in load_saved(path).items()}
        if columns and path.is_dir():
            raise DataError(f"{path}: a folder of classes has no columns: leave --columns out")
        return _folder(path) if path.is_dir() else {"all": _file(path, columns)}
    if (
        name.startswith(VTAB_PREFIX)
        or path.suffix.lower() in SUFFIXES
        or os.sep in name[:1] + name[-1:]
        or name[:1] in ".~"
    ):
        raise DataError(f"{name!r}: no such file, folder or benchmark{nearest(name, BENCHMARKS)}: check the name")
    return _hub(name, columns)


def _folder(path: Path) -> Splits:
    """Read CLASS folders, or folders of them called train and test."""
    entries = {entry.name.lower(): entry for entry in _visible(path)}
    if not entries:
        raise DataError(f"{path}: the folder is empty: give one with a folder of images for every class")
    if "train" in entries:
        held_out = next((split for split in HELD_OUT_SPLITS if split in entries), None)
        if held_out is None:
            return {"all": _classes(entries["train"], "all")}
        if entries["train"].samefile(entries[held_out]):
            raise DataError(f"{path}: {held_out} is a link to train, which is trained on: give other images")
        train = _classes(entries["train"], "train")
        return {"train": train, "held_out": _classes(entries[held_out], held_out, classes=train.classes)}
    return {"all": _classes(path, "all")}


def _classes(path: Path, split: str, classes: tuple[str, ...] | None = None) -> LabelledImages:
    folders = list(_visible(path))
    if stray := next((entry for entry in folders if not entry.is_dir()), None):
        raise DataError(
            f"{stray}: not in the folder of a class: store images as CLASS/NAME.jpg, or name a {SUFFIXES[0]} file"
        )
    names = classes or tuple(folder.name for folder in folders)
    if odd := next((folder for folder in folders if folder.name not in names), None):
        raise DataError(f"{odd}: no class of the training images has this name{nearest(odd.name, names)}")
    files, labels = [], []
    known = set(Image.registered_extensions())
    for folder in folders:
        found = list(_visible(folder))
        if not found:
            raise DataError(f"{folder}: the folder of this class is empty: add images or remove it")
        if other := next((file for file in found if file.suffix.lower() not in known), None):
            raise DataError(f"{other}: not an image by its suffix: move it out")
        files += found
        labels += [names.index(folder.name)] * len(found)
    return LabelledImages(str(path), split, tuple(files), tuple(labels), names, tuple(str(file) for file in files))


def _visible(path: Path) -> Iterator[Path]:
    try:
        yield from sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check its permissions") from None


def _file(path: Path, columns: Columns) -> LabelledImages:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path}: no file of labelled images: give a folder of classes, or one of {', '.join(SUFFIXES)}"
        )
    if path.suffix.lower() == ".parquet":
        with loaded(path, "parquet", keep_in_memory=True) as rows:
            return _table(str(path), "all", rows, columns)
    try:
        table = datasets.Dataset.from_file(str(path))
    except Exception as error:  # pyarrow and datasets share no base class
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}): write it again") from None
    return _table(str(path), "all", table, columns)


def _hub(name: str, columns: Columns = OWN_NAMES) -> Splits:
    return {part: _table(name, split, table, columns) for part, (split, table) in load_hub(name).items()}


def _stored(place: str, image: Mapping[str, Any] | None) -> Stored:
    """Return the bytes or the path of an image in a table."""
    if image is None or not (image["bytes"] or image["path"]):
        raise DataError(f"{place}: the image is missing, null or empty: correct or remove the row")
    return image["bytes"] or Path(image["path"])


def _table(name: str, split: str, table: datasets.Dataset, columns: Columns) -> LabelledImages:
    """Read the image and the label column of a table."""
    image, label = (
        next((c for c in ((columns[role],) if role in columns else known) if c in table.column_names), None)
        for role, known in (("image", IMAGE_COLUMNS), ("label", LABEL_COLUMNS))
    )
    if image is None or label is None:
        missing = "image" if image is None else "label"
        raise DataError(
            f"{name}: no column {columns.get(missing, missing)!r} among {', '.join(table.column_names)}: rename the one that holds it, "
            f"or name it, as in --columns {missing}=COLUMN"
        )
    table = table.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    values: list[Any] = table[label][:]
    if bad := [
        place for place, each in enumerate(values) if type(each) is not type(values[0]) or type(each) not in (int, str)
    ]:
        raise DataError(
            f"{name}, row {bad[0] + 1}: the label {values[bad[0]]!r} is not a name or whole number like the others"
        )
    named = getattr(table.features[label], "names", None)
    numbers = {value: number for number, value in enumerate(range(len(named)) if named else sorted(set(values)))}
    if not named and {-1, 0} <= numbers.keys():
        raise DataError(
            f"{name}, row {values.index(-1) + 1}: the label is -1, as images without a label have, in {values.count(-1)} of {len(values)} "
            "rows: remove them, or, if it is a class, name the classes in words"
        )
    if odd := [place for place, each in enumerate(values) if each not in numbers]:
        raise DataError(f"{name}, row {odd[0] + 1}: the label {values[odd[0]]} is none of the {len(numbers)} classes")
    stored = [_stored(f"{name}, row {place}", row) for place, row in enumerate(table[image], start=1)]
    return LabelledImages(
        name, split, tuple(stored), tuple(numbers[each] for each in values), tuple(named or map(str, numbers)),
        tuple(f"{name}, row {place + 1}" for place in range(len(values))),
    )  # fmt: skip
