"""Folders of images: layouts, nasty files, splits that keep groups together, the cache."""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_git.data import (
    default_image_size,
    image_files,
    image_folder,
    load,
    load_class_folder,
    load_image_folder,
    read_image,
    stratified_group_split,
)
from keras_git.errors import InputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")


def draw(path: Path, size=(20, 24), value=None, **options) -> None:
    """A noise image, or one of a single value, of size (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        rng = np.random.default_rng(list(str(path.name).encode()))
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    else:
        pixels = np.full((*size, 3), value, np.uint8)
    Image.fromarray(pixels).save(path, **options)


def fill(root: Path, counts: dict[str, int], suffix: str = "png", **options) -> Path:
    for name, count in counts.items():
        for i in range(count):
            draw(root / name / f"{i:02d}.{suffix}", **options)
    return root


# ------------------------------------------------------------------------------------- layouts


def test_class_folders(tmp_path):
    fill(tmp_path, {"cat": 10, "Dog": 5, "emu": 1, "fox": 2})
    (tmp_path / "readme.txt").write_text("not a class")
    (tmp_path / ".git").mkdir()
    draw(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    found = load_image_folder(tmp_path, image_size=(8, 12), seed=3)
    train, test = found.splits.train, found.splits.test
    assert found.class_names == ("Dog", "cat", "emu", "fox")  # sorted(), as Keras sorts them
    assert train.image_shape == (8, 12, 3) and found.splits.validation is None
    assert train.class_counts.tolist() == [4, 8, 1, 1]
    assert test.class_counts.tolist() == [1, 2, 0, 1]
    assert found.unreadable == ()
    for split, dataset in (("train", train), ("test", test)):
        for file, image, label in zip(
            found.files[split], dataset.images, dataset.labels, strict=True
        ):
            assert file.split("/")[0] == found.class_names[label]
            np.testing.assert_array_equal(image, read_image(tmp_path / file, size=(8, 12)))
    again = load_image_folder(tmp_path, image_size=(8, 12), seed=3)
    assert again.files == found.files
    assert any(
        load_image_folder(tmp_path, image_size=8, seed=s).files != found.files for s in range(3)
    )


@pytest.mark.parametrize("validation", ["val", "validation", "Valid"])
def test_given_splits(tmp_path, validation):
    fill(tmp_path / "train", {"a": 3, "b": 2})
    fill(tmp_path / validation, {"a": 2, "b": 1})
    fill(tmp_path / "test", {"b": 2})  # a class may lack test images
    found = load_image_folder(tmp_path, image_size=8)
    assert found.splits.train.class_counts.tolist() == [3, 2]
    assert found.splits.validation.class_counts.tolist() == [2, 1]
    assert found.splits.test.class_counts.tolist() == [0, 2]
    assert found.files["validation"][0] == f"{validation}/a/00.png"


def test_missing_splits_are_made_from_the_training_images(tmp_path):
    fill(tmp_path / "train", {"a": 20, "b": 10})
    fill(tmp_path / "val", {"a": 2, "b": 2})
    found = load_image_folder(tmp_path, image_size=8, validation_share=0.1)
    assert found.splits.test.class_counts.tolist() == [4, 2]
    assert found.splits.validation.class_counts.tolist() == [2, 2]
    fill(tmp_path / "all", {"a": 20, "b": 10, "train": 10})  # a class called train
    found = load_image_folder(tmp_path / "all", image_size=8, validation_share=0.1)
    assert found.splits.train.class_counts.tolist() == [14, 7, 7]
    assert found.splits.validation.class_counts.tolist() == [2, 1, 1]
    files = [file for part in found.files.values() for file in part]
    assert len(set(files)) == len(files) == 40


def test_deeper_folders_and_all_images_as_one_dataset(tmp_path):
    fill(tmp_path, {"a/images": 2, "b/x/y": 3})
    dataset, unreadable = load_class_folder(tmp_path, image_size=8)
    assert dataset.class_counts.tolist() == [2, 3] and unreadable == ()
    found = load_image_folder(tmp_path, image_size=8, max_per_class=2)
    assert len(found.splits.train) + len(found.splits.test) == 4


def test_a_folder_is_a_dataset_name(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    splits = load(str(tmp_path), cache_dir=tmp_path / "cache", image_size=8, test_share=0.4)
    assert splits.test.class_counts.tolist() == [2, 2]
    assert splits.train.name == tmp_path.name


def test_class_names_are_taken_as_they_are(tmp_path):
    names = ["two words", 'it\'s "quoted"', "<b>bold</b>".replace("/", "\u2215"), "猫", "ñandú"]
    fill(tmp_path, dict.fromkeys(names, 2))
    assert load_image_folder(tmp_path, image_size=8).class_names == tuple(sorted(names))


# -------------------------------------------------------------------------------- nasty files


def test_unreadable_files_are_listed_and_skipped(tmp_path):
    fill(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a/text.jpg").write_text("not an image")
    (tmp_path / "a/empty.png").touch()
    draw(tmp_path / "b/cut.jpg", size=(64, 64))
    (tmp_path / "b/cut.jpg").write_bytes((tmp_path / "b/cut.jpg").read_bytes()[:1500])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "b/float.tiff")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b/program.eps")
    found = load_image_folder(tmp_path, image_size=8)
    reasons = dict(found.unreadable)
    assert sorted(reasons) == [
        "a/empty.png", "a/text.jpg", "b/cut.jpg", "b/float.tiff", "b/program.eps",
    ]  # fmt: skip
    assert "0 bytes" in reasons["a/empty.png"] and "truncated" in reasons["b/cut.jpg"]
    assert "format" in reasons["a/text.jpg"] and "floating" in reasons["b/float.tiff"]
    assert len(found.splits.train) + len(found.splits.test) == 8
    with pytest.raises(InputError, match="5 files cannot be read, first 'a/empty.png'"):
        load_image_folder(tmp_path, image_size=8, strict=True)


@posix
def test_links_loops_and_pipes(tmp_path):
    fill(tmp_path / "data", {"a": 4, "b": 4})
    fill(tmp_path / "elsewhere", {"c": 3})
    data = tmp_path / "data"
    (data / "c").symlink_to(tmp_path / "elsewhere/c")  # a class elsewhere is fine
    (data / "a/up").symlink_to(data)
    (data / "a/itself").symlink_to(data / "a")
    (data / "a/x.png").symlink_to(data / "a/x.png")
    (data / "b/gone.png").symlink_to(data / "nowhere.png")
    (data / "loop").symlink_to(data)
    os.mkfifo(data / "b/pipe.png")
    found = load_image_folder(data, image_size=8)
    assert found.class_names == ("a", "b", "c")
    assert sum(map(len, found.files.values())) == 11
    assert sorted(path for path, _ in found.unreadable) == [
        "a/itself", "a/up", "a/x.png", "b/gone.png", "b/pipe.png", "loop",
    ]  # fmt: skip


@posix
@pytest.mark.parametrize(
    ("link", "target", "names"),
    [
        ("test", "train", ("train/a", "test/a")),
        ("test/a", "../train/a", ("train/a", "test/a")),
        ("test/a/x", "../../train/a", ("train/a", "test/a/x")),
        ("test/a/x.png", "../../train/a/01.png", ("train/a/01.png", "test/a/x.png")),
        ("train/c", "b", ("train/b", "train/c")),
        ("train/b/x.png", "../a/00.png", ("train/a/00.png", "train/b/x.png")),
        ("train/a/all", "../../test", ("train/a/all/a", "test/a")),
    ],
)
def test_no_image_is_in_two_splits_or_classes(tmp_path, link, target, names):
    """Links would make training images of test images, or give an image two labels."""
    fill(tmp_path / "train", {"a": 3, "b": 3})
    if link != "test":
        (tmp_path / "test/b").mkdir(parents=True)
        draw(tmp_path / "test/b/00.png")
        if link.startswith("test/a/") or target.endswith("test"):
            draw(tmp_path / "test/a/02.png")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InputError, match="the same through a link") as raised:
        load_image_folder(tmp_path, image_size=8)
    assert all(repr(name) in str(raised.value) for name in names)
    assert "\n" not in str(raised.value)


@posix
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_with_two_names_in_its_class_is_read_once(tmp_path, link):
    """Else one of them could become a training and the other a test image."""
    fill(tmp_path, {"a": 5, "b": 5})
    for i in range(5):
        link(tmp_path / f"a/{i:02d}.png", tmp_path / f"a/copy{i}.png")
    found = load_image_folder(tmp_path, image_size=8)
    assert found.splits.train.class_counts.tolist() == [4, 4]
    assert found.unreadable[0] == ("a/copy0.png", "the same file as 'a/00.png', through a link")
    assert len(found.unreadable) == 5
    with pytest.raises(InputError, match="the same through a link"):
        link(tmp_path / "a/00.png", tmp_path / "b/other.png")
        load_class_folder(tmp_path, image_size=8)


def test_text_beside_images_is_no_damage(tmp_path):
    fill(tmp_path, {"a/images": 4, "b/images": 4})
    for name in ("a/a_boxes.txt", "b/b_boxes.TXT", "b/list.csv", "a/x.json", "a/x.xml", "a/x.md"):
        (tmp_path / name).write_text("text")
    found = load_image_folder(tmp_path, image_size=8, strict=True)
    assert found.unreadable == () and len(found.splits.train) == 6


def test_an_unpacked_tiny_imagenet(tmp_path):
    """Its validation images lie in one folder, their classes in a text file."""
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n01443537", "n01629819"):
        fill(root / "train", {f"{name}/images": 5}, suffix="JPEG")
        (root / f"train/{name}/{name}_boxes.txt").write_text("n0_0.JPEG\t0\t10\t63\t58\n")
    for part in ("val", "test"):
        fill(root / part, {"images": 2}, suffix="JPEG")
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn01443537\t0\t32\t44\t62\n")
    with pytest.raises(InputError, match="has only the folder 'images'.* give .*/train as"):
        load_image_folder(root, image_size=8)
    found = load_image_folder(root / "train", image_size=8, strict=True, validation_share=0.2)
    assert found.class_names == ("n01443537", "n01629819")
    assert found.splits.train.class_counts.tolist() == [3, 3]


def test_the_reason_why_a_class_cannot_be_read_is_said(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 3, "b": 3})
    entries = image_folder._entries

    def closed(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return entries(folder)

    monkeypatch.setattr(image_folder, "_entries", closed)
    with pytest.raises(InputError, match="class 'b' holds no file.*'b': Permission denied"):
        load_image_folder(tmp_path, image_size=8)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 3, "b": 3})
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    draw(tmp_path / "a/huge.png", size=(40, 40), value=0)
    found = load_image_folder(tmp_path, image_size=8)
    assert found.unreadable[0][0] == "a/huge.png" and "40 x 40 pixels" in found.unreadable[0][1]
    monkeypatch.setattr(image_files, "_LARGE_PIXELS", 100)  # one at a time
    assert len(load_image_folder(tmp_path, image_size=8).splits.train) == 4


def test_a_bomb_of_compression(tmp_path):
    """A small file whose header says 60,000 x 60,000."""
    fill(tmp_path, {"a": 2, "b": 2})
    draw(tmp_path / "a/bomb.png")
    content = bytearray((tmp_path / "a/bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a/bomb.png").write_bytes(content)
    ((path, reason),) = load_image_folder(tmp_path, image_size=8).unreadable
    assert path == "a/bomb.png" and "pixels" in reason


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: None, "no sub-folders"),
        (lambda d: draw(d / "x.png"), "no sub-folders"),
        (lambda d: fill(d, {"a": 3}), "single class, 'a'"),
        (lambda d: (fill(d, {"a": 3}), (d / "b").mkdir()), "class 'b' is empty"),
        (lambda d: fill(d, {"Cat": 1, "cat": 1}), "differ only in case"),
        (lambda d: fill(d, {"e\u0301": 1, "\u00e9": 1}), "encoding of letters"),
        (lambda d: fill(d, {"a": 1, "b": 1}), "no test images"),
        (lambda d: fill(d, {"train/a": 2, "train/b": 2, "test/c": 2, "test/a": 1}), "class 'c'"),
        (lambda d: fill(d, {"train/a": 2, "train/b": 2, "other/a": 2}), "'other'"),
        (lambda d: fill(d, {"train/a": 2, "val/a": 2, "valid/a": 1}), "both 'val' and 'valid'"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(tmp_path, make, reason):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(InputError, match=reason) as raised:
        load_image_folder(root, image_size=8)
    assert "\n" not in str(raised.value)


def test_folders_of_text(tmp_path):
    for name in ("a/1.txt", "a/2.txt", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(InputError, match="class 'a' has no images, only 2 files of text"):
        load_image_folder(tmp_path)
    (tmp_path / "a/1.png").write_text("text")
    with pytest.raises(InputError, match="none of 2 files is a readable image; first 'a/1.png'"):
        load_image_folder(tmp_path)
    (tmp_path / "a/1.png").unlink()
    fill(tmp_path, {"a": 3})
    with pytest.raises(InputError, match="class 'b' has no readable image.*'b/1.jpg'"):
        load_image_folder(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a folder"):
        load_image_folder(tmp_path / "a/1.txt")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"test_share": 1.0}, "test_share"),
        ({"test_share": 0.5, "validation_share": 0.5}, "leave no training"),
        ({"test_share": 0.0}, "no test images"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (8, 8, 3)}, "image_size"),
        ({"colour": "cmyk"}, "rgb or grey"),
        ({"group_regex": "("}, "regular expression"),
        ({"group_regex": "a/(.)"}, "does not match 'b/00.png'"),
    ],
)
def test_bad_options(tmp_path, options, reason):
    fill(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(InputError, match=reason):
        load_image_folder(tmp_path, **{"image_size": 8, **options})


# ------------------------------------------------------------------------- one file to an array


def test_sixteen_bits(tmp_path):
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    for name in ("x.png", "x.tiff", "x.pgm"):
        Image.fromarray(levels).save(tmp_path / name)
        np.testing.assert_array_equal(
            read_image(tmp_path / name, colour="grey")[0, :, 0], [0, 1, 128, 255]
        )
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "y.tiff")
    with pytest.raises(InputError, match="32-bit"):
        read_image(tmp_path / "y.tiff")


def test_modes_become_rgb_or_grey(tmp_path):
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:, :8] = (200, 40, 90)
    picture = Image.fromarray(rgb)
    picture.save(tmp_path / "rgb.png")
    picture.quantize(4).save(tmp_path / "palette.png")
    picture.quantize(4).save(tmp_path / "x.gif")
    picture.convert("CMYK").save(tmp_path / "cmyk.tiff")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    picture.save(tmp_path / "x.bmp")
    picture.save(tmp_path / "x.webp", lossless=True)
    for name in ("rgb.png", "palette.png", "x.gif", "cmyk.tiff", "cmyk.jpg", "x.bmp", "x.webp"):
        image = read_image(tmp_path / name)
        assert image.shape == (16, 16, 3) and image.dtype == np.uint8
        np.testing.assert_allclose(image.astype(int), rgb, atol=8, err_msg=name)
        grey = read_image(tmp_path / name, colour="grey")
        assert grey.shape == (16, 16, 1)
        luma = 0.299 * 200 + 0.587 * 40 + 0.114 * 90
        np.testing.assert_allclose(grey[:, :8], luma, atol=6, err_msg=name)
    Image.fromarray(rgb[..., 0] > 0).save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}


def test_transparency_is_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[2:, :, 3] = 200, 255  # the upper half is transparent red
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "rgba.png")
    picture.convert("LA").save(tmp_path / "la.png")
    picture.quantize(4).save(tmp_path / "palette.png")
    for name, lower in (("rgba.png", [200, 0, 0]), ("la.png", [60] * 3), ("palette.png", None)):
        image = read_image(tmp_path / name)
        assert (image[:2] == 255).all(), name
        if lower:
            np.testing.assert_array_equal(image[2:], np.broadcast_to(lower, (2, 4, 3)))


def test_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("x.gif", "x.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(read_image(tmp_path / name)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Against Pillow's own exif_transpose."""
    from PIL import ImageOps

    pixels = np.kron(np.arange(6).reshape(2, 3) * 50, np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.jpg", "x.png", "x.tiff"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture))
        found = read_image(tmp_path / name, colour="grey")[..., 0]
        np.testing.assert_array_equal(found, expected)
        assert image_files.sample_sizes([tmp_path / name]) == [expected.shape]


def test_resizing_is_antialiased_and_keeps_the_mean(tmp_path):
    checks = np.indices((64, 48)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "x.png")
    small = read_image(tmp_path / "x.png", size=(8, 6), colour="grey")
    assert small.shape == (8, 6, 1) and np.abs(small.astype(int) - 127.5).max() < 12
    smooth = np.linspace(0, 255, 640 * 480).reshape(480, 640).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=95)
    small = read_image(tmp_path / "x.jpg", size=(12, 16), colour="grey")[..., 0]
    exact = Image.fromarray(smooth).resize((16, 12), Image.Resampling.BOX)
    np.testing.assert_allclose(small.astype(int), np.asarray(exact).astype(int), atol=8)


