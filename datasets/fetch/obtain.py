"""From archives to an installed data set: what to fetch, fetching, checking, unpacking, renaming."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import cli
from cli import UserError, warn
from datasets.fetch.install import (
    BusyError,
    clear,
    commit,
    count_pairs,
    find_set,
    is_free,
    is_ours,
    resolve,
    working_folder,
    working_name,
)
from datasets.fetch.sources import SOURCES, Archive, file_name
from datasets.fetch.transfer import DIGESTS, Part, check_digest, check_space, check_url, fetch, told_size
from datasets.fetch.unpack import merge, unpack, unpacked_size


class Job(NamedTuple):
    """One archive to unpack: what is known of it, and the user's local file, None where it is to be fetched.

    official: whether it has the name that the set's authors gave it.
    """

    archive: Archive
    file: Path | None = None
    official: bool = True

    def path(self, work):
        """Where the archive lies, once it is there."""
        return self.file or work / self.archive.name


# ---------------------------------------------------------------------------------------------------------------------
# What to unpack


def plan(name, urls, files):
    """The jobs of a set, from the texts of --url and --archive where the user gave them.

    A set of several archives takes as many, or one that holds everything. One with an official name is that one; the
    others stand for the remaining ones in their order.
    Returns (jobs, whether the user named them).
    Raises UserError for both flags at once, another number, one named twice, an address that is none, a file that is
    not there.
    """
    urls = [url for text in urls or () for url in re.split(r",(?=https?:)", text)]
    files = [Path(file) for text in files or () for file in _file_names(text)]
    if urls and files:
        raise UserError("both --url and --archive", remedy="give one of them")
    for url in urls:
        check_url(url)
    for file in files:
        if not file.is_file():
            raise UserError("no such file", file, "check --archive")
    own = SOURCES[name].archives
    if not urls and not files:
        return [Job(archive) for archive in own], False
    names = [file_name(url) for url in urls] or [file.name for file in files]
    stands_for = _match(name, own, names)
    official = [of is not None and of.name == file for of, file in zip(stands_for, names, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{i}-{file}" for i, file in enumerate(names)]
    urls, files = urls or [""] * len(names), files or [None] * len(names)
    known = [of or Archive("") for of in stands_for]
    made = [Archive(url, of.digest, of.into, file) for url, of, file in zip(urls, known, names, strict=True)]
    return [Job(*each) for each in zip(made, files, official, strict=True)], True


def _file_names(text):
    """'a.zip,b.zip' -> both; a file whose own name has a comma is one."""
    return [text] if os.path.exists(text) else cli.names(text)


def _match(name, own, names):
    """For each archive the user named, the set's own one that it stands for, or None where nothing is known of it."""
    if len(own) > 1 and len(names) not in (1, len(own)):
        what = f"{len(names)} archives for {name}, which comes in {len(own)}"
        raise UserError(what, remedy=f"name all, in this order: {', '.join(archive.name for archive in own)}")
    known = {archive.name: archive for archive in own}
    if twice := next((file for file in known if names.count(file) > 1), None):
        raise UserError(f"{twice} is named twice", remedy=f"name each once: {', '.join(known)}")
    if len(names) != len(own):
        return [known.get(file) for file in names]
    others = iter([archive for archive in own if archive.name not in names])
    return [known[file] if file in known else next(others) for file in names]


# ---------------------------------------------------------------------------------------------------------------------
# Doing it


def obtain(name, root, jobs, keep=False):
    """Fetch what is missing, unpack it, and install the set unless it is there.

    keep: leave fetched archives beside the set. Returns the exit code.
    """

    def make(work):
        _fetch_all(name, jobs, work)
        return _unpack(name, jobs, work)

    work = working_name(resolve(root))
    for job in jobs:
        if job.file and work in job.file.resolve().parents:
            raise UserError("this archive lies where download works and cleans up", job.file, f"move it out of {work}")
    return install(name, root, make, [job.path(work) for job in jobs] if keep else [])


def install(name, root, make, keep=()):
    """Make a set in the working folder and rename it to ROOT, unless it is there.

    make: called with the working folder, writes the set in its folder `unpacked` and returns (the set's folder,
    {split: pairs}); keep: files in the working folder that are left beside the set. Returns the exit code.
    """
    target = resolve(root)
    if not is_free(target):
        tell_present(name, root)
        if is_ours(working_name(target)):  # left by a run that was killed after its rename
            with contextlib.suppress(BusyError), working_folder(target) as work:
                _tell_kept(clear(work, keep))
        return 0
    with working_folder(target) as work:
        if not is_free(target):  # another run was faster
            tell_present(name, root)
            _tell_kept(clear(work, keep))
            return 0
        unpacked = work / "unpacked"
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, unpacked, ignore_errors=True)
            if unpacked.exists():  # of a run that was killed
                shutil.rmtree(unpacked)
            folder, pairs = make(work)
            commit(folder, target)
        kept = clear(work, keep)
    print(f"{name} is in {root}: {counts(pairs)} images with masks")
    _warn_of_few(name, root, pairs)
    _tell_kept(kept)
    return 0


