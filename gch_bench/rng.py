"""Random generators named by keys: their draws depend on the keys alone, never on batch size, order, workers or ranks."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator

import torch

Key = int | str


def seed_of(*keys: Key) -> int:
    """A 63-bit seed from the keys (BLAKE2b of their text), e.g. ``seed_of(0, "gaussian_noise", 3, image_id)``."""
    digest = hashlib.blake2b("\0".join(str(key) for key in keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` seeded by the keys."""
    return torch.Generator(device).manual_seed(seed_of(*keys))


def generators(ids: Iterable[int], *keys: Key, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per image id, seeded by (keys, id)."""
    return [generator(*keys, int(i), device=device) for i in ids]


def seed_global(device: torch.device, *keys: Key) -> None:
    """Seed torch's global generator of ``device`` by the keys. Unlike torch.manual_seed, this leaves other devices' alone."""
    source = torch.cuda if device.type == "cuda" else torch.default_generator
    source.manual_seed(seed_of(*keys))


@contextlib.contextmanager
def own_draws(device: torch.device, *keys: Key) -> Iterator[None]:
    """Within the context torch's global generator of ``device`` is seeded by the keys; afterwards it is as it was before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_global(device, *keys)
        yield
