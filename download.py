"""Put a data set on disk.

python download.py streets                           render the embedded street scenes into data/streets
python download.py camvid --data-dir DIR             fetch, check and unpack CamVid into DIR
python download.py cityscapes --data-dir DIR         say where to register and what to fetch, and check what DIR holds
python download.py ade20k --url https://mirror/a.zip            from another place
python download.py streethazards --archive a.tar,b.tar          from local files, which stay as they are

Killed or cut off at any moment, the same command goes on: what has arrived is kept in DIR.part, and DIR appears only
once it is complete. Addresses are http or https; http_proxy, https_proxy and no_proxy of the environment are used.
"""

import contextlib
import shlex
import signal
import sys
from multiprocessing import resource_tracker
from pathlib import Path

import cli
from cli import UserError, nearest
from datasets.catalogue import DATASETS
from datasets.fetch.install import count_pairs, is_free, resolve
from datasets.fetch.obtain import counts, install, obtain, plan, require_all
from datasets.fetch.sources import SOURCES
from datasets.streets.render import COUNTS, write_streets


def build_parser():
    """All flags of download.py."""
    parser = cli.Parser(__doc__)
    parser.add_argument("name", metavar="NAME", help=f"the data set: {', '.join(SOURCES)}")
    parser.add_argument("--data-dir", metavar="DIR", help="where it goes; empty: data/NAME")
    parser.add_argument(
        "--url", metavar="U,…", action="append", help="addresses to fetch instead; empty: the set's own"
    )
    parser.add_argument("--archive", metavar="FILE,…", action="append", help="local archives instead; empty: fetch")
    parser.add_argument(
        "--keep-archive", action="store_true", help="leave the fetched archives beside DIR; off: remove"
    )
    return parser


def main():
    """Render, fetch or check the set that was asked for."""
    args = build_parser().parse_args()
    if args.name not in SOURCES:
        hint = "its files are your own" if args.name in DATASETS else nearest(args.name, SOURCES)
        raise UserError(f"no data set {args.name!r} to download", remedy=hint)
    root = Path(args.data_dir or Path("data") / args.name)
    jobs, named = plan(args.name, args.url, args.archive)
    source = SOURCES[args.name]
    if args.name == "streets":
        return render(root, named)
    if source.register and not named:
        return instruct(args.name, root)
    if source.prepare:
        what = f"{args.name} cannot be read as it is unpacked"
        raise UserError(what, remedy=f"unpack it yourself; {source.prepare.replace('DIR', shlex.quote(str(root)))}")
    return obtain(args.name, root, jobs, args.keep_archive)


def render(root, named):
    """Render the embedded scenes unless all of them are there already."""
    if named:
        raise UserError("streets is rendered, not fetched", "--url or --archive", "leave it out")

    def make(work):
        folder = _write_streets(work / "unpacked" / "streets")
        return folder, count_pairs("streets", folder)

    return install("streets", root, make)


def _write_streets(folder):
    """Render into a folder, with progress. Returns it.

    An interrupt waits until the first image is there: the workers that are started before inherit that they wait, and
    leave it to this process.
    """
    folder.parent.mkdir(parents=True)
    progress = cli.Progress(sum(COUNTS.values()), "render", "images")

    def update(done):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        progress.update(done)

    resource_tracker.ensure_running()  # its start, otherwise by the first worker, would let interrupts through
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with contextlib.closing(progress):
            return write_streets(folder, progress=update)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def instruct(name, root):
    """Say where a set comes from that only registered users get, then check what its folder holds."""
    source = SOURCES[name]
    where = shlex.quote(str(root))
    command = f"python download.py {name} --data-dir {where} --archive {','.join(source.files)}"
    print(f"{name} is given to registered users only")
    print(f"  register  {source.register}")
    print(f"  fetch     {', '.join(source.files)}")
    print(f"  unpack    {source.prepare.replace('DIR', where) or command}")
    for i, line in enumerate(source.layout):
        print(f"  {'' if i else 'layout':9} {root}/{line}")
    sys.stdout.flush()
    if is_free(resolve(root)):
        raise UserError(f"no {name} yet", root, "register, fetch and unpack as told above")
    pairs = count_pairs(name, root)
    require_all(name, root, pairs, "unpack all files named above once more")
    print(f"complete: {counts(pairs)} images with masks in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
