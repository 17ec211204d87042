"""Follow docs/quickstart.md word for word as a new user would: an environment of its own, every command, every Python block.

    python scripts/follow_quickstart.py dist/loraprune-0.1.0-py3-none-any.whl FOLDER

The wheel stands in for the name of the package, as that is on no index yet; `PIP_CONSTRAINT` and `PIP_FIND_LINKS` are pip's own. Takes
as long as the quick start does, and the installation. Ends with an error at the first step that fails, or if the three programs write
different texts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quickstart.md"
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGE = re.compile(r'"loraprune(\[[\w,]+\])"')
PROMPT, LETTERS = "import os\n\ndef ", 20
"""what the page asks, and how much of the answers must be the same: llama.cpp computes with 16 bits, and tokens are not letters"""


def steps(page: str) -> list[tuple[str, str]]:
    """Return ("bash" or "python", code) of every block of the page, in order."""
    found = [(match["kind"].strip(), match["code"]) for match in BLOCK.finditer(page)]
    return [("python" if kind.startswith("python") else "bash", code) for kind, code in found]


def follow(kind: str, code: str, folder: Path, wheel: Path) -> str:
    """Carry a step out and return what it prints; it is shown too."""
    print(f"\n--- {kind}\n{code}---", flush=True)
    if kind == "bash":
        code = PACKAGE.sub(rf'"{wheel}\1"', code)
        words = ["bash", "-ec", f"[ ! -e env ] || source env/bin/activate\n{code}"]
    else:
        words = [str(folder / "env" / "bin" / "python"), "-c", code]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=folder, env=clean, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"the step ended with exit code {done.returncode}")
    return done.stdout


def answer(printed: str) -> str:
    """Return the beginning of what a program wrote behind the prompt; two of three repeat it or a special token before."""
    return printed.replace("<s>", "").strip().removeprefix(PROMPT.strip()).lstrip()[:LETTERS]


def main() -> None:
    """Follow the page."""
    wheel, folder = (Path(word).resolve() for word in sys.argv[1:3])
    folder.mkdir(parents=True)
    printed = [(kind, follow(kind, code, folder, wheel)) for kind, code in steps(PAGE.read_text(encoding="utf-8"))]
    answers = [answer(text) for kind, text in printed if kind == "python"]
    if not (folder / "small" / "report.html").is_file() or len(set(answers)) != 1 or not answers[0]:
        sys.exit(f"the programs write different texts, or there is no report: {answers}")
    print(f"followed: {len(printed)} steps; {len(answers)} programs write {answers[0]!r}")


if __name__ == "__main__":
    main()
