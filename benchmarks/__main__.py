"""`make bench`: every benchmark that needs no data of one's own, one after another; `python benchmarks NAME ...` runs some.

Each prints ratios measured side by side in one run. Those that need a prepared folder say so under `--help`:
`python benchmarks/baselines.py --help`.
"""

import subprocess
import sys
from pathlib import Path

ALONE = ("startup", "pretrain_packing", "metrics", "retrieve", "counters", "preprocess")


def main() -> None:
    names = sys.argv[1:] or ALONE
    folder = Path(__file__).parent
    failed = []
    for name in names:
        if not (folder / f"{name}.py").exists():
            known = sorted(file.stem for file in folder.glob("[a-z]*.py"))
            sys.exit(f"error: no benchmark '{name}'. Known: {', '.join(known)}.")
        print(f"\n== {name} ==", flush=True)
        if subprocess.run([sys.executable, str(folder / f"{name}.py")], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
