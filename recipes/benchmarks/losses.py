"""The word-prediction loss beside its peers and beside the four matrix products that nobody can do without.

    python recipes/benchmarks/losses.py                       # a small size, a minute
    python recipes/benchmarks/losses.py --full                # the sizes of the targets
    python recipes/benchmarks/losses.py --sizes 4096,2048,2048,151936 --device cuda --dtype bfloat16

All methods of a size are timed in turns in one process; the median counts. The peak memory is that of a fresh process for each
method, beyond inputs and gradients. Errors are relative to the same formula in fp64: of the loss, and the largest of a gradient,
relative to its largest entry. Peers come with `pip install 'hf_glmd[benchmarks]'`; torchtune, no longer developed, by itself.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import aligned, append_results
from torch import Tensor
from tqdm.auto import tqdm

from hf_glmd.losses.functional import word_prediction_loss
from hf_glmd.losses.reference import dense_word_prediction_loss

QUICK = ((512, 256, 256, 8192),)
FULL = ((2048, 768, 768, 30522), (1024, 1024, 1024, 151936), (4096, 256, 768, 50257))
TARGETS = {
    "time": {"four products": 1.10, "trl": 0.50, "liger": 0.90},
    "memory": {"dense": 0.25, "liger": 0.50},
    "half": 0.55,
}
"""What ours may take of another's; half: of the vocabulary, beside the whole."""

HALF = "ours, half the vocabulary"


@dataclass
class Inputs:
    """Tensors of one size: hidden states [N, H], weights [V, H]; the student's want gradients."""

    student_hidden: Tensor
    student_weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    temperature: float

    @classmethod
    def made(cls, size: tuple[int, ...], device: str, dtype: torch.dtype, temperature: float) -> Inputs:
        """Random ones, of which the teacher's are near the student's, as they are in training."""
        N, H_s, H_t, V = size
        random = torch.Generator().manual_seed(0)
        hidden = torch.randn(N, max(H_s, H_t), generator=random)
        weight = torch.randn(V, max(H_s, H_t), generator=random) * 3 / max(H_s, H_t) ** 0.5
        parts = [hidden[:, :H_s], weight[:, :H_s], hidden[:, :H_t] + 0.3 * torch.randn(N, H_t, generator=random), weight[:, :H_t]]
        made = [part.to(device, dtype).contiguous() for part in parts]
        return cls(made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3], temperature)

    def of_method(self, method: str) -> Inputs:
        """For "ours, half the vocabulary" the first half of it, as a cut one; the same otherwise."""
        if method != HALF:
            return self
        half = len(self.student_weight) // 2
        weight = self.student_weight.detach()[:half].clone().requires_grad_()
        hidden = self.student_hidden.detach().clone().requires_grad_()
        return Inputs(hidden, weight, self.teacher_hidden, self.teacher_weight[:half].clone(), self.temperature)

    def clear(self) -> None:
        self.student_hidden.grad = self.student_weight.grad = None


def ours(x: Inputs) -> Tensor:
    return word_prediction_loss(x.student_hidden, x.student_weight, x.teacher_hidden, x.teacher_weight, temperature=x.temperature)


def dense(x: Inputs) -> Tensor:
    student = x.student_hidden @ x.student_weight.t()
    teacher = x.teacher_hidden @ x.teacher_weight.t()
    wide = torch.promote_types(student.dtype, torch.float32)
    return dense_word_prediction_loss(student.to(wide), teacher.to(wide), x.temperature).mean()


