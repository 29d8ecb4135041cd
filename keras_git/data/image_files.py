"""Image files of any format, size and mode to uint8 arrays of one size, in parallel."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from keras_git.errors import InputError
from keras_git.files import write_atomically

CHANNELS = {"rgb": 3, "grey": 1}
MAX_PIXELS = 100_000_000
_LARGE_PIXELS = 1 << 24
_FILES_PER_TASK = 32
_JPEG_MARGIN = 4
_CACHE_VERSION = 1
_LEFT_OVER_SECONDS = 3600.0

Progress = Callable[[int, int], None]
Box = tuple[int, int, int, int]

# Pictures this large are decoded one at a time, so that several cannot fill the memory together.
_one_large = threading.Lock()


class _Unreadable(Exception):
    """Why a file cannot be used, in one line."""


def read_image(
    path: str | Path, *, colour: str = "rgb", size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read one image file.

    The first frame is taken of a file with several. The orientation that a camera wrote into EXIF
    is applied, transparent parts become white, 16-bit grey levels are scaled to 0..255
    (65535 becomes 255), palettes and CMYK are converted.

    Args:
        path: the file, in any format that Pillow opens but EPS (a program, not an image).
        colour: `"rgb"` or `"grey"` (Rec. 601 luma).
        size: (height, width) to resize to, or None to keep the size. Both sides are stretched to
            it: the aspect ratio is not kept, nothing is cut off. Bilinear with antialiasing; large
            JPEG files are decoded at a reduced size of at least 4 times the one asked for.

    Returns:
        uint8 array (height, width, 3 or 1), 0..255.

    Raises:
        InputError: not a regular file, not an image, damaged, larger than `MAX_PIXELS`, or with
            pixels without a fixed range (32 bits or floating point).
    """
    check_colour(colour)
    try:
        return _read(path, colour, size)
    except _Unreadable as error:
        raise InputError(f"{os.fspath(path)!r} cannot be read: {error}") from error


def check_colour(colour: str) -> None:
    """Raises InputError unless `colour` is known."""
    if colour not in CHANNELS:
        raise InputError(f"colour is {colour!r}; use {' or '.join(CHANNELS)}")


