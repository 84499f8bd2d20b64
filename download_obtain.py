"""From archives to a data set in its place: what to fetch, fetching, checking, unpacking."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import download_place as place
import download_transfer as transfer
import download_unpack as unpacking
import flags
from download_sources import SOURCES, Archive, file_name
from flags import UserError, warn


class Job(NamedTuple):
    """One archive to unpack: what is known of it, and the user's local file, None where it is to be fetched."""

    archive: Archive
    file: Path | None

    def path(self, work):
        """Where the archive lies, once it is there."""
        return self.file or work / self.archive.name


# ---------------------------------------------------------------------------------------------------------------------
# What to unpack


def plan(name, urls, files):
    """The jobs of a set, from the texts of --url and --archive where the user gave them.

    A set of several archives takes as many, under their own names or in their own order, or one that holds everything.
    Returns (jobs, whether the user named them).
    Raises UserError for both flags at once, another number, an address that is none, a file that is not there.
    """
    urls = [url for text in urls or () for url in re.split(r",(?=https?:)", text)]
    files = [Path(file) for text in files or () for file in _file_names(text)]
    if urls and files:
        raise UserError("both --url and --archive", remedy="give one of them")
    for url in urls:
        transfer.check_url(url)
    for file in files:
        if not file.is_file():
            raise UserError("no such file", file, "check --archive")
    own = SOURCES[name].archives
    if not urls and not files:
        return [Job(archive, None) for archive in own], False
    names = [file_name(url) for url in urls] or [file.name for file in files]
    stands_for = _match(name, own, names)
    if len(set(names)) < len(names):
        names = [f"{i}-{file}" for i, file in enumerate(names)]
    urls, files = urls or [""] * len(names), files or [None] * len(names)
    made = [Archive(url, of.digest, of.into, file) for url, of, file in zip(urls, stands_for, names, strict=True)]
    return [Job(archive, file) for archive, file in zip(made, files, strict=True)], True


def _file_names(text):
    """'a.zip,b.zip' -> both; a file whose own name has a comma is one."""
    return [text] if os.path.exists(text) else flags.names(text)


def _match(name, own, names):
    """For each archive the user named, the set's own one that it stands for, or one of which nothing is known."""
    if len(own) > 1 and len(names) not in (1, len(own)):
        what = f"{len(names)} archives for {name}, which comes in {len(own)}"
        raise UserError(what, remedy=f"name all, in this order: {', '.join(archive.name for archive in own)}")
    if len(names) != len(own):
        return [Archive("")] * len(names)
    known = {archive.name: archive for archive in own}
    return [known[file] for file in names] if set(names) == set(known) else list(own)


# ---------------------------------------------------------------------------------------------------------------------
# Doing it


def obtain(name, root, jobs, keep=False):
    """Fetch what is missing, unpack it, and let the set appear at its place unless it is there.

    keep: leave fetched archives beside the set. Returns the exit code.
    """
    target = root.resolve()
    if not place.is_free(target):
        tell_present(name, root)
        if place.is_ours(place.working_name(target)):  # left by a run that was killed after its rename
            with place.working_folder(target) as work:
                place.clear(work)
        return 0
    with place.working_folder(target) as work:
        if not place.is_free(target):  # another run was faster
            tell_present(name, root)
            place.clear(work)
            return 0
        _gather(name, jobs, work)
        pairs = _unpack(name, jobs, work, target)
        kept = place.clear(work, [job.path(work) for job in jobs] if keep else [])
    print(f"{name} is in {root}: {counts(pairs)} images with masks")
    _warn_of_few(name, root, pairs)
    for path in kept:
        print(f"kept: {path}")
    return 0


def counts(pairs):
    """'367 train, 101 val' of {split: pairs}."""
    return ", ".join(f"{count} {split}" for split, count in pairs.items())


def tell_present(name, root):
    """Say that the set is there. Raises UserError where what is there is not the set, or not all of it."""
    try:
        pairs = place.count_pairs(name, root)
    except UserError as error:
        raise UserError(
            f"this is no complete {name} folder ({error})", root, "remove it, or choose another --data-dir"
        ) from None
    print(f"{root} is there already: {counts(pairs)} images with masks")
    _warn_of_few(name, root, pairs)


def _warn_of_few(name, root, pairs):
    if sum(pairs.values()) < SOURCES[name].pairs:
        warn(f"{root} holds {sum(pairs.values())} images with masks, the official {name} holds {SOURCES[name].pairs}")


def _gather(name, jobs, work):
    """Have all archives on disk, their checksums compared."""
    growth = SOURCES[name].growth
    transfer.check_space(work, sum(_need(job, work, growth) for job in jobs))
    for job in jobs:
        if job.file:
            transfer.check_digest(job.file, job.archive.digest)
            size = None
        else:
            size = transfer.fetch(job.archive.url, job.path(work), job.archive.digest, growth)
        print(f"{job.archive.name}: {_what_was_checked(job.archive.digest, size)}", flush=True)


def _what_was_checked(digest, size):
    if digest:
        return f"{transfer.DIGESTS[len(digest)]} checksum as published"
    sizes = "its size as the server told it and " if size is not None else ""
    return f"no checksum is published; checked are {sizes}the archive's own structure"


def _need(job, work, growth):
    """Bytes that have to be free for one archive and what it unpacks to; 0 where nothing is known before the answer."""
    path = job.path(work)
    if path.exists():
        return unpacking.unpacked_size(path, growth)
    part = work / (job.archive.name + ".part")
    size = transfer.told_size(job.archive.url) or job.archive.about
    return max(size - (part.stat().st_size if part.exists() else 0), 0) + size * growth


def _unpack(name, jobs, work, target):
    """Unpack all archives and let the set appear. Returns {split: pairs}.

    An archive that was fetched and is no good is removed: the next run would only find it again.
    """
    unpacked = work / "unpacked"
    if unpacked.exists():  # of a run that was killed
        shutil.rmtree(unpacked)
    try:
        needed = 0
        for job in jobs:
            with _removed_if_bad([job], work):
                needed += unpacking.unpacked_size(job.path(work), SOURCES[name].growth)
        transfer.check_space(work, needed)
        for job in jobs:
            with _removed_if_bad([job], work):
                folder = unpacked / job.archive.into
                folder.mkdir(parents=True, exist_ok=True)
                unpacking.unpack(job.path(work), folder)
        with _removed_if_bad([job for job in jobs if not job.archive.digest], work):
            folder, pairs = place.pick(name, unpacked, SOURCES[name].inner)
        place.commit(folder, target)
        return pairs
    finally:
        if unpacked.exists():
            shutil.rmtree(unpacked)


@contextlib.contextmanager
def _removed_if_bad(jobs, work):
    """Where the block finds a fault in them, fetched archives go; a local one is the user's and stays."""
    try:
        yield
    except UserError:
        for job in jobs:
            if not job.file:
                transfer.Part(job.path(work), job.archive.url).remove()
        raise