def trl(x: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (x.student_hidden, x.student_weight, None), (x.teacher_hidden, x.teacher_weight, None)
    divergence, _ = ChunkedDivergenceFunction.apply(*student, *teacher, 0.0, x.temperature)
    return x.temperature**2 * divergence.mean()


def liger(x: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # beta = 0 is the forward KL; without compilation, as everything here.
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, temperature=x.temperature, compiled=False
    )
    labels = torch.zeros(len(x.student_hidden), dtype=torch.long, device=x.student_hidden.device)
    found = loss(x.student_hidden, x.student_weight, x.teacher_hidden, x.teacher_weight, labels)
    return x.temperature**2 * (found[0] if isinstance(found, tuple) else found)


def torchtune(x: Inputs) -> Tensor:
    """Its value is the cross-entropy with the teacher, not the KL; the gradient is the same."""
    from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

    chunks = 8
    pairs = ((x.student_hidden, x.student_weight), (x.teacher_hidden, x.teacher_weight))
    student, teacher = ([h[None] @ w.t() / x.temperature for h in hidden.chunk(chunks)] for hidden, w in pairs)
    labels = torch.zeros(1, len(x.student_hidden), dtype=torch.long, device=x.student_hidden.device)
    return x.temperature**2 * ForwardKLWithChunkedOutputLoss(chunks)(student, teacher, labels)


@torch.no_grad()
def four_products(x: Inputs) -> None:
    """Two projections and two gradients, in slices, into memory that is there: what any exact method has to do."""
    N, V = len(x.student_hidden), len(x.student_weight)
    n = min(N, 512 if x.student_hidden.device.type == "cpu" else 4096)
    dtype = x.student_hidden.dtype
    s, t = (torch.empty(n, V, dtype=dtype, device=x.student_hidden.device) for _ in range(2))
    gradient_hidden, gradient_weight = torch.empty_like(x.student_hidden), torch.zeros_like(x.student_weight)
    for start in range(0, N, n):
        hidden = x.student_hidden[start : start + n]
        of_s, of_t = s[: len(hidden)], t[: len(hidden)]
        torch.mm(hidden, x.student_weight.t(), out=of_s)
        torch.mm(x.teacher_hidden[start : start + n], x.teacher_weight.t(), out=of_t)
        torch.mm(of_s, x.student_weight, out=gradient_hidden[start : start + n])
        gradient_weight.addmm_(of_s.t(), hidden)


LOSSES: dict[str, Callable[[Inputs], Tensor]] = {
    "ours": ours,
    HALF: ours,
    "dense": dense,
    "trl": trl,
    "liger": liger,
    "torchtune": torchtune,
}
METHODS = ("four products", *LOSSES)


def one_pass(method: str, x: Inputs) -> Tensor | None:
    x.clear()
    if method == "four products":
        return four_products(x)
    loss = LOSSES[method](x)
    loss.backward()
    return loss.detach()


# Each of these is run in a process of its own


def times(options: argparse.Namespace, size: tuple[int, ...]) -> dict[str, Any]:
    """Seconds of each method, the median of passes in turns; a text says why there are none."""
    x = Inputs.made(size, options.device, options.dtype, options.temperature)
    inputs = {method: x.of_method(method) for method in options.methods}
    found: dict[str, Any] = {}
    for method in options.methods:
        try:
            one_pass(method, inputs[method])
            found[method] = []
        except Exception as error:  # a peer that is missing or fails is a row that says so
            found[method] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for _ in tqdm(range(options.repeats), desc=f"Timing {size}", disable=None):
        for method, seconds in found.items():
            if isinstance(seconds, list):
                synchronize(options.device)
                start = time.perf_counter()
                one_pass(method, inputs[method])
                synchronize(options.device)
                seconds.append(time.perf_counter() - start)
    return {method: statistics.median(s) if isinstance(s, list) else s for method, s in found.items()}


def peak(options: argparse.Namespace, size: tuple[int, ...], method: str) -> float:
    """MiB that a pass takes beyond its inputs and gradients."""
    x = Inputs.made(size, options.device, options.dtype, options.temperature).of_method(method)
    small = Inputs.made((32, 16, 16, 64), options.device, options.dtype, options.temperature)
    one_pass(method, small)  # libraries are loaded, threads started
    gradients = sum(t.numel() * t.element_size() for t in (x.student_hidden, x.student_weight))
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(method, x)
        return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    one_pass(method, x)
    return resident_mib("VmHWM") - before - gradients / 2**20


def errors(options: argparse.Namespace, size: tuple[int, ...], method: str) -> tuple[float, float]:
    """Relative errors of the loss and of the gradients, beside fp64."""
    x = Inputs.made(size, options.device, options.dtype, options.temperature).of_method(method)
    loss = one_pass(method, x)
    found = x.student_hidden.grad.cpu(), x.student_weight.grad.cpu()
    exact = [t.detach().double().cpu() for t in (x.student_hidden, x.student_weight, x.teacher_hidden, x.teacher_weight)]
    total, of_hidden, of_weight = 0.0, torch.zeros_like(exact[0]), torch.zeros_like(exact[1])
    for start in range(0, len(exact[0]), 128):
        rows = slice(start, start + 128)
        s, t = (exact[0][rows] @ exact[1].t()).requires_grad_(), exact[2][rows] @ exact[3].t()
        part = dense_word_prediction_loss(s, t, x.temperature).sum() / len(exact[0])
        (gradient,) = torch.autograd.grad(part, s)
        total += part.item()
        of_hidden[rows] = gradient @ exact[1]
        of_weight += gradient.t() @ exact[0][rows]
    worst = max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, (of_hidden, of_weight), strict=True))
    # torchtune gives the cross-entropy: its value has nothing to be compared with.
    return (float("nan") if method == "torchtune" else abs(float(loss) - total) / total), worst


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def resident_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


