"""The figures of a notebook as files, for slides and handouts.

Each figure becomes a PNG, and ``captions.md`` shows them all with their descriptions,
so that nobody has to write alt text a second time:

    python3 -m course run docs/export_figures.py ch03 my-slides

The files go into a folder ``my-slides`` that is not there yet.
"""

import argparse
import base64
import json
from pathlib import Path

from course.running import targets


def figures(notebook: Path) -> list[tuple[str, bytes, str]]:
    """Return [(name, PNG, description)] of the figures that a notebook shows."""
    found = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                png = base64.b64decode("".join(output["data"]["image/png"]))
                alt = "".join(output["data"]["text/plain"])
                name = f"{notebook.stem}-{len(found) + 1:02d}-{cell['id']}"
                found.append((name, png, alt))
    return found


def export(notebook: Path, folder: Path) -> int:
    """Write the figures of a notebook and their captions; return how many there are."""
    found = figures(notebook)
    folder.mkdir(parents=True)
    lines = [f"# Figures of {notebook.name}", ""]
    for name, png, alt in found:
        (folder / f"{name}.png").write_bytes(png)
        lines += [
            f"![{alt.replace('[', '(').replace(']', ')')}]({name}.png)",
            "",
            alt,
            "",
        ]
    (folder / "captions.md").write_text("\n".join(lines), encoding="utf-8")
    return len(found)


def main() -> int:
    """Export the figures of what the command line names; return an exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("notebook", help="ch03, a folder, or FILE.ipynb")
    parser.add_argument("folder", type=Path, help="where to; not there yet")
    options = parser.parse_args()
    path = targets.find(options.notebook)
    notebook = targets.main_notebook(path) if path.is_dir() else path
    if options.folder.exists():
        parser.error(f"{options.folder} is there already; choose another name")
    count = export(notebook, options.folder)
    print(f"{count} figures of {targets.shown(notebook)} in {options.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