def remove_left_over(paths: Iterable[Path]) -> None:
    """Removes files and folders that nobody has written to for an hour.

    For the unfinished work of killed processes in a folder that several runs may share.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            inside = path.rglob("*") if path.is_dir() else ()
            last = max(p.stat().st_mtime for p in (path, *inside))
            if time.time() - last < _LEFT_OVER_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _read(
    path: str | Path, colour: str, size: tuple[int, int] | None, box: Box | None = None
) -> np.ndarray:
    from PIL import Image

    try:
        information = os.stat(path)
        if not stat.S_ISREG(information.st_mode):
            raise _Unreadable("not a regular file")  # opening a named pipe would wait for ever
        if not information.st_size:
            raise _Unreadable("the file is empty (0 bytes)")
        with Image.open(path) as picture:
            _check_header(picture, box)
            if picture.width * picture.height > _LARGE_PIXELS:
                with _one_large:
                    return _pixels(picture, colour, size, box)
            return _pixels(picture, colour, size, box)
    except _Unreadable:
        raise
    except MemoryError as error:
        raise _Unreadable("not enough memory to decode it") from error
    except Exception as error:  # decoders raise anything for damaged files
        raise _Unreadable(_reason(error)) from error


def _check_header(picture: Any, box: Box | None) -> None:
    if picture.format == "EPS":
        raise _Unreadable("EPS files are programs; convert it to PNG")
    if picture.width * picture.height > MAX_PIXELS:
        raise _Unreadable(
            f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS // 10**6} "
            "million; make it smaller"
        )
    if box is not None:
        left, top, right, bottom = box
        if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
            raise _Unreadable(
                f"the region {box} is not inside the image of {picture.width} x {picture.height} "
                "pixels"
            )


def _reason(error: BaseException) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image of a format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too many pixels; make it smaller"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"damaged: {lines[0][:150]}" if lines else f"damaged ({type(error).__name__})"


def _pixels(picture: Any, colour: str, size: tuple[int, int] | None, box: Box | None) -> np.ndarray:
    from PIL import Image

    if size is not None and box is None:
        side = _JPEG_MARGIN * max(size)
        picture.draft(None, (side, side))  # JPEG: decode smaller; other formats: nothing
    picture.load()
    turn = _turn(picture)
    mode = "RGB" if colour == "rgb" else "L"
    if picture.mode.startswith("I"):
        converted = _eight_bits(picture).convert(mode)
    elif picture.mode == "F":
        raise _Unreadable("floating-point pixels have no fixed range; convert it to 8 or 16 bits")
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        converted = Image.alpha_composite(white, picture).convert(mode)
    else:
        converted = picture if picture.mode == mode else picture.convert(mode)
    if box is not None:
        # Not the `box` of `resize`, which looks at pixels around the box, too.
        converted = converted.crop(box)
    if turn is not None:
        converted = converted.transpose(turn)
    if size is not None and converted.size != (size[1], size[0]):
        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8).reshape(converted.height, converted.width, -1)


def _turn(picture: Any) -> Any:
    """How to turn the picture upright, as EXIF says, or None."""
    from PIL import ExifTags, Image

    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF says nothing about the pixels
        return None
    method = Image.Transpose
    return {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }.get(orientation)


def _swaps_sides(picture: Any) -> bool:
    from PIL import Image

    upright = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    return _turn(picture) not in (None, Image.Transpose.ROTATE_180, *upright)


def _eight_bits(picture: Any) -> Any:
    """Integer grey levels of 16 bits, scaled to 0..255."""
    from PIL import Image

    # PNG and PGM files of 16 bits may come in Pillow's 32-bit mode.
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        raise _Unreadable("32-bit pixels have no fixed range; convert it to 8 or 16 bits")
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def sample_sizes(paths: Sequence[str | Path], number: int = 500) -> list[tuple[int, int]]:
    """(height, width) of up to `number` evenly chosen files, read from their headers.

    Files that cannot be opened are left out.
    """
    from PIL import Image

    Image.init()
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(number, len(paths))).astype(int))

    def size(index: int) -> tuple[int, int] | None:
        try:
            if not stat.S_ISREG(os.stat(paths[index]).st_mode):
                return None
            with Image.open(paths[index]) as picture:
                width, height = picture.size
                return (width, height) if _swaps_sides(picture) else (height, width)
        except Exception:  # the pass that decodes says what is wrong with it
            return None

    with ThreadPoolExecutor(_workers()) as pool:
        return [found for found in pool.map(size, chosen) if found is not None]


def read_images(
    folder: Path,
    files: Sequence[str],
    size: tuple[int, int],
    *,
    colour: str = "rgb",
    boxes: Sequence[Box] | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Read many image files into one array, in parallel.

    With `cache_dir` the decoded images are kept there in a `.npy` file, and a later call reads
    that file as long as the names, sizes and times of all files are the same.

    Args:
        folder: what `files` are relative to.
        files: paths of N images.
        size: (height, width) of the result.
        colour: `"rgb"` or `"grey"`.
        boxes: for each file the region to cut out before it is resized, (left, top, right, bottom)
            in pixels as they are stored, right and bottom excluded; not with `cache_dir`.
        cache_dir: folder for the decoded images, or None to keep them in memory only.
        progress: called with (files done, N) from the calling thread.

    Returns:
        uint8 array (N, height, width, channels) - a memory-mapped file with `cache_dir` - and
        `{index: reason}` of the files that cannot be read, whose rows are 0.

    Raises:
        InputError: the cache cannot be written, or the images do not fit into a quarter of the
            memory and there is no `cache_dir`.
    """
    check_colour(colour)
    if boxes is not None and cache_dir is not None:
        raise InputError("cut-out regions are not cached; leave out boxes or cache_dir")
    shape = (len(files), *size, CHANNELS[colour])
    if cache_dir is None:
        if not fits_into_memory(int(np.prod(shape))):
            raise InputError(
                f"{len(files)} images of {size[0]} x {size[1]} need more than a quarter of the "
                "memory; name a cache_dir, or use a smaller image_size"
            )
        images = np.zeros(shape, np.uint8)
        unreadable: dict[int, str] = {}
        for start, piece, reasons in _decoded(folder, files, size, colour, progress, boxes):
            images[start : start + len(piece)] = piece
            unreadable.update(reasons)
        return images, dict(sorted(unreadable.items()))
    cache = _Cache(Path(cache_dir), folder, files, shape, colour)
    found = cache.read()
    if found is None:
        found = cache.write(_decoded(folder, files, size, colour, progress))
    elif progress is not None:
        progress(len(files), len(files))
    return found


def fits_into_memory(num_bytes: int) -> bool:
    """Whether so many bytes are at most a quarter of the memory that this process may use."""
    return num_bytes <= _memory() // 4


def _memory() -> int:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        memory = 8 << 30
    try:  # containers have less than the machine
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        memory = min(memory, int(limit))
    except (OSError, ValueError):
        pass
    return memory


