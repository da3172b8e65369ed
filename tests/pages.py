"""Pages of the documentation, taken apart for the tests: code blocks, commands, settings, options, links, paths."""

import re
import shlex
from pathlib import Path

import typer
import yaml

from cad.cli.main import app

ROOT = Path(__file__).parents[1]
DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PROGRAMS = ("cad", "dvc", "make", "python", "pytest", "pip", "accelerate", "torchrun")
FILES = ("ckpt", "csv", "json", "lock", "md", "onnx", "parquet", "png", "py", "safetensors", "txt", "yaml")


class Page:
    """A page's text by its kinds; `shell`: the lines of its code blocks, `spans`: what running text marks as code."""

    def __init__(self, path: Path):
        self.folder, self.name = path.parent, path.relative_to(ROOT).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.blocks = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)
        self.spans = re.findall(r"`([^`]+)`", prose)
        self.links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
        self.shell = [line for kind, block in self.blocks if kind == "sh" for line in block.splitlines()]
        named = [span for span in self.spans if span.split()[0] in PROGRAMS and "..." not in span]  # `...`: not whole
        self.commands = [shlex.split(text, comments=True) for text in self.shell + named]

    def calls(self, program: str) -> list[list[str]]:
        """Arguments of every call of a program; of `cad` also where a launcher starts it as a module."""
        found = [words[1:] for words in self.commands if words[:1] == [program]]
        if program == "cad":
            launched = [words for words in self.commands if "cad.cli.main" in words]
            found += [words[words.index("cad.cli.main") + 1 :] for words in launched]
        return [arguments for arguments in found if arguments]

    def paths(self) -> set[str]:
        """What has a slash in the running text."""
        return {span for span in self.spans if re.fullmatch(r"[\w.@-]*(/[\w.@-]+)+/?|[\w.@-]+/", span)}

    def dotted(self) -> set[str]:
        """Names with dots, without the value that may stand behind, that are no files."""
        named = (re.fullmatch(r"(\w+(?:\.\w+)+)(?:(?:: |=).*)?", span) for span in self.spans)
        return {match[1] for match in named if match and match[1].rpartition(".")[2] not in FILES}

    def options(self) -> set[str]:
        """Options that the running text names by themselves."""
        return {span.split()[0].partition("=")[0] for span in self.spans if span.startswith("--")}


PAGES = [Page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def parse(arguments: list[str], whole: bool) -> None:
    """Parse a call of `cad` without running it; ends in an exception for what it does not know.

    Unless it has to be whole, a group or a command may stand by its name alone.
    """
    command, rest = typer.main.get_command(app), list(arguments)
    while hasattr(command, "commands"):
        if not rest and not whole:
            return
        assert rest, f"cad {' '.join(arguments)} names a group"
        name = rest.pop(0)
        assert name in command.commands, f"cad {' '.join(arguments)}: there is no {name}"
        command = command.commands[name]
    if rest or whole or not any(each.required for each in command.params):
        command.make_context("cad", rest)  # an unknown option, a missing or superfluous argument


def known_options() -> set[str]:
    """The options of all of cad's commands."""
    found, waiting = set(), [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        found |= {option for each in command.params for option in each.opts}
        waiting += getattr(command, "commands", {}).values()
    return found


def outputs() -> list[str]:
    """Outputs of dvc.yaml, the entry's name written as the README writes it."""
    stages = [body.get("do", body) for body in DAG.values()]
    outs = [out for stage in stages for out in [*stage["outs"], *stage.get("metrics", [])]]
    return [(next(iter(out)) if isinstance(out, dict) else out).replace("${key}", "ENTRY") for out in outs]