def test_a_region_is_cut_out_before_it_is_resized(tmp_path):
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    boxes = [(3, 2, 13, 12), (25, 0, 31, 5)]
    images, unreadable = image_files.read_images(
        tmp_path, ["x.png", "x.png"], (10, 10), boxes=boxes
    )
    np.testing.assert_array_equal(images[0], pixels[2:12, 3:13])
    assert list(unreadable) == [1] and "not inside the image of 30 x 20" in unreadable[1]
    with pytest.raises(InputError, match="not cached"):
        image_files.read_images(tmp_path, ["x.png"], (8, 8), boxes=boxes[:1], cache_dir=tmp_path)


def test_default_image_size():
    assert default_image_size([]) == (32, 32)
    assert default_image_size([(28, 28)]) == (28, 28)
    assert default_image_size([(8, 8)] * 3) == (16, 16)
    assert default_image_size([(375, 500)] * 3 + [(1, 9999)]) == (48, 64)
    assert default_image_size([(400, 420), (500, 480), (300, 310)]) == (64, 64)
    assert default_image_size([(32, 64)]) == (32, 64)
    assert default_image_size([(1000, 10)]) == (64, 16)


def test_the_default_size_is_found_from_the_files(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3}, size=(28, 40))
    (tmp_path / "a/x.png").write_text("text")
    assert load_image_folder(tmp_path).splits.train.image_shape == (28, 40, 3)


