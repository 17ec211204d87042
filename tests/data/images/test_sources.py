"""Labelled images from every kind of place, and what is said of a wrong one."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from loraprune.data.images import LabelledImages, check_images, load_images, sources
from loraprune.data.images.benchmarks import BENCHMARKS, find_benchmark
from loraprune.data.images.rows import decode
from loraprune.errors import DataError
from tests.data.images.conftest import CLASSES, write_images


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "png")
    return file.getvalue()


def of_bytes(count: int, classes: int = 4) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {c}" for c in range(classes)])}
    )
    rows = {
        "image": [{"bytes": png(i % 256), "path": None} for i in range(count)],
        "label": [i % classes for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def load(
    data: str | Path, held_out: str | Path | None = None, *, seed: int = 0
) -> tuple[LabelledImages, LabelledImages]:
    train, judged = load_images(str(data), str(held_out) if held_out else None, seed=seed)
    assert train is not None
    return train, judged


def test_a_tenth_of_every_class_is_held_out_and_the_seed_says_which(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", each=20)
    train, judged = load(folder)
    assert train.classes == CLASSES
    assert Counter(judged.labels) == {0: 2, 1: 2, 2: 2}
    assert not set(train.images) & set(judged.images)
    assert len(train.images) + len(judged.images) == 60
    assert load(folder)[1] == judged
    assert load(folder, seed=1)[1].images != judged.images
    assert all(
        Path(str(image)).parent.name == CLASSES[label] for image, label in zip(train.images, train.labels, strict=True)
    )


def test_folders_called_train_and_test_are_the_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", each=3)
    write_images(tmp_path / "data" / "test", each=2, classes=CLASSES[:2])
    train, judged = load(tmp_path / "data")
    assert (len(train.images), len(judged.images)) == (9, 4)
    assert judged.classes == train.classes
    assert set(judged.labels) == {0, 1}


def test_held_out_images_that_are_the_training_images_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", each=3)
    (tmp_path / "data" / "test").symlink_to(tmp_path / "data" / "train")
    with pytest.raises(DataError, match="test is a link to train, which is trained on"):
        load(tmp_path / "data")
    (tmp_path / "data" / "test").unlink()
    (tmp_path / "copy").symlink_to(tmp_path / "data" / "train")
    with pytest.raises(DataError, match="trained on as part of --data: name other images"):
        load(tmp_path / "data" / "train", tmp_path / "copy")
    write_images(tmp_path / "others", each=2, seed=1)
    assert len(load(tmp_path / "data" / "train", tmp_path / "others")[1].images) == 6


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_file_gives_the_same_pixels_and_the_names_of_its_classes(tmp_path: Path, suffix: str) -> None:
    table = of_bytes(40)
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(tmp_path / "disk")
        path = next((tmp_path / "disk").glob("*.arrow"))
    train, judged = load(path)
    assert train.classes == ("class 0", "class 1", "class 2", "class 3")
    assert (len(train.images), len(judged.images)) == (36, 4)
    shades = {decode(image, "").getpixel((0, 0))[0] for image in (*train.images, *judged.images)}  # type: ignore[index]
    assert shades == set(range(40))


def test_labels_may_be_words_or_numbers_without_names(tmp_path: Path) -> None:
    images = [{"bytes": png(), "path": None} for _ in range(4)]
    for labels, classes in ((["cat", "ant", "cat", "ant"], ("ant", "cat")), ([7, 3, 7, 3], ("3", "7"))):
        path = tmp_path / f"{classes[0]}.parquet"
        datasets.Dataset.from_dict({"img": images, "label": labels}).to_parquet(path)
        train, judged = load(path)
        assert train.classes == classes
        assert {*train.labels, *judged.labels} == {0, 1}


def test_the_label_of_images_without_one_is_no_class(tmp_path: Path) -> None:
    images = [{"bytes": png(), "path": None} for _ in range(4)]
    datasets.Dataset.from_dict({"image": images, "label": [0, -1, 1, -1]}).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(DataError, match="row 2: the label is -1, as images without a label have, in 2 of 4 rows"):
        load(tmp_path / "some.parquet")
    datasets.Dataset.from_dict({"image": images, "label": [1, -1, 1, -1]}).to_parquet(tmp_path / "signs.parquet")
    assert load(tmp_path / "signs.parquet")[0].classes == ("-1", "1")


def test_all_nineteen_tasks_and_the_birds_have_a_name() -> None:
    assert sum(name.startswith("vtab-") for name in BENCHMARKS) == 19
    assert "cub-200" in BENCHMARKS
    assert len({benchmark.hub for benchmark in BENCHMARKS.values()}) == 20
    assert find_benchmark("vtab-pets:elsewhere") is None


def test_a_benchmark_draws_800_and_200_images_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = of_bytes(1500), of_bytes(30)
    asked = []

    def hub(name: str) -> dict[str, tuple[str, datasets.Dataset]]:
        asked.append(name)
        return {"train": ("train", train), "held_out": ("test", test)}

    monkeypatch.setattr(sources, "load_hub", hub)
    trained, judged = load("vtab-dtd")
    assert asked == ["clip-benchmark/wds_vtab-dtd"]
    assert (len(trained.images), len(judged.images)) == (800, 200)
    assert not set(trained.places) & set(judged.places)
    assert load("vtab-dtd", seed=1)[0].places == trained.places
    final, tested = load("vtab-dtd:test")
    assert set(final.places) == {*trained.places, *judged.places}
    assert (len(tested.images), tested.split) == (30, "test")
    train.to_parquet(tmp_path / "local.parquet")
    local, _ = load(f"cub-200={tmp_path / 'local.parquet'}")
    assert len(local.images) == 800
    with pytest.raises(DataError, match="no test split"):
        load(f"cub-200:test={tmp_path / 'local.parquet'}")
    of_bytes(99).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(DataError, match="has 99 images, the protocol draws 1000"):
        load(f"cub-200={tmp_path / 'few.parquet'}")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "I;16", "RGB"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16", "LA") else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 32768, dtype=np.uint16)).save(path)
    else:
        Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(path)
    image = decode(path, "place")
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert image.getpixel((1, 1)) == ((128,) * 3 if mode == "I;16" else (255,) * 3)


def spoil(folder: Path, what: str) -> None:
    """Spoil a good folder of images in one way."""
    if what == "broken":
        whole = (folder / "red" / "3.png").read_bytes()
        (folder / "red" / "3.png").write_bytes(whole[: len(whole) // 2])
    elif what == "text":
        (folder / "red" / "3.png").write_text("no picture")
    elif what == "empty class":
        (folder / "white").mkdir()
    elif what == "stray":
        (folder / "1.png").write_bytes(png())
    elif what == "suffix":
        (folder / "red" / "notes.txt").write_text("a note")


def check_both(folder: Path) -> None:
    """Read a folder and decode all of its images."""
    for images in load(folder):
        check_images(images)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("broken", r"red/3\.png: the image is broken"),
        ("text", r"red/3\.png: not an image that Pillow can read"),
        ("empty class", r"white: the folder of this class is empty"),
        ("stray", r"1\.png: not in the folder of a class"),
        ("suffix", r"notes\.txt: not an image by its suffix"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_with_its_place(tmp_path: Path, what: str, message: str) -> None:
    folder = write_images(tmp_path / "data", each=4)
    check_both(folder)
    spoil(folder, what)
    with pytest.raises(DataError, match=message):
        check_both(folder)


def test_names_that_lead_nowhere_or_to_something_else(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", each=2)
    (tmp_path / "empty").mkdir()
    datasets.Dataset.from_dict({"picture": ["x"], "label": [0]}).to_parquet(tmp_path / "odd.parquet")
    other = write_images(tmp_path / "other", each=1, classes=("violet",))
    for data, held_out, message in (
        (tmp_path / "nothing.parquet", None, "no such file, folder or benchmark"),
        ("vtab-dtdd", None, "did you mean 'vtab-dtd'"),
        (tmp_path / "empty", None, "the folder is empty"),
        (tmp_path / "odd.parquet", None, "no column 'image' among picture, label"),
        (folder / "red" / "0.png", None, "no file of labelled images"),
        (folder, folder, "is trained on as part of --data"),
        (folder, other, "the class 'violet' is not one of those"),
    ):
        with pytest.raises(DataError, match=message):
            load(data, held_out)
