"""The CUDA kernels against fp64: under Triton's interpreter on the CPU, and on a CUDA device where there is one.

The interpreter has to be on before a process imports Triton, so all interpreted cases run in one process of their own.
Run so far: the interpreter and the compiler (for sm_80 and sm_90, no GPU needed). The CUDA half of these tests has never run.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from hf_glmd.losses import kernels
from hf_glmd.losses.reference import dense_word_prediction_loss

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

PADDING = 13  # columns between the rows, which belong to nobody
UNTOUCHED = 12345.0
LOWEST = torch.finfo(torch.float32).min
RUN_IN_INTERPRETER = """
import sys, torch
from hf_glmd.losses.kernels import available, kl_slice_
assert available("cpu")
cases = torch.load(sys.argv[1])
losses = {name: kl_slice_(*case) for name, case in cases.items()}
torch.save((losses, cases), sys.argv[2])
"""


def random_rows(seed: int, n: int, K: int, spread: float = 3.0) -> torch.Tensor:
    """fp32 [n, K], a view with a row stride of K + PADDING."""
    rows = torch.full((n, K + PADDING), UNTOUCHED)
    rows[:, :K] = torch.randn(n, K, generator=torch.Generator().manual_seed(seed)) * spread
    return rows[:, :K]


def near(student: torch.Tensor, gap: float) -> torch.Tensor:
    """A teacher whose logits differ from the student's by about `gap`; its rows lie next to each other."""
    return student + gap * torch.randn(student.shape, generator=torch.Generator().manual_seed(99))


def make_cases() -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """(student, teacher, T) for which loss and gradient are finite."""
    cases = {}
    for K, n in [(2, 4), (3, 4), (211, 2), (1009, 2), (5003, 2), (30522, 1)]:
        for temperature in (0.5, 1.0, 15.0, 50.0):
            student = random_rows(K, n, K)
            cases[f"near {K} {temperature}"] = (student, near(student, 1e-3), temperature)
            cases[f"apart {K} {temperature}"] = (random_rows(K, n, K), random_rows(K + 1, n, K), temperature)
    student = random_rows(0, 1, 262_145)
    cases["longer than any vocabulary"] = (student, near(student, 0.1), 15.0)
    for temperature in (1.0, 15.0):
        student = random_rows(1, 3, 1009)
        cases[f"nearly equal {temperature}"] = (student, near(student, 1e-5), temperature)

        student = random_rows(2, 3, 1009)
        teacher = near(student, 1e-2)
        cases[f"constants {temperature}"] = (student.sub_(300.0), teacher + 1000.0, temperature)

        student = random_rows(3, 2, 20011).sort(-1).values  # each block brings a new maximum
        cases[f"rising near {temperature}"] = (student, near(student, 1e-3), temperature)
        cases[f"rising and falling {temperature}"] = (student.clone(), student.flip(-1).contiguous(), temperature)

        peak = torch.zeros(2, 5003)
        peak[0, 0] = peak[1, 5002] = 40.0
        cases[f"peaked teacher {temperature}"] = (random_rows(4, 2, 5003, 0.1), peak, temperature)
        cases[f"peaked student {temperature}"] = (peak.clone(), random_rows(4, 2, 5003, 0.1), temperature)

        for low in (-torch.inf, LOWEST):
            student, teacher = random_rows(5, 2, 10007), random_rows(6, 2, 10007)
            student[:, 7], teacher[:, 7] = low, low
            student[0, :9000], teacher[0, :9000] = low, low  # the whole first block
            student[1, -4:], teacher[1, -4:] = low, low
            teacher[:, 9500] = low
            cases[f"ruled out by {low} {temperature}"] = (student, teacher, temperature)
    return cases


CASES = make_cases()
IDENTICAL, STUDENT_ALONE, BROKEN, EMPTY = "identical", "student alone", "broken", "empty"