# ---------------------------------------------------------------------------------------- cache


def test_the_cache_is_used_until_a_file_changes(tmp_path, monkeypatch):
    data, cache = fill(tmp_path / "data", {"a": 30, "b": 40}), tmp_path / "cache"
    (data / "a/bad.png").write_text("text")
    calls, read = [], image_files._read

    def counted(path, *options):
        calls.append(path)
        return read(path, *options)

    monkeypatch.setattr(image_files, "_read", counted)
    progress = []

    def start(**options):
        calls.clear()
        progress.clear()
        return load_image_folder(
            data,
            image_size=8,
            cache_dir=cache,
            progress=lambda *done: progress.append(done),
            **options,
        )

    first = start()
    assert len(calls) == 71
    assert progress[-1] == (71, 71) and progress == sorted(progress)
    plain = load_image_folder(data, image_size=8)
    again = start()
    assert not calls and progress == [(71, 71)]
    for found in (plain, again):
        assert found.unreadable == first.unreadable and found.files == first.files
        assert found.splits.train.content_hash() == first.splits.train.content_hash()
    assert not isinstance(again.splits.train.images, np.memmap)
    assert len(start(seed=5, test_share=0.5).splits.test) == 35 and not calls
    draw(data / "b/00.png", value=9)
    os.utime(data / "b/00.png", ns=(1, 1))
    changed = start()
    assert len(calls) == 71
    images = [getattr(changed.splits, part).images for part in ("train", "test")]
    assert any((image == 9).all() for image in np.concatenate(images))
    (data / "b/01.png").unlink()
    start()
    assert len(calls) == 70
    # A damaged cache is made again; nothing else lies in the folder.
    (stored,) = cache.glob("*.npy")
    stored.write_bytes(stored.read_bytes()[:500])
    start()
    assert len(calls) == 70
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_more_images_than_memory(tmp_path, monkeypatch):
    data, cache = fill(tmp_path / "data", {"a": 10, "b": 20}), tmp_path / "cache"
    plain = load_image_folder(data, image_size=8, validation_share=0.1)
    monkeypatch.setattr(image_files, "_memory", lambda: 4000)
    with pytest.raises(InputError, match="quarter of the memory.*cache_dir"):
        load_image_folder(data, image_size=8)
    for _ in range(2):
        found = load_image_folder(data, image_size=8, validation_share=0.1, cache_dir=cache)
        for split in ("train", "test", "validation"):
            dataset = getattr(found.splits, split)
            assert isinstance(dataset.images, np.memmap)
            assert dataset.content_hash() == getattr(plain.splits, split).content_hash()
    dataset, _ = load_class_folder(data, image_size=8, cache_dir=cache)
    assert len(dataset) == 30


