"""run.json: what a run is, what it was made from, and who worked on it. One typed reader and one writer of the file."""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gch_bench import distributed, files
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.provenance import provenance

FORMAT = 2  # of run.json; raised when a field changes its meaning. A field that is new has a default and needs no new format.


@dataclass
class RunFacts:
    """The content of run.json. Plain JSON values, so that a reader in any language sees the same."""

    status: str  # running | finished
    # Of the session that made the weights:
    started: str
    command: str
    processes: int
    device: str  # its type: cpu | cuda
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    # What was run:
    protocol_id: str
    protocol: dict[str, Any]
    mechanism: str  # law, kernel and options; "none" without noise
    stages: list[dict[str, Any]]  # where the noise is, the grids there, and what was measured of it
    warnings: list[str]
    data: dict[str, Any]  # description, fingerprint, train_fingerprint, num_classes, imagenet_1k
    parameters: int  # of the network
    config: dict[str, Any]
    identity: dict[str, Any]  # what determines the weights and each cell, see config.run.Config.identity
    skipped: dict[str, Any] = field(default_factory=dict)  # split -> count and images that could not be read
    sessions: list[dict[str, Any]] = field(default_factory=list)
    weights: str | None = None  # digest of the weights that the records were made with; None before the first end
    timings: dict[str, float] = field(default_factory=dict)  # seconds over all sessions
    format: int = FORMAT

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def read_run_facts(folder: Path) -> RunFacts:
    """The facts of the run in `folder`.

    Raises:
        UserError: no run there, a diagnosis, an unreadable file, or one of a version that this one does not know.
    """
    content = files.read_json(folder / "run.json")
    if content.get("kind") == "diagnosis":
        raise UserError(f"{folder} holds a diagnosis: give the folder of a run")
    written = content.get("format", 1)  # the first version did not say it; what it wrote is read as it was
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(f"{folder}/run.json has format {written!r}, this version reads up to {FORMAT}: use a newer gch-bench")
    known = {each.name for each in fields(RunFacts)}
    try:
        return RunFacts(**{name: value for name, value in content.items() if name in known})
    except TypeError as error:
        raise UserError(f"{folder}/run.json is no run's: {error}; give another folder") from error


def stage_in_words(stage: Mapping[str, Any]) -> str:
    """A noisy stage of run.json in one line: where it is, how much it changes the logits, how strong its noise is there."""
    grid = f"{stage['height']}x{stage['width']}"
    closed = stage["expected_gate_variance"]
    beside = "" if closed is None else f", {closed:.3g} by closed form"
    dropped, nominal = (f"{100 * stage[name]:.1f}%" for name in ("drop_rate", "nominal_drop_rate"))
    return (
        f"{stage['stage']} ({stage['module']}, {grid}) changes the logits by {100 * stage['logit_change']:.2g}%, sets {dropped}"
        f" of the sites to zero (nominal {nominal}), gate variance {stage['gate_variance']:.3g}{beside}"
    )


def identity_hash(identity: dict[str, Any]) -> str:
    """64 hex digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class RunFile:
    """run.json of one folder: read at the start, checked, and kept up to date. Only the main process writes."""

    def __init__(self, folder: Path, identity: dict[str, Any], resume: str, world: World) -> None:
        """Read what the folder holds.

        Raises:
            UserError: the folder holds another run, a run at all with resume=never, or cannot be read.
        """
        self.path, self.identity, self.world = folder / "run.json", identity, world
        self.facts: RunFacts | None = None
        with files.writing(self.path):
            exists = self.path.exists()
        if not exists:
            return
        if resume == "never":
            raise UserError(f"{folder} already holds a run: choose another output=, delete it, or set resume=auto")
        self.facts = read_run_facts(folder)
        differing = differences(self.facts.identity, identity)
        if differing:
            what = ", ".join(differing[:5])
            raise UserError(f"{folder} holds another run (it differs in {what}): choose another output=")

    @property
    def weights(self) -> str | None:
        """The digest of the finished run's weights, else None."""
        return self.facts.weights if self.facts else None

    @property
    def warnings(self) -> list[str]:
        """What the reader of the results should know, from all sessions that made the weights."""
        return self.facts.warnings if self.facts else []

    @property
    def commit(self) -> str | None:
        """The commit of the session under way."""
        assert self.facts is not None
        commit: str | None = self.facts.sessions[-1]["commit"]
        return commit

    def begin(self, **described: Any) -> None:
        """Open a session. `described` are the fields of RunFacts under "What was run" but the identity.

        A finished run stays finished, and keeps the provenance of the session that made its weights.
        """
        session = {
            "started": _now(),
            "command": shlex.join(sys.argv),
            "processes": self.world.size,
            "device": self.world.device.type,
            **provenance(),
        }
        sessions, skipped = (self.facts.sessions, self.facts.skipped) if self.facts else ([], {})
        if self.facts is None or self.weights is None:
            self.facts = RunFacts("running", **session, **described, identity=self.identity, skipped=skipped)
            earlier = [text for session in sessions for text in session.get("warnings", [])]
            self.facts.warnings = [*self.facts.warnings, *earlier]
        self.facts.sessions = [*sessions, session]
        self.write()

    def note_warning(self, warning: str) -> None:
        """Add a warning about what this session did to the weights: later sessions of the run keep it."""
        assert self.facts is not None
        self.facts.sessions[-1].setdefault("warnings", []).append(warning)
        self.facts.warnings.append(warning)
        self.write()

    def note_skipped(self, split: str, skipped: Sequence[Any]) -> int:
        """Add every process's skipped images, (path, reason) each; all processes must call it. Returns how many are known."""
        assert self.facts is not None
        images = {tuple(image) for part in distributed.all_gather(list(skipped), self.world) for image in part}
        images |= {(image["path"], image["reason"]) for image in self.facts.skipped.get(split, {}).get("images", [])}
        if images:
            listed = [{"path": path, "reason": reason} for path, reason in sorted(images)]
            self.facts.skipped[split] = {"count": len(images), "images": listed}
            self.write()
        return len(images)

    def finish(self, weights: str, train_seconds: float, evaluate_seconds: float) -> None:
        """Close the session; the run is finished. `timings` adds up the sessions that got this far."""
        assert self.facts is not None
        own = {"train_seconds": round(train_seconds, 2), "evaluate_seconds": round(evaluate_seconds, 2)}
        self.facts.sessions[-1] |= own | {"ended": _now()}
        self.facts.timings = {key: round(sum(session.get(key, 0) for session in self.facts.sessions), 2) for key in own}
        self.facts.status, self.facts.weights = "finished", weights
        self.write()

    def write(self) -> None:
        assert self.facts is not None
        if self.world.main:
            files.write_json(self.path, {"format": self.facts.format, **asdict(self.facts)})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves in which two plain mappings differ; what one of them lacks counts as None."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = sorted(first.keys() | second.keys())
        return [leaf for name in names for leaf in differences(first.get(name), second.get(name), f"{path}.{name}".strip("."))]
    return [] if first == second else [path]
