"""Draw the live table of a running lab as docs/images/live-table.svg: `.venv/bin/python tools/picture_of_table.py STATE`."""

import io
import sys
from pathlib import Path

from rich.console import Console

from qtrunk.cli import show
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab


def main() -> None:
    """Draw it."""
    console = Console(record=True, width=126, file=io.StringIO(), highlight=False)
    console.print(show.overview(LabClient(Lab.open(Path(sys.argv[1]))).status()))
    path = Path(__file__).parent.parent / "docs" / "images" / "live-table.svg"
    path.parent.mkdir(exist_ok=True)
    console.save_svg(str(path), title="qtrunk up beijing-xiongan")


if __name__ == "__main__":
    main()
