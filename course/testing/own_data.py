"""A chapter's notebook on a file of the reader's own, in seconds.

Only `DATA` in its cell `setup` changes. The pretrained model is a tiny one with random
weights: what the chapter claims about SmolLM2 and the course's own data is not at stake
then, and everything else is.
"""

from __future__ import annotations

from pathlib import Path

from nbformat.v4 import new_code_cell

from course.running import notebooks

TINY_MODEL = """
import pretrained
import tiktoken
import torch
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2


def load_tiny(name):
    sizes = dict(context_length=400, emb_dim=32, n_heads=4, n_layers=3)
    cfg = {**GPT_CONFIG_124M, **sizes, "drop_rate": 0.0, "tie_weights": True}
    torch.manual_seed(1)
    model = initialise_like_gpt2(GPTModel(cfg)).eval()
    return pretrained.Pretrained(model, tiktoken.get_encoding("gpt2"), model.cfg)


pretrained.load_pretrained = load_tiny
"""


def printed_on(path: Path, data: Path) -> dict[str, str]:
    """Run a notebook up to its exercises on other data; what each code cell printed.

    Raises what `notebooks.execute` raises when a cell fails.
    """
    notebook = notebooks.read(path)
    by_id = {cell.id: cell for cell in notebook.cells}
    setup = by_id["setup"]
    if setup.source.count("DATA = None") != 1:
        raise ValueError(f"{path}: the cell `setup` must say DATA = None, once.")
    setup.source = setup.source.replace("DATA = None", f"DATA = {str(data)!r}")
    del notebook.cells[notebook.cells.index(by_id["exercises"]) :]
    notebook.cells.insert(0, new_code_cell(TINY_MODEL))
    notebooks.execute(path, notebook)
    return {
        cell.id: "".join(out.get("text", "") for out in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