def _tell_kept(paths):
    for path in paths:
        print(f"kept: {path}")


def counts(pairs):
    """'367 train, 101 val' of {split: pairs}."""
    return ", ".join(f"{count} {split}" for split, count in pairs.items())


def tell_present(name, root):
    """Say that the set is there. Raises UserError where what is there is not the set, or not all of it."""
    try:
        pairs = count_pairs(name, root)
    except UserError as error:
        raise UserError(
            f"this is no complete {name} folder ({error})", root, "remove it, or choose another --data-dir"
        ) from None
    if name == "streets":  # rendered here: there is but one version of it
        require_all(name, root, pairs, "remove it, or choose another --data-dir")
    print(f"{root} is there already: {counts(pairs)} images with masks")
    _warn_of_few(name, root, pairs)


def _warn_of_few(name, root, pairs):
    if sum(pairs.values()) < SOURCES[name].pairs:
        warn(f"{root} holds {sum(pairs.values())} images with masks, the official {name} holds {SOURCES[name].pairs}")


def require_all(name, root, pairs, remedy):
    """Raise UserError where {split: pairs} are fewer than the official set has."""
    if sum(pairs.values()) < SOURCES[name].pairs:
        what = f"{name} is not complete: {sum(pairs.values())} of {SOURCES[name].pairs} images with masks"
        raise UserError(f"{what} ({counts(pairs)})", root, remedy)


def _fetch_all(name, jobs, work):
    """Have all archives on disk, their checksums compared."""
    growth = SOURCES[name].growth
    for job in jobs:
        if not job.file:
            Part(job.path(work), job.archive.url)  # forgets what came from another address
    _check_space(jobs, work, growth)
    for job in jobs:
        if job.file:
            checked = _check_local(job)
        else:
            size = fetch(job.archive.url, job.path(work), job.archive.digest, growth)
            checked = _what_was_checked(job.archive.digest, size)
        print(f"{job.archive.name}: {checked}", flush=True)


def _check_local(job):
    """Compare a local archive's checksum; returns what was checked.

    Under the official name a wrong checksum is an error. Under another name the archive may hold the same set packed
    anew: a warning, and what it holds decides.
    """
    try:
        check_digest(job.file, job.archive.digest)
    except UserError as error:
        if job.official:
            raise
        warn(f"{error}; or it was packed anew, and what it holds will tell")
        return "not the official archive; checked is its own structure"
    return _what_was_checked(job.archive.digest, None)


def _check_space(jobs, work, growth):
    """Raise UserError where the disk has no room for all that is still to come and what it unpacks to."""
    check_space(work, sum(_need(job, work, growth) for job in jobs))


def _what_was_checked(digest, size):
    if digest:
        return f"{DIGESTS[len(digest)]} checksum as published"
    sizes = "its size as the server told it and " if size is not None else ""
    return f"no checksum is published; checked are {sizes}the archive's own structure"


def _need(job, work, growth):
    """Bytes that have to be free for one archive and what it unpacks to; 0 where nothing is known before the answer."""
    path = job.path(work)
    if path.exists():
        with _removed_if_bad([job], work):
            return unpacked_size(path, growth)
    part = work / (job.archive.name + ".part")
    size = told_size(job.archive.url) or job.archive.about
    return max(size - (part.stat().st_size if part.exists() else 0), 0) + size * growth


def _unpack(name, jobs, work):
    """Unpack all archives, each on its own first. Returns (the set's folder, {split: pairs}).

    An archive that was fetched and is no good is removed: the next run would only find it again.
    """
    _check_space(jobs, work, SOURCES[name].growth)
    unpacked, alone = work / "unpacked" / "all", work / "unpacked" / "one"
    for i, job in enumerate(jobs):
        with _removed_if_bad([job], work):
            alone.mkdir(parents=True)
            unpack(job.path(work), alone)
            folder = unpacked / job.archive.into
            folder.mkdir(parents=True, exist_ok=True)
            merge(alone, folder, job.path(work), [other.path(work) for other in jobs[:i]])
            shutil.rmtree(alone)
    with _removed_if_bad([job for job in jobs if not job.archive.digest], work):
        return find_set(name, unpacked, SOURCES[name].inner)


@contextlib.contextmanager
def _removed_if_bad(jobs, work):
    """Where the block finds a fault in them, fetched archives go; a local one is the user's and stays."""
    try:
        yield
    except UserError as error:
        fetched = [job for job in jobs if not job.file]
        for job in fetched:
            Part(job.path(work), job.archive.url).remove()
        came = ", ".join(job.archive.url for job in fetched)
        raise UserError(str(error) + (f" (removed: what came from {came})" if came else "")) from None
