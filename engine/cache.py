"""Examples decoded once: `--cache ram|disk` keeps a split's images and targets as the batches need them.

A cache file holds uint8 pixels at the size that examples are cut from (training) or the network sees (validation),
mapped into memory by every reading process, so that none of them decodes, resizes or copies more than its batch. Its
name is a digest of everything the pixels follow from: the bytes of all files, the masks' coding, the geometry, this
format and Pillow's version. It is written under another name, flushed and renamed, by one process while others wait;
each time it is opened, its checksums are compared before it is believed.

    header    4096 bytes, JSON: format, key, examples, bytes, index_crc
    index     (N, 7) int64: where the example starts, image height and width, target height and width, its CRC-32, 0
    examples  image (h, w, 3) and target (H, W), one after the other, each example at a multiple of 64
"""

import argparse
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.reduction import DupFd
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from cli import UserError, warn
from data import EvaluationPairs, Split, read_sized

FORMAT = "honestseg cache 1"
HEADER, ALIGN = 4096, 64
START, CRC = 0, 5  # columns of the index; 1 to 4 are sizes
FOLDER = "cache"  # below the working folder, of a cache on disk


def add_cache_flags(parser):
    """The flag that keeps what was decoded."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--cache",
        type=cache_kind,
        default="none",
        metavar="KIND",
        help="keep images and masks decoded and resized: ram (shared memory, gone after the run), disk (under cache/, "
        "for the next run, too), disk:DIR; none: decode anew in every epoch",
    )


def cache_kind(text):
    """'none', 'ram', 'disk' or 'disk:DIR', as it is."""
    kind, colon, folder = text.partition(":")
    if text not in ("none", "ram", "disk") and not (kind == "disk" and colon and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is no cache; write none, ram, disk or disk:DIR")
    return text


def cache_split(split, geometry, kind, *, training, progress=None, barrier=None):
    """The split with its examples decoded: opened where they lie, else built.

    kind: `cache_kind`'s, 'none' gives the split as it is. training: at the size that training's crops are cut from;
    else as evaluation reads them. progress: called with the examples built. barrier: called once this process has
    opened the cache, returns when all of the run's processes have: only then a cache in memory gives up its name.
    Raises UserError for files that cannot be read, and where there is no space for them.
    """
    if kind == "none":
        return split
    if type(split).read is not Split.read:
        raise ValueError(f"a {type(split).__name__} reads in its own way, which no key describes")
    folder = _folder_of(kind)
    cache_key = geometry.cache_key(training)
    key = content_key(split, cache_key)
    path = folder / f"{split.name}-{key[:32]}.cache"
    descriptor = _open_whole(path, key)
    if descriptor is None:
        with _locked(folder, kind):
            descriptor = _open_whole(path, key, why=True)
            if descriptor is None:
                descriptor = _build(split, geometry, cache_key, path, key, progress)
    if kind == "ram":
        if barrier:
            barrier()
        path.unlink(missing_ok=True)  # the memory is free again when the last process that maps it ends
    return replace(split, cache=Cache(descriptor, cache_key, split.pairs))


class Cache:
    """The examples of one split, mapped into memory.

    descriptor: of the open file; cache_key: `Geometry.cache_key` of what it holds; pairs: the split's, in its order.
    A copy sent to another process maps the same memory.
    """

    def __init__(self, descriptor, cache_key, pairs):
        self.descriptor, self.cache_key, self.pairs = descriptor, cache_key, pairs
        self.memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        self.index = _index_of(self.memory, len(pairs)).tolist()

    def __len__(self):
        return len(self.pairs)

    def __reduce__(self):
        return _reopen, (DupFd(self.descriptor), self.cache_key, self.pairs)

    def __del__(self):
        os.close(self.descriptor)

    def read(self, index):
        """(image (h, w, 3) uint8, target (H, W) uint8) of one example: read-only views of the shared memory."""
        start, height, width, rows, columns, *_ = self.index[index]
        middle = start + height * width * 3
        image = np.frombuffer(self.memory, np.uint8, middle - start, start).reshape(height, width, 3)
        return image, np.frombuffer(self.memory, np.uint8, rows * columns, middle).reshape(rows, columns)


def _reopen(descriptor, cache_key, pairs):
    return Cache(descriptor.detach(), cache_key, pairs)


def _index_of(memory, count):
    """(count, 7) int64 of a mapped cache file."""
    return np.frombuffer(memory, "<i8", count * 7, HEADER).reshape(count, 7)


# ---------------------------------------------------------------------------------------------------------------------
# The key


def content_key(split, cache_key):
    """Hexadecimal digest of everything that the pixels of a split's examples follow from."""
    specs = [split.spec_of(index) for index in range(len(split))]
    codings = {id(spec): repr((sorted(spec.values.items()), sorted(spec.colours.items()))) for spec in specs}
    digest = hashlib.blake2b(json.dumps([FORMAT, PIL.__version__, cache_key], sort_keys=True).encode(), digest_size=32)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for spec, files in zip(specs, pool.map(_digest_pair, split.pairs), strict=True):
            digest.update(files + hashlib.blake2b(codings[id(spec)].encode(), digest_size=32).digest())
    return digest.hexdigest()


