"""run.json: what a run is, what it was made from, and the sessions that worked on it. The only reader and writer of the file.

A session is one call of train.py or evaluate.py on the run folder; a run that is continued has several.
"""

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from gch_bench import files
from gch_bench.errors import UserError
from gch_bench.provenance import provenance

if TYPE_CHECKING:
    from gch_bench.distributed import World

# Version of run.json. It is raised when a field changes its meaning; a new field has a default and needs no new version.
FORMAT = 2
LOCK_SECONDS = 60.0  # to wait for another job in the run folder: a job that was preempted may run again while the old one ends


class Timings(NamedTuple):
    """How long the parts of a session took."""

    train_seconds: float
    evaluate_seconds: float  # of the whole pass over the images, which may have evaluated other networks, too
    networks: int  # that the pass evaluated


@dataclass
class RunFacts:
    """The content of run.json, in plain JSON values."""

    status: str  # running | finished
    # About the session that made the weights:
    started: str  # UTC, ISO 8601
    command: str
    processes: int
    device: str  # the device's type: cpu | cuda
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    # What was run:
    protocol_id: str
    protocol: dict[str, Any]
    mechanism: str  # the noise: its law, kernel and options; "none" without noise
    stages: list[dict[str, Any]]  # for each noisy stage the fields of model.build.Stage
    warnings: list[str]
    data: dict[str, Any]  # description, fingerprint, train_fingerprint, num_classes, imagenet_1k, several_labels
    parameters: int  # the number of the network's parameters
    config: dict[str, Any]
    identity: dict[str, Any]  # what determines the weights and each cell, see apps.run.run_identity
    # The identity of the run that made the weights that an evaluation was given; None where no run's weights were given.
    origin: dict[str, Any] | None = None
    skipped: dict[str, Any] = field(default_factory=dict)  # split -> number and names of the images that could not be read
    sessions: list[dict[str, Any]] = field(default_factory=list)
    weights: str | None = None  # digest of the weights that the records were made with; None until a session has finished
    timings: dict[str, float] = field(default_factory=dict)  # the seconds of Timings, summed over the sessions
    format: int = FORMAT

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def gate_variance(self) -> float:
        """The realised variance of the gate, mean over the noisy stages that have one; nan where none has."""
        known = [stage["gate_variance"] for stage in self.stages if stage.get("gate_variance") is not None]
        return fmean(known) if known else math.nan


def read_run_facts(folder: Path) -> RunFacts:
    """The facts of the run in `folder`.

    Raises:
        UserError: the folder holds no run or a diagnosis, or its run.json cannot be read or has a newer format than FORMAT.
    """
    content = files.read_json(folder / "run.json")
    if content.get("kind") == "diagnosis":
        raise UserError(f"{folder} holds a diagnosis: give the folder of a run")
    written = content.get("format", 1)  # the first version wrote no format
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(f"{folder}/run.json has format {written!r}, this version reads up to {FORMAT}: use a newer gch-bench")
    known = {each.name for each in fields(RunFacts)}
    try:
        return RunFacts(**{name: value for name, value in content.items() if name in known})
    except TypeError as error:
        lacks = next((each.name for each in fields(RunFacts) if each.name not in content), "nothing")
        raise UserError(f"{folder}/run.json is no run's, it lacks {lacks}: give another folder") from error


def given_weights(config: Mapping[str, Any]) -> str | None:
    """The weights that a run was given, as its user typed them; None where it began with random ones.

    Args:
        config: the configuration as in run.json.
    """
    model = config.get("model", {})
    typed = [
        *config.get("checkpoints", []),
        model.get("checkpoint"),
        "model.pretrained=true" if model.get("pretrained") else None,
    ]
    return next((text for text in typed if text), None)