def test_left_overs_of_killed_runs_go(tmp_path, monkeypatch):
    """What is unfinished, and parts of other splits; but not what another run works on now."""
    data, cache = fill(tmp_path / "data", {"a": 10, "b": 20}), tmp_path / "cache"
    monkeypatch.setattr(image_files, "_memory", lambda: 4000)
    load_image_folder(data, image_size=8, cache_dir=cache)
    first = set(cache.glob("part_*.npy"))
    (cache / ".images_0.npy.1.partial").touch()
    (cache / ".images_0.npy.2.partial").touch()
    for old in (*first, cache / ".images_0.npy.1.partial"):
        os.utime(old, (1, 1))
    draw(data / "a/new.png")
    load_image_folder(data, image_size=8, cache_dir=cache, seed=1)
    assert not first & set(cache.iterdir()) and len(list(cache.glob("part_*"))) == 2
    assert [path.name for path in cache.glob(".*")] == [".images_0.npy.2.partial"]
    load_image_folder(data, image_size=8, cache_dir=cache, seed=2)
    assert len(list(cache.glob("part_*"))) == 4  # those of seed 1 may be in use


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    data = fill(tmp_path / "data", {"a": 3, "b": 3})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write decoded images"):
        load_image_folder(data, image_size=8, cache_dir=tmp_path / "file")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(image_files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="GB left"):
        load_image_folder(data, image_size=8, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_interruption_leaves_no_cache(tmp_path):
    data, cache = fill(tmp_path / "data", {"a": 40, "b": 40}), tmp_path / "cache"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_image_folder(data, image_size=8, cache_dir=cache, progress=interrupt)
    assert not list(cache.iterdir())


# --------------------------------------------------------------------------------------- groups


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=80),
    st.floats(0, 0.9),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_groups_never_straddle(pairs, fraction, seed, keep):
    labels, groups = (np.array(column) for column in zip(*pairs, strict=True))
    kept, aside = stratified_group_split(labels, groups, fraction, seed, keep=keep)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, aside])), np.arange(len(labels)))
    assert not set(groups[kept]) & set(groups[aside])
    totals = np.bincount(labels)
    left = np.bincount(labels[kept], minlength=len(totals))
    assert (left >= np.minimum(totals, keep)).all()
    again = stratified_group_split(labels, groups, fraction, seed, keep=keep)
    np.testing.assert_array_equal(again[1], aside)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.9))
