"""Measures what the geometry of diagnose.py costs: python scripts/bench_spectral.py [--output FILE] (part of make bench)

1. The spectra and exponents of every weight of a network, compared with `weightwatcher` (PyPI), which analyses the same network
   in the same process. The two take turns. Also printed is the largest difference between their singular values.
2. The whole report on that network: chain, transport, channels, figures.
3. With --llama N: the chains of a state dict of N layers with the shapes of Llama-2 7B (fp16, random, one file per layer), read
   layer by layer in a process of its own, and the peak memory of that process, which does not depend on N.
"""

import argparse
import contextlib
import io
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from measure import machine, positive, seconds, write_report
from safetensors.torch import save_file
from torch import nn

from gch_bench.apps.diagnosis.subjects import SafetensorsWeights
from gch_bench.geometry.analysis import analyse
from gch_bench.geometry.chain_format import load_chain
from gch_bench.geometry.chains import chain_factors, find_chains, weight_matrices
from gch_bench.geometry.weights import weight_table
from gch_bench.memory import keep_freed_memory
from gch_bench.report.figure_style import save
from gch_bench.report.geometry_figures import all_figures
from gch_bench.spectral.linalg import gram_values

GOAL_RATIO, GOAL_APART, GOAL_REPORT, GOAL_LAYER, GOAL_GIB = 3.0, 1e-5, 30.0, 60.0, 8.0
MARK = {True: "yes", False: "NO"}
LLAMA = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096),
         "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096),
         "mlp.down_proj": (4096, 11008)}  # fmt: skip


def trained_alike(name: str) -> nn.Module:
    """A network with random weights and with norm layers that are not trivial, as after training.

    Every vector of the state dict (biases, scales and statistics of norm layers) is drawn from [0.5, 1.5]. Trained weights are
    not used, so that the benchmark also runs on machines that cannot download them.
    """
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    for value in network.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return network


def weights_beside_weightwatcher(network: nn.Module, turns: int, device: torch.device) -> Iterator[str]:
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints its backend
        import weightwatcher
    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    watcher = weightwatcher.WeightWatcher(model=network)
    state = {key: value.to(device) for key, value in network.state_dict().items()}
    begun = time.perf_counter()
    weight_table(weight_matrices(state))  # not among the turns: it loads libraries and draws the nulls of all shapes
    first = time.perf_counter() - begun
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(seconds(lambda: weight_table(weight_matrices(state)), device))
        theirs.append(seconds(watcher.analyze, torch.device("cpu")))
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    details = watcher.analyze()
    layer_of = {row["longname"]: int(row["layer_id"]) for row in details.to_dict("records")}
    apart, compared = 0.0, 0
    for layer, taps in weight_matrices(state):
        if layer in layer_of:
            own = gram_values(taps.double()).flatten().sort().values.cpu()
            other = torch.from_numpy(watcher.get_ESD(layer=layer_of[layer])).clamp(min=0).sqrt().sort().values
            if len(own) == len(other):
                apart, compared = max(apart, float((own - other).abs().max() / own[-1])), compared + 1
    yield f"| spectra and exponents of {len(layer_of)} weights | {statistics.median(ours):.2f} s | | |"
    yield f"| the same the first time, with the draws of all nulls | {first:.2f} s | | |"
    yield f"| weightwatcher {version('weightwatcher')} | {statistics.median(theirs):.2f} s | | |"
    yield (f"| ratio | {ratio:.2f} ({min(ratios):.2f}..{max(ratios):.2f} in {turns} turns) | >= {GOAL_RATIO:g} |"
           f" {MARK[ratio >= GOAL_RATIO]} |")  # fmt: skip
    yield (f"| singular values apart, of the largest ({compared} weights) | {apart:.1e} | <= {GOAL_APART:.0e} |"
           f" {MARK[apart <= GOAL_APART]} |")  # fmt: skip


def whole_report(network: nn.Module, device: torch.device) -> Iterator[str]:
    begun = time.perf_counter()
    (chain,) = find_chains(network.state_dict())
    factors = chain_factors(network.state_dict(), chain, device)
    report = analyse(factors, chain.name, chain.description)
    analysed = time.perf_counter() - begun
    weight_table(weight_matrices(network.state_dict(), device))
    with tempfile.TemporaryDirectory() as folder:
        save(all_figures([("network", report)]), Path(folder))
    whole = time.perf_counter() - begun
    yield f"| chain of {len(report.factors)} factors: GSA I and II | {analysed:.1f} s | | |"
    yield f"| the same with all weights and the figures | {whole:.1f} s | <= {GOAL_REPORT:g} s | {MARK[whole <= GOAL_REPORT]} |"


def llama(layers: int, threads: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for i in range(layers):
            state = {f"model.layers.{i}.{key}.weight": torch.randn(shape).half() for key, shape in LLAMA.items()}
            save_file(state, Path(folder) / f"model-{i:05d}.safetensors")
        command = [sys.executable, __file__, "--stream", folder, "--threads", str(threads)]
        spent, cpu, gib = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    yield (f"| Llama-2 7B shapes, {layers} layers: llama_mlp and llama_ov, per layer | {spent / layers:.0f} s"
           f" ({cpu / layers:.0f} s of CPU) | <= {GOAL_LAYER:g} s | {MARK[spent / layers <= GOAL_LAYER]} |")  # fmt: skip
    yield f"| peak resident memory of that process | {gib:.1f} GiB | <= {GOAL_GIB:g} GiB | {MARK[gib <= GOAL_GIB]} |"


def stream(folder: str) -> None:
    """Print the seconds that the two chains of a folder of weights take, those of CPU, and the peak resident memory in GiB."""
    weights, begun, cpu = SafetensorsWeights(folder), time.perf_counter(), time.process_time()
    for name in ("llama_mlp", "llama_ov"):
        chain = load_chain(name)
        analyse(chain_factors(weights, chain), name, "")
    print(time.perf_counter() - begun, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="a timm name with one built-in chain")
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--llama", type=int, default=0, metavar="N", help="layers of Llama-2 7B to stream; 0: none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.llama == 1 or options.llama < 0:
        parser.error("--llama must be 0 or at least 2: a chain has an interface")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as diagnose.py does
    if options.stream:
        stream(options.stream)
        return
    device = torch.device(options.device)
    network: nn.Module = trained_alike(options.model)
    lines = [
        f"{options.model}, random weights; {machine(device)}.",
        "",
        "| what | measured | goal | met |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines))
    parts = [weights_beside_weightwatcher(network, options.turns, device), whole_report(network, device)]
    if options.llama:
        parts.append(llama(options.llama, options.threads))
    for part in parts:
        for line in part:
            print(line, flush=True)
            lines.append(line)
    if options.output:
        write_report(options.output, "What the geometry costs", lines)


if __name__ == "__main__":
    main()