# What is printed and kept


@dataclass
class Row:
    """One method at one size."""

    method: str
    size: tuple[int, ...]
    seconds: float | None = None
    peak_mib: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


def run(options: argparse.Namespace) -> Iterator[Row]:
    for size in options.sizes:
        found = in_process(options, "times", size)
        for method in options.methods:
            row = Row(method, size)
            if not isinstance(found[method], float):
                row.note = found[method]
                yield row
                continue
            row.seconds = found[method]
            if method != "four products":
                with noted(row):
                    row.peak_mib = in_process(options, "peak", size, method)
                with noted(row):
                    row.loss_error, row.gradient_error = in_process(options, "errors", size, method)
            yield row


@contextlib.contextmanager
def noted(row: Row) -> Iterator[None]:
    try:
        yield
    except subprocess.CalledProcessError as error:
        row.note = f"status {error.returncode}: {(error.stderr or '').strip().splitlines()[-1:]}"


def in_process(options: argparse.Namespace, what: str, *arguments: Any) -> Any:
    words = [sys.executable, __file__, "--child", json.dumps([what, *arguments]), *options.words]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=None if what == "times" else subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table_of(rows: list[Row]) -> str:
    lines = [("N, H_s, H_t, V", "method", "ms", "ours takes", "peak MiB", "ours takes", "loss err", "grad err", "note")]
    for row in rows:
        mine = next((r for r in rows if r.size == row.size and r.method == "ours"), Row("ours", row.size))
        lines.append(
            (
                ", ".join(map(str, row.size)),
                row.method,
                "-" if row.seconds is None else f"{1000 * row.seconds:,.0f}",
                _beside(mine.seconds, row.seconds, "time", row.method),
                "-" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
                _beside(mine.peak_mib, row.peak_mib, "memory", row.method),
                *("-" if error is None else f"{error:.1e}" for error in (row.loss_error, row.gradient_error)),
                row.note[:60],
            )
        )
    return aligned(lines)


def _beside(mine: float | None, other: float | None, what: str, method: str) -> str:
    """`0.45x (target 0.50)`: what ours takes of the other's; for half the vocabulary, what that takes of ours."""
    if mine is None or other is None or method == "ours":
        return "-"
    if method.startswith("ours"):
        return f"half takes {other / mine:.2f}x" + (f" (target {TARGETS['half']:.2f})" if what == "time" else "")
    target = TARGETS[what].get(method)
    return f"{mine / other:.2f}x" + (f" (target {target:.2f})" if target else "")


def add_results(path: Path, rows: list[Row], options: argparse.Namespace) -> None:
    figures = []
    for row in rows:
        N, H_s, H_t, V = row.size
        line = {"part": "losses", "method": row.method, "device": options.device, "dtype": str(options.dtype)[6:]}
        line |= {"N": N, "V": V, "H_s": H_s, "H_t": H_t, "note": row.note, "peak_mib": row.peak_mib}
        line |= {"time_ms": row.seconds and 1000 * row.seconds, "loss_err": row.loss_error, "grad_err": row.gradient_error}
        figures.append(line)
    append_results(path, {"rows": [dataclasses.asdict(row) for row in rows]}, figures, device=options.device)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=_size, default=QUICK, metavar="N,H_s,H_t,V", help="default: a small one")
    parser.add_argument("--full", action="store_true", help="the sizes of the targets: minutes, and 10 GB of memory")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="passes of which the median counts, default 5")
    parser.add_argument("--temperature", type=float, default=15.0, help="default 15")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", type=lambda name: getattr(torch, name), help="float32 or bfloat16")
    parser.add_argument("--output", type=Path, default=Path("results/losses.json"), help="default results/losses.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.words = [word for number, word in enumerate(words) if word != "--child" and words[number - 1 : number] != ["--child"]]
    if options.full:
        options.sizes = FULL
    return options


def _size(text: str) -> tuple[int, ...]:
    size = tuple(int(part) for part in text.split(","))
    if len(size) != 4 or min(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,H_s,H_t,V, e.g. 2048,768,768,30522")
    return size


def main(words: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if words is None else words)
    if options.child:
        what, size, *rest = options.child
        print(json.dumps({"times": times, "peak": peak, "errors": errors}[what](options, tuple(size), *rest)))
        return 0
    rows = []
    for row in run(options):
        rows.append(row)
    print(table_of(rows))
    add_results(options.output, rows, options)
    print(f"\nAdded to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