def test_without_groups_the_shares_are_exact(labels, fraction):
    labels = np.array(labels)
    _, aside = stratified_group_split(labels, np.arange(len(labels)), fraction)
    totals = np.bincount(labels)
    rounded = np.maximum(np.floor(fraction * totals + 0.5), 1)
    expected = np.minimum(rounded, np.maximum(totals - 1, 0))
    np.testing.assert_array_equal(np.bincount(labels[aside], minlength=len(totals)), expected)


def test_grouped_splits_are_about_stratified():
    rng = np.random.default_rng(0)
    labels, groups = [], []
    for label, tracks in enumerate((60, 30, 12, 4, 2, 1)):
        for track in range(tracks):
            size = int(rng.integers(5, 40))
            labels += [label] * size
            groups += [f"{label}/{track}"] * size
    labels, groups = np.array(labels), np.array(groups)
    _, aside = stratified_group_split(labels, groups, 0.2, 1)
    shares = np.bincount(labels[aside], minlength=6) / np.bincount(labels)
    assert (np.abs(shares[:3] - 0.2) < 0.06).all()
    assert (shares[3:5] > 0).all() and shares[5] == 0  # two objects: one each; one: kept
    with pytest.raises(InputError, match="0 to below 1"):
        stratified_group_split(labels, groups, 1.0)
    with pytest.raises(InputError, match="one of each"):
        stratified_group_split(labels, groups[:-1], 0.2)


