"""The settings of a run: `params.yaml`, checked once, before anything is computed.

A singular section (`prior`) holds the settings of a stage; the plural table beside it (`priors`) holds its entries. An
entry names its upstream entry and may override any setting of its section, which is all that an ablation is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cad.config.explain import unknown, validate
from cad.config.refine import RefineSettings
from cad.config.rules import check_clamps, check_groups, check_patch
from cad.config.sections import (
    CameraSettings,
    CaseSettings,
    Count,
    ElevationSettings,
    EvaluateSettings,
    InputSettings,
    ModelPaths,
    Name,
    ObjectSettings,
    OrbitSettings,
    PluginScorerSettings,
    PriorSettings,
    PruneSettings,
    ReportSettings,
    RuntimeSettings,
    ScorerSettings,
    Section,
    ToyworldSettings,
    TrackingSettings,
)
from cad.config.training import DiscriminatorSettings, GeneratorSettings, Stage1Settings, Stage2Settings
from cad.errors import UserError

__all__ = [
    "CameraSettings",
    "CaseSettings",
    "Count",
    "DiscriminatorSettings",
    "ElevationSettings",
    "EvaluateSettings",
    "GeneratorSettings",
    "InputSettings",
    "ModelPaths",
    "ObjectSettings",
    "OrbitSettings",
    "Params",
    "PluginScorerSettings",
    "PriorSettings",
    "PruneSettings",
    "RefineSettings",
    "ReportSettings",
    "RuntimeSettings",
    "ScorerSettings",
    "Section",
    "Stage1Settings",
    "Stage2Settings",
    "ToyworldSettings",
    "TrackingSettings",
    "check",
    "load",
    "validate",
]

Table = dict[Name, dict[str, Any]]

# section -> (its table, the key by which an entry names its upstream), in the order of the data flow
TABLES = {
    "input": ("inputs", "object"),
    "prior": ("priors", "input"),
    "prune": ("prunes", "prior"),
    "refine": ("refines", "prune"),
    "stage1": ("stage1s", "refine"),
    "stage2": ("stage2s", "stage1"),
    "orbit": ("orbits", "stage2"),
    "evaluate": ("evaluations", "orbit"),
}
# networks have no table of their own: an entry of the stage that builds them overrides them under their name
NETWORKS = {"generator": "stage1", "discriminator": "stage1"}


class Params(Section):
    """Everything in `params.yaml`."""

    profile: Name = Field(description="the profile that was composed; a label, no stage reads it")
    seed: int = Field(ge=0, description="root of all randomness")
    runtime: RuntimeSettings
    tracking: TrackingSettings
    camera: CameraSettings
    models: ModelPaths
    objects: dict[Name, ObjectSettings]
    cases: dict[Name, CaseSettings] = Field(default={}, description="objects that the paper names; may be left out")
    elevation: ElevationSettings
    input: InputSettings
    inputs: Table
    prior: PriorSettings
    priors: Table
    prune: PruneSettings
    prunes: Table
    refine: RefineSettings
    refines: Table
    generator: GeneratorSettings
    discriminator: DiscriminatorSettings
    stage1: Stage1Settings
    stage1s: Table
    stage2: Stage2Settings
    stage2s: Table
    orbit: OrbitSettings
    orbits: Table
    evaluate: EvaluateSettings
    evaluations: Table
    report: ReportSettings

    @model_validator(mode="after")
    def _entries_are_sound(self) -> Self:
        """Resolve every entry once, so that a fault in a table shows before the first stage runs."""
        for section, (table, _) in TABLES.items():
            for entry in getattr(self, table):
                self.resolve(section, entry)
                self._check_name(section, table, entry)
        for entry in self.refines:
            self._check_refiner(entry)
        for entry in self.stage1s:
            self._check_networks(entry)
        for entry in self.stage2s:
            self._check_branch(entry)
        for row, entry in self.report.rows.items():
            if entry not in self.evaluations:
                raise UserError(f"report.rows.{row}: {unknown('evaluation', entry, self.evaluations)}")
        return self

    def resolve(self, section: str, entry: str) -> tuple[Any, str]:
        """The settings of `section` with the entry's overrides, and the name of its upstream entry (or object).

        For a network's section (generator, discriminator) the entry is one of `stage1s`, where it may be overridden by
        `generator: {...}`.
        Raises UserError with the full path of a fault.
        """
        stage = NETWORKS.get(section, section)
        table, link = TABLES[stage]
        entries: Table = getattr(self, table)
        if entry not in entries:
            raise UserError(f"{table}.{entry}: {unknown('entry', entry, entries)}")
        overrides = dict(entries[entry])
        upstream = overrides.pop(link, None)
        if upstream not in (above := self._upstream_entries(stage)):
            raise UserError(f"{table}.{entry}.{link}: {unknown(link, upstream, above)}")
        networks = {name: overrides.pop(name, {}) for name, owner in NETWORKS.items() if owner == stage}
        where = f"{table}.{entry}"
        if section in networks:
            overrides, where = networks[section], f"{where}.{section}"
            if not isinstance(overrides, dict):
                raise UserError(f"{where}: holds no mapping; write the settings to override under it")
        settings: Section = getattr(self, section)
        return validate(type(settings), _overridden(settings, overrides), f"{where}."), upstream

    def object_of(self, section: str, entry: str) -> str:
        """The object that an entry is about, found by walking up the tables."""
        return self.ancestors(section, entry)["object"]

    def ancestors(self, section: str, entry: str) -> dict[str, str]:
        """Names of the entries above this one, by stage, from the nearest up to the `object`."""
        found = {}
        while section != "object":
            _, entry = self.resolve(section, entry)
            section = TABLES[section][1]
            found[section] = entry
        return found

    def _upstream_entries(self, stage: str) -> Table | dict[str, ObjectSettings]:
        link = TABLES[stage][1]
        return self.objects if link == "object" else getattr(self, TABLES[link][0])

    def _check_name(self, section: str, table: str, entry: str) -> None:
        """Entries share the folder runs/, so each carries its object's name."""
        name = self.object_of(section, entry)
        if entry != name and not entry.startswith(f"{name}-"):
            raise UserError(f"{table}.{entry}: is about the object {name}; rename it to {name} or {name}-SOMETHING")

    def _check_refiner(self, entry: str) -> None:
        """What a refiner loads must be named."""
        settings = self.resolve("refine", entry)[0]
        for field in settings.models:
            if getattr(self.models, field) is None:
                raise UserError(
                    f"models.{field}: is null, but refines.{entry} refines by {settings.kind}; "
                    "name a local folder or a Hugging Face id"
                )

    def _check_networks(self, entry: str) -> None:
        """What several sections must agree on for stage 1."""
        generator, _ = self.resolve("generator", entry)
        discriminator, _ = self.resolve("discriminator", entry)
        side = self.resolve("input", self.ancestors("stage1", entry)["input"])[0].resolution
        if generator.output_resolution != side:
            raise UserError(
                f"generator.output_resolution: is {generator.output_resolution}, but the samples of stage1s.{entry} "
                f"have {side} px; make it equal to input.resolution"
            )
        with _named(f"stage1s.{entry}"):
            stage1 = self.resolve("stage1", entry)[0]
            check_groups("stage1", stage1.batch, discriminator.mbstd_group)
            clamps = (generator.activation_clamp, discriminator.activation_clamp)
            check_clamps("stage1", (stage1.precision, stage1.plane_precision), clamps)

    def _check_branch(self, entry: str) -> None:
        """What stage 2 must agree on with the networks that stage 1 hands it."""
        stage2, upstream = self.resolve("stage2", entry)
        with _named(f"stage2s.{entry}"):
            generator, discriminator = (self.resolve(section, upstream)[0] for section in NETWORKS)
            check_groups("stage2", stage2.batch, discriminator.mbstd_group)
            clamps = (generator.activation_clamp, discriminator.activation_clamp)
            check_clamps("stage2", (stage2.precision, stage2.plane_precision), clamps)
            if stage2.branch_3d:
                check_patch(stage2.patch_size, generator.output_resolution)


