"""Draw the live table of a running lab as docs/images/live-table.svg: `python tools/picture_of_table.py STATE`."""

import io
import re
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
    picture = console.export_svg(title="qtrunk up beijing-xiongan")
    # The exported picture wants web fonts; the reader's own monospace font will do, and nothing is fetched.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    path.write_text(picture)


if __name__ == "__main__":
    main()
