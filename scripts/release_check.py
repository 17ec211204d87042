"""Build wheel and sdist, look into both, and run the wheel in an environment where the project was never installed.

python scripts/release_check.py [FOLDER]     # where both are left; without it they are thrown away

The wheel is built from the sdist, so that one proves the other. The new environment borrows the libraries of the one that runs this
script: torch is not downloaded again, and only the package itself is new.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    "py.typed", "models/demo/model.safetensors", "models/demo/tokenizer.json", "models/known_shapes.yaml",
    "models/layerwise/modeling_loraprune.py", "reporting/html/report.html.j2", "config/recipes/paper.yaml",
    "config/recipes/best.yaml", "config/recipes/layerwise.yaml",
)  # fmt: skip
"""what is needed at run time and is easily forgotten"""
SOURCES = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "zensical.toml", "tests/conftest.py",
           "docs/index.md", "configs/criteria.yaml")  # fmt: skip
EXTRAS = {"docs", "dev", "eval", "export", "metrics", "quant", "report", "test"}
WHEEL_BYTES_AT_MOST = 16 << 20


class ReleaseError(Exception):
    """Something that must not be released."""


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return what it prints, or show what it printed and stop."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def build(folder: Path) -> tuple[Path, Path]:
    """Return the new wheel and sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def missing(wanted: Iterable[str], names: Iterable[str], where: str) -> list[str]:
    """Return a line for every name that is wanted and not there."""
    return [f"{where} lacks {name}" for name in sorted(set(wanted) - set(names))]


def wheel_problems(wheel: Path, version: str) -> list[str]:
    """Return a line for everything that is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"loraprune-{version}.dist-info"
        found = missing([*(f"loraprune/{name}" for name in SHIPPED), f"{info}/licenses/LICENSE"], names, wheel.name)
        found += [
            f"{wheel.name} has {name}: only loraprune/ belongs into it"
            for name in names
            if not name.startswith((f"{info}/", "loraprune/"))
        ]
        found += [f"{wheel.name} has {name}" for name in names if "__pycache__" in name or "/tests/" in name]
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    found += missing(EXTRAS, metadata.get_all("Provides-Extra") or [], f"{wheel.name}: its extras")
    if metadata["License-Expression"] != "Apache-2.0":
        found.append(f"{wheel.name}: its licence is {metadata['License-Expression']}")
    if wheel.stat().st_size > WHEEL_BYTES_AT_MOST:
        found.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes, more than {WHEEL_BYTES_AT_MOST:,}")
    return found


def sdist_problems(sdist: Path) -> list[str]:
    """Return a line for everything that is wrong with an sdist."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    unwanted = [name for name in names if name.startswith(("build/", "dist/", ".venv/", "site/"))]
    wanted = [*SOURCES, *(f"src/loraprune/{name}" for name in SHIPPED)]
    return missing(wanted, names, sdist.name) + [f"{sdist.name} has {name}" for name in unwanted]


def try_wheel(wheel: Path, version: str, folder: Path) -> None:
    """Install a wheel into a new environment and run its entry point there."""
    home = folder / "environment"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path file inside of a folder that a path file names is not read: an editable install there stays out of sight.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    place = run(
        python, "-c", "import loraprune, importlib.metadata as m; print(loraprune.__file__, m.version('loraprune'))",
        cwd=elsewhere,
    )  # fmt: skip
    if not place.startswith(str(packages)) or not place.strip().endswith(version):
        raise ReleaseError(f"another loraprune was imported than the wheel's: {place}")
    command = home / "bin" / "loraprune"
    if "prune" not in run(command, "--help", cwd=elsewhere):
        raise ReleaseError("loraprune --help does not name its commands")
    family = json.loads(run(command, "inspect", "--model", "demo", "--json", cwd=elsewhere))["family"]
    if family != "llama":
        raise ReleaseError(f"the embedded model is a {family} there")


def main() -> int:
    """Do it all, and say what was found."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "dist"
        try:
            wheel, sdist = build(folder)
            version = wheel.name.split("-")[1]
            problems = wheel_problems(wheel, version) + sdist_problems(sdist)
            if problems:
                raise ReleaseError("\n".join(problems))
            try_wheel(wheel, version, Path(temporary))
        except ReleaseError as error:
            print(error, file=sys.stderr)
            return 1
        sizes = ", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in (wheel, sdist))
    print(f"{sizes}: complete, and loraprune {version} runs from the wheel")
    return 0


if __name__ == "__main__":
    sys.exit(main())