def _overridden(settings: Section, overrides: dict[str, Any]) -> dict[str, Any]:
    """The values of a section under an entry's overrides; a section within it is overridden key by key, too."""
    values = settings.model_dump() | overrides
    for key, value in overrides.items():
        if isinstance(nested := getattr(settings, key, None), Section) and isinstance(value, dict):
            values[key] = _overridden(nested, value)
    return values


@contextmanager
def _named(entry: str) -> Iterator[None]:
    """Say of which entry a UserError speaks."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (of {entry})") from None


def load(path: Path) -> Params:
    """Read and check a settings file; raises UserError that names the file and the faulty key with its full path."""
    try:
        values = YAML(typ="safe").load(path)  # DVC's parser: 1e-3 is a number, and repeated keys are refused
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; run from the repository's root or name it with --params") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (YAMLError, UnicodeDecodeError) as error:
        line = f"line {mark.line + 1}, " if (mark := getattr(error, "problem_mark", None)) else ""
        problem = getattr(error, "problem", None) or "no text"
        raise UserError(f"{path}: {line}is no valid YAML ({problem}); correct it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping; compose it with `dvc exp run -S profile=mini`")
    return check(values, str(path))


def check(values: dict[str, Any], origin: str) -> Params:
    """Settings that were read or composed, as checked ones; a UserError begins with their origin."""
    try:
        return validate(Params, values, "")
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