def test_group_regex(tmp_path):
    for label, tracks in (("a", 6), ("b", 3), ("c", 2)):
        for track in range(tracks):
            for frame in range(2 + track):
                draw(tmp_path / label / f"{track:05d}_{frame:05d}.ppm")
    for regex in (r"^(.*)_\d+\.ppm$", r"^.*(?=_)"):
        found = load_image_folder(
            tmp_path, image_size=8, group_regex=regex, test_share=0.3, validation_share=0.2
        )
        tracks = [{re.sub(r"_\d+\.ppm", "", f) for f in part} for part in found.files.values()]
        assert sum(map(len, tracks)) == len(set().union(*tracks)) == 11
        assert found.splits.train.class_counts.all() and found.splits.test.class_counts.all()
    # The number of the track alone joins the classes: 6 groups.
    found = load_image_folder(tmp_path, image_size=8, group_regex=r"/(\d+)_", test_share=0.3)
    train, test = ({f[2:7] for f in found.files[split]} for split in ("train", "test"))
    assert train and test and not train & test
    draw(tmp_path / "a/other.png")
    with pytest.raises(InputError, match="does not match 'a/other.png'"):
        load_image_folder(tmp_path, image_size=8, group_regex=r"^(.*)_\d")
    load_image_folder(tmp_path, image_size=8, group_regex=r"^(.*)_\d|(.+)")


def test_a_group_in_two_given_splits(tmp_path):
    for path in ("train/a/1_1", "train/a/2_1", "train/b/3_1", "test/a/2_2", "test/b/4_1"):
        draw(tmp_path / f"{path}.png")
    with pytest.raises(InputError, match="group 'a/2' is in both the train and the test folder"):
        load_image_folder(tmp_path, image_size=8, group_regex="^(.*)_")
    assert image_folder._SPLIT_NAMES["val"] == "validation"