def make_special_cases() -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    same = random_rows(7, 3, 5003)
    ruled_out = random_rows(8, 2, 211)
    ruled_out[0, 5] = -torch.inf
    broken = random_rows(9, 6, 5003)
    broken[1, 4999], broken[2, 0], broken[3] = torch.nan, torch.inf, -torch.inf
    student = random_rows(10, 6, 5003)
    student[4, 17] = torch.nan
    return {
        IDENTICAL: (same, same.clone(), 15.0),
        STUDENT_ALONE: (ruled_out, random_rows(11, 2, 211), 2.0),
        BROKEN: (student, broken, 15.0),
        EMPTY: (torch.empty(0, 7), torch.empty(0, 7), 15.0),
    }


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=needs_cuda)])
def results(request, tmp_path_factory):
    """name -> (loss, what has become of the student's logits, of the teacher's), all on the CPU."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    cases = {**CASES, **make_special_cases()}
    if request.param == "cuda":
        cases = {name: (moved(student, "cuda"), moved(teacher, "cuda"), T) for name, (student, teacher, T) in cases.items()}
        losses = {name: kernels.kl_slice_(*case) for name, case in cases.items()}
    else:
        folder = tmp_path_factory.mktemp("kernels")
        torch.save(cases, folder / "cases.pt")
        command = [sys.executable, "-W", "ignore", "-c", RUN_IN_INTERPRETER, folder / "cases.pt", folder / "results.pt"]
        subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
        losses, cases = torch.load(folder / "results.pt")
    return {name: (loss.cpu(), *(moved(rows, "cpu") for rows in cases[name][:2])) for name, loss in losses.items()}


def moved(rows: torch.Tensor, device: str) -> torch.Tensor:
    """The view on `device`, with what lies between its rows."""
    return whole(rows).to(device)[:, : rows.shape[1]]


def whole(rows: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(rows, (rows.shape[0], rows.stride(0)), (rows.stride(0), 1))


def truth(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient in fp64, without the cancellation that even fp64 shows where the models nearly agree.

    Shifts the difference of the logits to be 0 at the student's top token, so that log1p sees what the plain formula loses.
    """
    student, teacher = student.double() / temperature, teacher.double() / temperature
    p = student.softmax(-1)
    no_candidate = (p == 0) & (teacher == -torch.inf)
    d = torch.where(no_candidate, 0.0, teacher - student)
    d = d - d.gather(-1, student.argmax(-1, keepdim=True))
    a = d - torch.log1p((p * torch.expm1(d)).sum(-1, keepdim=True))
    product = torch.where(a == -torch.inf, 0.0, a * a.exp())
    terms = torch.where(a.abs() < 1e-3, a**2 / 2 + a**3 / 3 + a**4 / 8, product - torch.expm1(a))
    return temperature**2 * (p * terms).sum(-1), -temperature * p * torch.expm1(a)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("apart", "peaked"))])