def stage_in_words(stage: Mapping[str, Any], trains: bool) -> str:
    """One line on a noisy stage of run.json: where it is, how much its noise changes the logits, how strong the noise is.

    Args:
        trains: whether the run trains its network. The change was measured before that.
    """
    grid = f"{stage['height']}x{stage['width']}"
    when = " (before its training)" if trains else ""
    changes = f"{stage['stage']} ({stage['module']}, {grid}) changes the logits by {100 * stage['logit_change']:.2g}%{when}"
    if stage["gate_variance"] is None:
        return f"{changes}, drops {100 * stage['expected_drop_rate']:.1f}% of the keys"
    closed = stage["expected_gate_variance"]
    beside = "" if closed is None else f", {closed:.3g} by closed form"
    dropped, nominal = (f"{100 * stage[name]:.1f}%" for name in ("drop_rate", "nominal_drop_rate"))
    variance = f"gate variance {stage['gate_variance']:.3g}{beside}"
    return f"{changes}, sets {dropped} of the sites to zero (nominal {nominal}), {variance}"


def identity_hash(identity: dict[str, Any]) -> str:
    """The SHA-256 of an identity, 64 hex digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@contextmanager
def sole_use(folder: Path, world: "World") -> Iterator[None]:
    """Within the context no other job works in the run folder, which is made. All processes of this job must call it.

    Raises:
        UserError: another job still works there after LOCK_SECONDS, or the folder cannot be made.
    """
    from gch_bench import distributed  # here, because it needs torch, which a report does not

    with ExitStack() as stack:
        with distributed.failing_together(world):
            if world.main:
                stack.enter_context(files.making(folder))
                stack.enter_context(files.locked(folder, "output", LOCK_SECONDS))
                files.remove_temporary(folder)
        yield


class RunFile:
    """The run.json of one run folder: read and checked at the start, rewritten at every change by the main process alone."""

    def __init__(self, folder: Path, identity: dict[str, Any], resume: str, world: "World") -> None:
        """Read the folder's run.json, if there is one.

        Args:
            identity: the identity of the run that is to be made or continued here.
            resume: auto | never, the configuration field of this name.

        Raises:
            UserError: the folder holds a run of another identity, or any run where resume=never, or cannot be read.
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
        """The digest of the finished run's weights; None where no session has finished yet."""
        return self.facts.weights if self.facts else None

    @property
    def warnings(self) -> list[str]:
        """The warnings for the reader of the results, from all sessions that made the weights."""
        return self.facts.warnings if self.facts else []

    @property
    def commit(self) -> str | None:
        """The commit of the code of the current session."""
        assert self.facts is not None
        commit: str | None = self.facts.sessions[-1]["commit"]
        return commit

    def begin(self, **described: Any) -> None:
        """Start a session and write it to run.json.

        A run that is finished stays so, and keeps the provenance of the session that made its weights.

        Args:
            described: the fields of RunFacts under "What was run" from protocol_id to config.
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
        """Add a warning about what this session did to the weights. Later sessions of the run keep the warning."""
        assert self.facts is not None
        self.facts.sessions[-1].setdefault("warnings", []).append(warning)
        self.facts.warnings.append(warning)
        self.write()

    def note_skipped(self, split: str, skipped: Sequence[Any]) -> int:
        """Add the images of a split that could not be read.

        Args:
            skipped: (path, reason) for each image that was skipped, on any process.

        Returns:
            The number of the split's skipped images over all sessions.
        """
        assert self.facts is not None
        images = {tuple(image) for image in skipped}
        images |= {(image["path"], image["reason"]) for image in self.facts.skipped.get(split, {}).get("images", [])}
        if images:
            listed = [{"path": path, "reason": reason} for path, reason in sorted(images)]
            self.facts.skipped[split] = {"count": len(images), "images": listed}
            self.write()
        return len(images)

    def finish(self, weights: str, timings: Timings) -> None:
        """End the session and mark the run as finished. The run's `timings` sum the sessions that got this far."""
        assert self.facts is not None
        own = {"train_seconds": round(timings.train_seconds, 2), "evaluate_seconds": round(timings.evaluate_seconds, 2)}
        self.facts.sessions[-1] |= own | {"evaluated_networks": timings.networks, "ended": _now()}
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
    """The dotted names of all values in which two nested mappings differ. What one of them lacks counts as None there."""
    if all(each is None or isinstance(each, dict) for each in (first, second)):
        one, two = first or {}, second or {}
        names = sorted(one.keys() | two.keys())
        return [leaf for name in names for leaf in differences(one.get(name), two.get(name), f"{path}.{name}".strip("."))]
    return [] if first == second else [path]
