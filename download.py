"""Put a data set on disk.

python download.py streets                       render the embedded street scenes into data/streets
python download.py streets --data-dir DIR        elsewhere
"""

import sys
from pathlib import Path

import flags
import report
import synthetic
from flags import UserError


def build_parser():
    """All flags of download.py."""
    parser = flags.Parser(__doc__)
    parser.add_argument("name", choices=("streets",), help="the data set")
    parser.add_argument("--data-dir", metavar="DIR", help="where it goes; empty: data/NAME")
    return parser


def main():
    """Render the scenes unless they are there already."""
    args = build_parser().parse_args()
    root = Path(args.data_dir or Path("data") / args.name)
    if root.exists():
        if not (root / "train" / "images" / "training").is_dir():
            raise UserError("this is no streets folder", root, "remove it, or choose another --data-dir")
        print(f"{root} is there already")
        return 0
    progress = report.Progress(sum(synthetic.COUNTS.values()), "render", "images")
    synthetic.write_streets(root, progress=progress.update)
    progress.close()
    print(f"{args.name} is in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
