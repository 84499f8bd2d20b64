"""One folder to work in beside a data set's own, and one rename when all is done.

ROOT.part beside ROOT holds all that is unfinished: the archives, what they unpack to, and a lock that the operating
system drops when the process ends, however it ends. The lock's file and what it says mark the folder as one to remove;
it is the first thing there and the last to go. ROOT itself appears whole or not at all.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil

from cli import UserError
from datasets.catalogue import build_spec
from datasets.pairs import find_pairs

LOCK = "honestseg-download.lock"
MARK = b"download.py of honestseg works in this folder and removes all of it in the end\n"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class BusyError(UserError):
    """Another process holds the working folder."""


def resolve(root):
    """The path with its links followed. Raises UserError where they go in a circle."""
    try:
        target = root.resolve()
    except RuntimeError:  # up to Python 3.12; later ones leave the link standing
        target = root
    if target.is_symlink():
        raise UserError("this link leads to itself", root, "remove it, or choose another --data-dir")
    return target


def working_name(root):
    """The path of the folder to work in. Raises UserError for the topmost folder, which has nothing beside it."""
    if not root.name:
        raise UserError("no set can replace the topmost folder", root, "name a folder below it")
    return root.with_name(root.name + ".part")


def is_ours(folder):
    """Whether a folder was made to work in: everything in it is removed in the end."""
    path = folder / LOCK
    return path.is_file() and path.stat().st_size == len(MARK) and path.read_bytes() == MARK


def is_free(root):
    """Whether a set can be installed at a path: nothing there, or an empty folder.

    Raises UserError for a file, for a disk's own folder, which no rename can replace, and for the one we are in, which
    would be another one afterwards.
    """
    if not root.exists():
        return True
    if not root.is_dir():
        raise UserError("this is a file", root, "choose another --data-dir")
    if any(root.iterdir()):
        return False
    if os.path.ismount(root):
        raise UserError("a disk is mounted here, no folder can be renamed to it", root, "name a folder below it")
    if root.samefile("."):
        raise UserError("the set would replace the current folder", root, "run this from another folder")
    return True


@contextlib.contextmanager
def working_folder(root):
    """The folder ROOT.part, made where it is missing and held against other processes.

    It stays as long as there is anything in it that a later run can use.
    Raises BusyError where another process holds it, UserError where such a folder is there that is none of ours.
    """
    folder = working_name(root)
    # Our lock's file alone, and empty, is left by a process that was killed before it could write into it.
    if folder.is_dir() and not is_ours(folder) and any(path.name != LOCK for path in folder.iterdir()):
        raise UserError(
            "this folder is needed and holds something else", folder, "move it, or choose another --data-dir"
        )
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, _hold(folder))
        stack.callback(_clear_if_useless, folder)
        yield folder


def _clear_if_useless(folder):
    if folder.exists() and all(path.name == LOCK or path.suffix == ".json" for path in folder.iterdir()):
        clear(folder)


def _hold(folder):
    """Lock a folder and mark it as ours; returns the lock's file descriptor."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        try:
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # the process before us has just cleared the folder away
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                os.pwrite(lock, MARK, 0)
                return lock
        except BlockingIOError:
            os.close(lock)
            raise BusyError(
                "another download is at work", folder, "wait for it, or choose another --data-dir"
            ) from None
        except FileNotFoundError:  # it cleared the folder away before we had the lock
            pass
        except OSError as error:
            os.close(lock)
            if error.errno not in NO_LOCKS:
                raise
            clear(folder)
            raise UserError(f"this disk knows no locks ({error.strerror})", folder, "choose another disk") from None
        os.close(lock)


def count_pairs(name, root):
    """{split: number of images with a mask} of the set in a folder. Raises UserError where a split is not whole."""
    spec = build_spec(name, root)
    splits = dict.fromkeys((*spec.splits, *spec.cut))
    return {split: len(find_pairs(spec, root, split)) for split in splits}


def find_set(name, unpacked, inner):
    """The folder among what was unpacked that is the data set: the deepest of the candidates that is whole.

    Returns (folder, {split: pairs}). Raises UserError, with what is missing, where none is.
    """
    faults = {}
    for folder in reversed(_candidates(unpacked, inner)):
        try:
            return folder, count_pairs(name, folder)
        except UserError as error:
            faults[folder] = str(error)
    telling = next((folder for folder in faults if _begins(name, folder)), unpacked)
    fault = faults[telling].replace(f"{unpacked}/", "").replace(str(unpacked), "its top")
    what = f"what was unpacked is no complete {name} set ({fault})"
    raise UserError(what, remedy="check that these are the right archives, and all of them")


def _begins(name, folder):
    """Whether any of the folders that the set has at its top is here: then what is missing is worth telling."""
    try:
        splits = build_spec(name, folder).splits.values()
    except UserError:  # no form of it at all
        return False
    return any((folder / part.partition("/")[0]).is_dir() for parts in splits for part in parts)


def _candidates(unpacked, inner):
    """The unpacked folder, those it holds and nothing else beside, and in each the folder `inner`."""
    folders = [unpacked]
    while len(visible := _visible(folders[-1])) == 1 and visible[0].is_dir():
        folders += visible
    return folders + [folder / inner for folder in folders if inner and (folder / inner).is_dir()]


def _visible(folder):
    """What a folder holds, but for hidden files and those that macOS adds to archives."""
    return [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]


def commit(folder, root):
    """Rename a finished folder to the set's own, on disk. Raises UserError where something has appeared there."""
    os.sync()  # all of its files, before their names count
    try:
        os.rename(folder, root)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError("something has appeared here meanwhile", root, "remove it and run again") from None
    parent = os.open(root.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the new name itself
    finally:
        os.close(parent)


def clear(folder, keep=()):
    """Remove the working folder; the files in `keep` that lie in it go beside it. Returns their new paths.

    The lock, which marks the folder as ours, goes last: a run after one that was killed in here goes on.
    """
    kept = []
    for path in keep:
        if path.parent == folder and path.exists():
            kept.append(_free_name(folder.parent / path.name))
            os.rename(path, kept[-1])
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / LOCK).unlink()
    folder.rmdir()
    return kept


def _free_name(path):
    """The path, with a number before its name where something is there already."""
    names = (path.with_name(f"{i}-{path.name}") for i in itertools.count(1))
    return next(name for name in itertools.chain([path], names) if not name.exists())
