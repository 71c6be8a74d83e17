"""run.json: what a run is, what it was made from, and who worked on it. Written by the main process only."""

import hashlib
import json
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gch_bench import distributed, records
from gch_bench.build import Built
from gch_bench.config import Config
from gch_bench.data.images import BadImage
from gch_bench.data.protocol import Protocol
from gch_bench.data.source import DataSource
from gch_bench.distributed import World
from gch_bench.errors import UserError


def weights_digest(model: nn.Module) -> str:
    """16 hex digits over the names and bytes of the state dict: which weights a record was made with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def identity(config: Config, data: DataSource, built: Built) -> dict[str, Any]:
    """What determines the weights and each cell: the configuration, the images, and the weights it starts from.

    Plain JSON values. Paths are not part of it, what lies there is."""
    given = config.model.checkpoint or config.model.pretrained
    inputs = {
        "images": data.fingerprint,
        "train_images": data.train_fingerprint,
        "weights": weights_digest(built.model) if given else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(config.identity))
    del plain["model"]["checkpoint"]
    return plain | {"inputs": inputs}


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class RunFile:
    """run.json of one folder: read at the start, checked, and kept up to date."""

    def __init__(self, folder: Path, identity: dict[str, Any], resume: str, world: World) -> None:
        """Read what the folder holds.

        Raises:
            UserError: the folder holds another run, a run at all with resume=never, or cannot be read.
        """
        self.path, self.identity, self.world = folder / "run.json", identity, world
        self.content: dict[str, Any] = {}
        with records.writing(self.path):
            exists = self.path.exists()
        if not exists:
            return
        if resume == "never":
            raise UserError(f"{folder} already holds a run: choose another output=, delete it, or set resume=auto")
        self.content = records.read_json(self.path)
        differing = _differences(self.content.get("identity", {}), identity)
        if differing:
            what = ", ".join(differing[:5])
            raise UserError(f"{folder} holds another run (it differs in {what}): choose another output=")

    @property
    def weights(self) -> str | None:
        """The digest of the finished run's weights, else None."""
        return self.content.get("weights")

    def begin(self, config: Config, data: DataSource, built: Built, protocol: Protocol) -> None:
        """Open a session. A finished run stays finished, and keeps the provenance of the session that made its weights."""
        session = {
            "started": _now(),
            "command": shlex.join(sys.argv),
            "processes": self.world.size,
            "device": self.world.device.type,
            **records.provenance(),
        }
        sessions = [*self.content.get("sessions", []), session]
        if self.weights is None:
            self.content = {
                "status": "running",
                **session,
                "protocol_id": protocol.id,
                "protocol": asdict(protocol),
                "mechanism": built.mechanism,
                "stages": [stage._asdict() for stage in built.stages],
                "warnings": built.warnings,
                "data": {
                    "description": data.description,
                    "fingerprint": data.fingerprint,
                    "train_fingerprint": data.train_fingerprint,
                    "num_classes": len(data.classes),
                },
                "parameters": sum(parameter.numel() for parameter in built.model.parameters()),
                "config": config.as_dict(),
                "identity": self.identity,
                "skipped": self.content.get("skipped", {}),
            }
        self.content["sessions"] = sessions
        self.write()

    def note_skipped(self, split: str, skipped: list[BadImage]) -> int:
        """Add every process's skipped images (all must call it); returns how many are known by now."""
        images = {image for part in distributed.gather(skipped, self.world) for image in part}
        images |= {BadImage(**image) for image in self.content["skipped"].get(split, {}).get("images", [])}
        if images:
            listed = [image._asdict() for image in sorted(images)]
            self.content["skipped"][split] = {"count": len(images), "images": listed}
            self.write()
        return len(images)

    def finish(self, weights: str, train_seconds: float, evaluate_seconds: float) -> None:
        """Close the session; the run is finished. `timings` adds up the sessions that got this far."""
        own = {"train_seconds": round(train_seconds, 2), "evaluate_seconds": round(evaluate_seconds, 2)}
        self.content["sessions"][-1] |= own | {"ended": _now()}
        timings = {key: round(sum(session.get(key, 0) for session in self.content["sessions"]), 2) for key in own}
        self.content |= {"status": "finished", "weights": weights, "timings": timings}
        self.write()

    def write(self) -> None:
        if self.world.main:
            records.write_json(self.path, self.content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves in which two plain configs differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = sorted(first.keys() | second.keys())
        return [leaf for name in names for leaf in _differences(first.get(name), second.get(name), f"{path}.{name}".strip("."))]
    return [] if first == second else [path]
