"""The notebook runs from top to bottom: its cells as one program, which needs no Jupyter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.ipynb")))
def test_the_cells_run_in_order_and_are_stored_without_results(name):
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    # What stands last in a cell is shown by Jupyter: here it is only evaluated.
    program = "\n".join("".join(cell["source"]) for cell in code)
    program += "\nassert judged.frame.query(\"run == 'model' and metric == 'auc'\")['value'].iloc[0] > 0.55\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=EXAMPLES, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