def _digest_pair(pair):
    """Digests of an image's and a mask's bytes, one after the other. Raises UserError for a file that is not there."""
    found = b""
    for path in pair:
        try:
            found += hashlib.blake2b(Path(path).read_bytes(), digest_size=32).digest()
        except OSError as error:
            raise UserError(f"cannot read file ({error.strerror})", path, "check the path") from None
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Opening


def _open_whole(path, key, why=False):
    """A descriptor of the cache file if it is there, whole and of this key, else None; why: warn what is wrong."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # in use: `_sweep` leaves it alone
    fault = _find_fault(descriptor, key)
    if fault is None:
        return descriptor
    os.close(descriptor)
    if why:
        warn(f"the cache {path} is {fault}; it is built anew")
    return None


def _find_fault(descriptor, key):
    """What is wrong with an open cache file, in words, or None."""
    try:
        header = json.loads(os.pread(descriptor, HEADER, 0))
        found, count, size = header["key"], header["examples"], header["bytes"]
        format_, index_crc = header["format"], header["index_crc"]
    except (ValueError, KeyError, TypeError):
        return "damaged in its header"
    if (format_, found) != (FORMAT, key):
        return "another one's"
    if os.fstat(descriptor).st_size != size or size < HEADER + count * 56:
        return "cut short"
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory:
        return _find_damage(memory, count, size, index_crc)


def _find_damage(memory, count, size, index_crc):
    """Which part of a mapped cache file differs from its checksum, or None."""
    index = _index_of(memory, count).copy()
    if zlib.crc32(index.tobytes()) != index_crc:
        return "damaged in its index"
    ends = [*index[1:, START].tolist(), size]

    def is_sound(row):
        with memoryview(memory) as whole, whole[index[row, START] : ends[row]] as example:
            return zlib.crc32(example) == index[row, CRC]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, sound in enumerate(pool.map(is_sound, range(count))):
            if not sound:
                return f"damaged in example {row}"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Building


def _folder_of(kind):
    """The folder of a kind's files, made if need be. Raises UserError where that cannot be."""
    place, _, folder = kind.partition(":")
    if place == "ram":  # memory that has a name as long as it must; where the system has none, the temporary folder
        shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
        folder = shared / f"honestseg-{os.getuid()}"
    folder = Path(folder or FOLDER)
    try:
        folder.mkdir(mode=0o700 if place == "ram" else 0o777, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache's folder ({error.strerror})", folder, "use --cache disk:DIR") from None
    if place == "ram" and folder.stat().st_uid != os.getuid():
        raise UserError("the cache's folder belongs to another user", folder, "use --cache disk")
    return folder


@contextmanager
def _locked(folder, kind):
    """One process at a time builds in a folder; the lock ends with its process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds a cache in {folder}", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"cannot lock ({error.strerror})", folder, "use --cache disk:DIR on a local disk") from None
        _sweep(folder, kind)
        yield
    finally:
        os.close(descriptor)


def _sweep(folder, kind):
    """Remove what killed processes left: files half built and, in memory, those that nobody has open."""
    for part in folder.glob(".*.part"):  # only the process that holds the lock builds
        part.unlink(missing_ok=True)
    for path in folder.glob("*.cache") if kind == "ram" else ():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # another run is about to open it
        finally:
            os.close(descriptor)


def _build(split, geometry, cache_key, path, key, progress):
    """Decode a split into a new cache file; returns its descriptor."""
    path.unlink(missing_ok=True)  # a damaged one
    index, size = _plan(split, geometry, cache_key["training"])
    _require_space(path.parent, size)
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _write_examples(descriptor, index, _reader(split, geometry, cache_key["training"]), progress)
        _write_front(descriptor, index, size, key)
        os.fsync(descriptor)
        os.replace(part, path)
        _flush_folder(path.parent)
    except BaseException as error:
        os.close(descriptor)
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_space(path.parent, size, error.strerror) from None
        raise
    return descriptor


def _plan(split, geometry, training):
    """Where each example will lie: its index (N, 7) int64, checksums still 0, and the file's size in bytes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes = list(pool.map(_mask_shape, (mask for _, mask in split.pairs)))
    index, end = np.zeros((len(shapes), 7), "<i8"), HEADER + len(shapes) * 56
    for row, shape in enumerate(shapes):
        start = -(-end // ALIGN) * ALIGN
        image = geometry.network_size(*shape)
        target = image if training else shape
        index[row, :CRC] = start, *image, *target
        end = start + image[0] * image[1] * 3 + target[0] * target[1]
    return index, end


def _mask_shape(path):
    """(height, width) of a mask, which its image's are as well; from the file's head."""
    try:
        with Image.open(path) as mask:
            return mask.height, mask.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read mask ({error})", path, "the file is damaged or no image; replace it") from None


def _reader(split, geometry, training):
    """What decodes one example: index -> (image, target)."""
    if training:
        return lambda index: read_sized(split, index, geometry)
    return EvaluationPairs(split, geometry).read


def _write_examples(descriptor, index, read, progress):
    """Decode and write every example at its place, and note its checksum in the index."""
    ends = [*index[1:, START].tolist(), None]

    def store(row):
        image, target = (np.ascontiguousarray(part) for part in read(row))
        if [*image.shape[:2], *target.shape] != index[row, 1:CRC].tolist():
            raise ValueError(f"example {row} has not the size that its mask's head names: {index[row].tolist()}")
        whole = image.tobytes() + target.tobytes()
        start, end = int(index[row, START]), ends[row]
        whole += bytes(end - start - len(whole)) if end else b""
        _write_all(descriptor, whole, start)
        return zlib.crc32(whole)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, checksum in enumerate(pool.map(store, range(len(index)))):
            index[row, CRC] = checksum
            if progress:
                progress(row + 1)


def _write_front(descriptor, index, size, key):
    """Header and index: written last, as they hold the checksums."""
    header = {"format": FORMAT, "key": key, "examples": len(index), "bytes": size}
    header["index_crc"] = zlib.crc32(index.tobytes())
    _write_all(descriptor, json.dumps(header).encode().ljust(HEADER), 0)
    _write_all(descriptor, index.tobytes(), HEADER)


def _write_all(descriptor, content, offset):
    """Write bytes at an offset; a disk that is nearly full takes a part of them first."""
    view = memoryview(content)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _flush_folder(folder):
    """Write a folder's new entry itself to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(folder, size):
    """Raise UserError unless the folder's disk, or the memory it is, can take so many bytes."""
    free = shutil.disk_usage(folder).free
    if folder.is_relative_to("/dev/shm"):
        free = min(free, _free_memory())
    if size > free:
        raise _no_space(folder, size, f"{free / 1e9:.3g} GB are free")


def _no_space(folder, size, reason):
    remedy = "free some space, use --cache disk:DIR elsewhere, a smaller size, or --cache none"
    return UserError(f"no space for a cache of {size / 1e9:.3g} GB ({reason})", folder, remedy)


def _free_memory():
    """Bytes that can be had without swapping, as Linux estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")
