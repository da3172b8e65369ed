"""The map held to the sources, without importing them.

Symbols must exist, the docstrings of what claims to be a section or an equation must name it, parameters must be in the
profiles (with the paper's number in `paper`), stages in dvc.yaml; and the row of an equation or a figure that some
docstring names must have a symbol.
"""

import ast
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cad.papermap.entries import EQUATIONS, IMPLEMENTED, PARTLY, PARTS, SECTIONS, SETTINGS, STATES, Entry

OWN = "cad.papermap"  # its docstrings name parts as examples
OBJECT = "experiments/object/robot.yaml"  # stands for any object: `objects.robot.*` are its settings
NULL = "null"  # what a profile does not use


def docstrings(root: Path) -> dict[str, str]:
    """Docstring ("" for none) of every module, class, function, method and module-level name of `cad`, by symbol."""
    found: dict[str, str] = {}
    for file in sorted((root / "cad").rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found[module] = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {f"{module}:{target.id}": "" for target in targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[f"{module}:{node.name}"] = ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                found |= {f"{module}:{node.name}.{each.name}": ast.get_docstring(each) or "" for each in methods}
    return found


def references(text: str) -> set[str]:
    """Parts of the paper that a text names, e.g. "Sec. 3.2 and 4" or "Eq. 7 (loss), Eq. 8", as `PARTS` spells them."""
    kinds = {"Sec.": "Sec.", "Section": "Sec.", "App.": "App.", "Appendix": "App.", "Eq.": "Eq.", "Fig.": "Fig."}
    kinds |= {"Table": "Table", "Tab.": "Table"}
    number = r"(?:[A-D]\b|\d+(?:\.\d)?)"
    pattern = rf"\b({'|'.join(map(re.escape, kinds))})\s+({number}(?:(?:, | and | to ){number})*)"
    named = {f"{kinds[k]} {n}" for k, ns in re.findall(pattern, text) for n in re.findall(number, ns)}
    return named & set(PARTS)


def faults(root: Path, entries: list[Entry]) -> list[str]:
    """One line for every claim of the entries that the sources below `root` do not bear out."""
    yaml = YAML(typ="safe")
    named = docstrings(root)
    stages = yaml.load(root / "dvc.yaml")["stages"]
    profiles = {name: yaml.load(root / f"experiments/profile/{name}.yaml") for name in ("paper", "mini")}
    subject = yaml.load(root / OBJECT)
    found = [f"{part}: has no row" for part in PARTS if part not in {entry.part for entry in entries}]
    for entry in entries:
        where = f"{entry.part} ({entry.says.split('.')[0]})"
        symbols, parameters = entry.symbols.split(), entry.parameters.split()
        needs = {IMPLEMENTED: symbols, PARTLY: symbols, SETTINGS: parameters and not symbols}
        if not needs.get(entry.state, not (symbols or parameters)) or entry.state not in STATES:
            found.append(f"{where}: is {entry.state!r}, which its symbols and parameters do not fit")
        found += [f"{where}: there is no {symbol}" for symbol in symbols if symbol not in named]
        if entry in SECTIONS + EQUATIONS and entry.part != "Sec. 3":
            silent = [symbol for symbol in symbols if not _names(symbol, entry.part, named)]
            found += [f"{where}: the docstring of {symbol} does not name it" for symbol in silent]
        found += [f"{where}: dvc.yaml has no stage {stage}" for stage in entry.stages.split() if stage not in stages]
        for parameter in parameters:
            for name, profile in profiles.items():
                value = _value({**profile, **subject}, parameter)
                if value is None:
                    found.append(f"{where}: profile {name} has no {parameter}")
                elif name == "paper" and entry.value is not None and value != entry.value:
                    found.append(f"{where}: {parameter} is {value!r} in the profile paper, not {entry.value!r}")
    shown = {entry.part for entry in entries if entry.symbols}
    for symbol, text in named.items():
        claims = {part for part in references(text) if part.startswith(("Eq.", "Fig."))} - shown
        if not symbol.startswith(OWN):
            found += [f"{part}: {symbol} names it, but its row has no symbol" for part in sorted(claims)]
    return found


def _names(symbol: str, part: str, named: dict[str, str]) -> bool:
    """Whether a symbol's docstring names the part; for a section its class's or module's docstring will do too."""
    texts = [named.get(symbol, "")]
    if not part.startswith("Eq."):
        texts += [named.get(symbol.rpartition(".")[0], "") if "." in symbol.partition(":")[2] else ""]
        texts += [named.get(symbol.partition(":")[0], "")]
    return any(part in references(text) for text in texts)


def _value(content: Any, path: str) -> Any:
    """What stands at a path; `NULL` at or below a key that is written as null, None where there is no such key."""
    for key in path.split("."):
        if not isinstance(content, dict) or key not in content:
            return None
        if (content := content[key]) is None:
            return NULL
    return content