def test_the_truth_is_the_reference_where_the_reference_is_accurate(name):
    student, teacher, temperature = CASES[name]
    student = student.double().requires_grad_()
    loss = dense_word_prediction_loss(student, teacher.double(), temperature)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    true_loss, true_gradient = truth(student.detach(), teacher, temperature)
    torch.testing.assert_close(true_loss, loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(true_gradient, gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_fp64(results, name):
    loss, gradient, _ = results[name]
    true_loss, true_gradient = truth(*CASES[name])
    assert loss.dtype == gradient.dtype == torch.float32
    assert ((loss - true_loss).abs() / true_loss).max() <= 1e-6
    assert ((gradient - true_gradient).abs().amax(-1) / true_gradient.abs().amax(-1)).max() <= 1e-5


def test_nothing_but_the_gradient_is_written(results):
    for name, (student, teacher, _) in CASES.items():
        _, gradient, teacher_after = results[name]
        between = slice(gradient.shape[1], None)
        assert torch.equal(whole(teacher_after), whole(teacher)), name
        assert torch.equal(whole(gradient)[:, between], whole(student)[:, between]), name


def test_models_that_agree_give_exactly_zero(results):
    loss, gradient, _ = results[IDENTICAL]
    assert torch.equal(loss, torch.zeros(3)) and torch.equal(gradient, torch.zeros(3, 5003))


def test_a_token_that_the_student_alone_rules_out_costs_infinitely_much_and_has_a_gradient(results):
    loss, gradient, _ = results[STUDENT_ALONE]
    student, teacher, temperature = make_special_cases()[STUDENT_ALONE]
    expected = temperature * ((student.double() / temperature).softmax(-1) - (teacher.double() / temperature).softmax(-1))
    assert loss[0] == torch.inf and loss[1] < torch.inf
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


def test_broken_logits_are_not_hidden_and_stay_in_their_row(results):
    loss, gradient, _ = results[BROKEN]
    assert loss.isnan().tolist() == [False, True, True, True, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, True, True, True, True, False]


def test_no_rows(results):
    assert results[EMPTY][0].shape == (0,)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("n", "K"), [(1, 2), (128, 30522), (4096, 30522)])
def test_it_compiles_without_a_gpu(capability, n, K, monkeypatch, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget

    if not isinstance(kernels._kl_row, triton.JITFunction):
        pytest.skip("Triton's interpreter is on: there is nothing to compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    arguments = dict.fromkeys(("student", "teacher", "loss"), "*fp32")
    arguments |= dict.fromkeys(("student_stride", "teacher_stride", "K"), "i32")
    arguments |= {"temperature": "fp32", "inverse_temperature": "fp32", "BLOCK": "constexpr"}
    block, num_warps = kernels.launch_shape(n, K)
    source = triton.compiler.ASTSource(kernels._kl_row, arguments, constexprs={"BLOCK": block})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    assert compiled.asm["cubin"]


@needs_cuda
@needs_triton
def test_offsets_beyond_32_bits():
    rows = torch.empty(2 * 2**31, device="cuda").as_strided((2, 1009), (2**31 + 16, 1))  # 16 GiB, hardly any of it touched
    rows.copy_(random_rows(12, 2, 1009))
    student, teacher = rows.cpu(), random_rows(13, 2, 1009)
    loss = kernels.kl_slice_(rows, teacher.cuda(), 15.0).cpu()
    torch.testing.assert_close(loss.double(), truth(student, teacher, 15.0)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("K", [2, 3, 32, 33, 2048, 2049, 30522, 262_144])
@pytest.mark.parametrize("n", [1, 255, 256, 511, 512, 10**6])
def test_a_step_is_no_wider_than_the_row_and_its_warps_are_a_power_of_two(n, K):
    block, num_warps = kernels.launch_shape(n, K)
    assert block.bit_count() == 1 and block < max(2 * K, 33) and block <= 8192
    assert num_warps.bit_count() == 1 and num_warps * 32 * 16 == max(block, 512)


def fresh_kernels():
    """The module as a new process would load it."""
    spec = importlib.util.spec_from_file_location("fresh_kernels", kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_triton_it_is_importable_and_not_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not fresh_kernels().available("cuda") and not fresh_kernels().available(torch.device("cpu"))


@needs_triton
def test_with_triton_it_is_available_on_cuda_and_interpreted_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert fresh_kernels().available("cuda:1") and not fresh_kernels().available(torch.device("cpu"))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(2, 5).bfloat16(), torch.zeros(2, 5), "student logits must be fp32"),
        (torch.zeros(2, 5), torch.zeros(5, 2).T, r"teacher logits must be .* contiguous rows, .* \(2, 5\) of strides \(1, 2\)"),
        (torch.zeros(2, 5), torch.zeros(2, 6), r"\(2, 5\) .*\(2, 6\)"),
        (torch.zeros(2, 5), torch.zeros(2, 5, device="meta"), "cpu .*meta"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        kernels.kl_slice_(student, teacher, 15.0)
