"""The README's Python blocks run as pasted, one after another, and its pictures and links to files exist."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert list(tmp_path.glob("*.png"))


def test_the_install_lines_bring_what_the_python_blocks_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert 'pip install "diffae_hub[demo]"' in README
    requirements = project["dependencies"] + project["optional-dependencies"]["demo"]
    installed = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements} | {project["name"]}
    imported = {
        name.split(".")[0]
        for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
        for node in ast.walk(ast.parse(block))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
        )
    }
    distributions = importlib.metadata.packages_distributions()
    assert "sklearn" in imported
    for module in imported - sys.stdlib_module_names - {project["name"]}:
        assert installed & {name.lower() for name in distributions[module]}, module


@pytest.mark.parametrize("document", [*sorted(path.name for path in ROOT.glob("*.md")), "model_cards", "examples"])
def test_local_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for file in sorted(path.glob("*.md")) if path.is_dir() else [path]:
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            if "://" not in target:
                assert (file.parent / target).exists(), f"{file.name}: {target}"