def _workers() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _decoded(
    folder: Path,
    files: Sequence[str],
    size: tuple[int, int],
    colour: str,
    progress: Progress | None,
    boxes: Sequence[Box] | None = None,
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """(first index, images, reasons) of pieces of `files`, in the order they get done.

    Threads: Pillow gives the interpreter free while it decodes and resizes.
    """
    from PIL import Image

    Image.init()

    def decode(start: int) -> tuple[int, np.ndarray, dict[int, str]]:
        names = files[start : start + _FILES_PER_TASK]
        piece = np.zeros((len(names), *size, CHANNELS[colour]), np.uint8)
        reasons = {}
        for i, name in enumerate(names):
            try:
                box = None if boxes is None else boxes[start + i]
                piece[i] = _read(folder / name, colour, size, box)
            except _Unreadable as error:
                reasons[start + i] = str(error)
        return start, piece, reasons

    workers, done = _workers(), 0
    starts = iter(range(0, len(files), _FILES_PER_TASK))
    pool = ThreadPoolExecutor(workers)
    waiting: set[Future[tuple[int, np.ndarray, dict[int, str]]]] = set()
    try:
        while True:
            # Few tasks at a time: decoded images must not pile up behind a slow disk.
            while len(waiting) < 2 * workers and (start := next(starts, None)) is not None:
                waiting.add(pool.submit(decode, start))
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                yield result
                done += len(result[1])
                if progress is not None:
                    progress(done, len(files))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Cache:
    """Decoded images of one folder, in one size and colour: a `.npy` file and what it was made of.

    The manifest is written last and removed first, so it never stands beside other images.
    """

    def __init__(
        self,
        cache_dir: Path,
        folder: Path,
        files: Sequence[str],
        shape: tuple[int, ...],
        colour: str,
    ) -> None:
        from PIL import __version__ as pillow

        self._shape = shape
        digest = hashlib.sha256(repr((_CACHE_VERSION, pillow, shape, colour)).encode())
        for name in files:
            try:
                information = os.stat(folder / name)
                facts = (name, information.st_size, information.st_mtime_ns)
            except OSError:  # a broken link
                facts = (name, -1, -1)
            digest.update(repr(facts).encode("utf-8", "surrogatepass"))
        self._content = digest.hexdigest()
        place = repr((os.path.realpath(folder), shape[1:], colour))
        name = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._images = cache_dir / f"images_{name}.npy"
        self._manifest = cache_dir / f"images_{name}.json"

    def read(self) -> tuple[np.ndarray, dict[int, str]] | None:
        """What is cached, if it is of these files as they are now."""
        try:
            manifest = json.loads(self._manifest.read_text("utf-8"))
            if manifest["content"] != self._content:
                return None
            images = np.load(self._images, mmap_mode="r", allow_pickle=False)
            unreadable = {int(index): str(why) for index, why in manifest["unreadable"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not there, or damaged: decode again
        if images.shape != self._shape or images.dtype != np.uint8:
            return None
        logging.info("decoded images are read from %s", self._images)
        return images, unreadable

    def write(
        self, pieces: Iterator[tuple[int, np.ndarray, dict[int, str]]]
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Write the pieces, and open the finished file read-only."""
        partial = self._images.with_name(f".{self._images.name}.{os.getpid()}.partial")
        unreadable: dict[int, str] = {}
        per_image = int(np.prod(self._shape[1:]))
        try:
            self._images.parent.mkdir(parents=True, exist_ok=True)
            remove_left_over(self._images.parent.glob(".images_*.partial"))
            free = shutil.disk_usage(self._images.parent).free
            if self._shape[0] * per_image > free:
                raise InputError(
                    f"the decoded images need {self._shape[0] * per_image / 1e9:.1f} GB, "
                    f"{self._images.parent} has {free / 1e9:.1f} GB left; free some space, name "
                    "another cache_dir or use a smaller image_size"
                )
            # Written, not memory-mapped: a full disk is then an error and not the process' end.
            with open(partial, "wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
                np.lib.format.write_array_header_1_0(file, header)
                begin = file.tell()
                for start, piece, reasons in pieces:
                    file.seek(begin + start * per_image)
                    file.write(piece.tobytes())
                    unreadable.update(reasons)
                file.flush()
                os.fsync(file.fileno())
            unreadable = dict(sorted(unreadable.items()))
            self._manifest.unlink(missing_ok=True)
            partial.replace(self._images)
            text = json.dumps({"content": self._content, "unreadable": unreadable})
            write_atomically(self._manifest, text)
            return np.load(self._images, mmap_mode="r", allow_pickle=False), unreadable
        except OSError as error:
            raise InputError(
                f"cannot write decoded images to {self._images.parent}: "
                f"{error.strerror or error}; choose a writable cache_dir with enough space"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
