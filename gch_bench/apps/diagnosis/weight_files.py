"""The files of weights and run folders that a diagnosis looks at, each once, and the epoch that a file of weights is of."""

import glob
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import load_state_dict

from gch_bench.apps.patterns import is_run, is_weights, matches
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.model.weights import tensor_bytes

_EPOCH = re.compile(r"(?:^|[^a-z])(?:epoch|ep|e|checkpoint|ckpt)[-_=]?(\d+)(?!\d)", re.IGNORECASE)


class Expanded(NamedTuple):
    """A configuration without patterns, and warnings about the files that they match: path that stays -> lines."""

    config: DiagnoseConfig
    notes: dict[str, list[str]]


def expanded(config: DiagnoseConfig) -> Expanded:
    """Replace patterns in `checkpoints` by the files of weights that match, and those in `runs` by the run folders that match.

    The matches stand in the pattern's place, in natural order of their names (epoch 2 before epoch 10). A match that is listed
    already is dropped silently; a file with the weights of an earlier one, such as last.pt beside the last epoch's, is dropped
    with a warning. Entries that are no pattern stay as they are.

    Raises:
        UserError: a pattern matches nothing of the kind.
    """
    files = matches("checkpoints", config.checkpoints, "file of weights", is_weights)
    folders = matches("runs", config.runs, "run folder", is_run)
    kept, notes = files, dict[str, list[str]]()
    if any(glob.has_magic(entry) for entry in config.checkpoints):
        kept, notes = _distinct(files, [path for path in files if path not in config.checkpoints])
    return Expanded(replace(config, checkpoints=kept, runs=folders), notes)


def _distinct(paths: list[str], found: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The paths without those of `found` whose weights an earlier one has, and the warnings. Nothing but tensors is compared:
    two checkpoints of the same weights differ in the state of the optimiser, for example. An unreadable file stays, for the
    message of those who load it."""
    kept: list[str] = []
    notes: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for path in paths:
        digest = _digest(path)
        if path in found and digest in first:
            notes.setdefault(first[digest], []).append(f"{path} holds the same weights and was left out")
            continue
        first.setdefault(digest, path)
        kept.append(path)
    return kept, notes


def _digest(path: str) -> str:
    """A hash of the weights that a network would get from the file; of its path, if it cannot be read."""
    digest = hashlib.sha256()
    try:
        state = load_state_dict(path, use_ema=True, weights_only=True)
        for name, tensor in sorted(state.items()):
            digest.update(name.encode())
            digest.update(tensor_bytes(tensor))
    except Exception:  # torch, zipfile, pickle and safetensors each raise their own
        return f"unreadable {path}"
    return digest.hexdigest()


def epoch_of(path: str) -> int | None:
    """The number of finished epochs of the training that the weights in a file are of; None if nothing says so.

    Read from the file: `position` of this program's checkpoints, or an entry `epoch`, as written (timm's counts from 0); else
    from the file's name: a number after epoch, ep, e, checkpoint or ckpt, or a name that is a number.
    """
    content = _content(path)
    position = content.get("position")
    for place in (position if isinstance(position, dict) else {}, content):
        if isinstance(place.get("epoch"), int):
            return int(place["epoch"])
    name = Path(path).name.split(".")[0]
    found = _EPOCH.findall(name)
    return int(name) if name.isdigit() else int(found[-1]) if found else None


def _content(path: str) -> dict[str, Any]:
    """What a file holds besides weights; {} if it is none of torch's. Tensors are mapped and not read."""
    if not path.endswith(".safetensors"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # a legacy file cannot be mapped; those who load the weights say what is wrong with others
            return {}
        return content if isinstance(content, dict) else {}
    return {}
