"""Branches, loops and forks."""

import pytest
import torch
from torch import Tensor, nn

import jitquant
from tests.graph_shapes import check, script
from tests.models import images


class Convs(nn.Module):
    """Three convolutions of the same shape, and one number."""

    def __init__(self, flag: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv3 = nn.Conv2d(3, 3, 3, padding=1)
        self.flag = flag


NEVER = "its branch never ran in calibration, or on empty tensors only"
LOOP_NEVER = NEVER.replace("branch", "loop")
ALONE = "no int8 op gives its input or reads its result"
COMPUTED = "its factor is computed at run time"
OTHER_USER = "its list has another user"


class Differ(Convs):
    def forward(self, x: Tensor, short: bool) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(x) if short else torch.relu(self.conv3(x)) + x
        return self.conv3(y)


class TwoOutputs(Convs):
    def forward(self, x: Tensor, short: bool) -> Tensor:
        if short:
            y, z = self.conv1(x), x * 2
        else:
            y, z = x, self.conv2(x) * 0.25
        return self.conv3(y) + z


class NoElse(Convs):
    def forward(self, x: Tensor, short: bool) -> Tensor:
        if not short:
            x = self.conv1(x)
        return self.conv2(x)


class Nested(Convs):
    def forward(self, x: Tensor, short: bool) -> Tensor:
        y = self.conv1(x)
        if x.shape[0] > 1:
            if short:
                y = self.conv2(y)
            else:
                for _ in range(2):
                    y = torch.relu(self.conv3(y))
        return self.conv1(y)


class RaisesInBranch(Convs):
    def forward(self, x: Tensor, short: bool) -> Tensor:
        if x.dim() != 4:
            raise ValueError("four dimensions, please")
        y = self.conv1(x)
        return self.conv2(y) if short else y


@pytest.mark.parametrize("model", [Differ, TwoOutputs, NoElse, Nested, RaisesInBranch])
def test_both_branches_ran(model: type[nn.Module]) -> None:
    reasons = [("aten::mul", ALONE)] if model is TwoOutputs else []
    check(script(model()), [(images(), True), (images(), False)], float_reasons=reasons)


@pytest.mark.parametrize("model", [Differ, NoElse, Nested, RaisesInBranch])
def test_other_branch_stays_float(model: type[nn.Module]) -> None:
    scripted = script(model())
    for ran in (True, False):
        samples, others = [(images(), ran)], [(images(), not ran)]
        prepared = jitquant.prepare_jit(scripted, {"": jitquant.default_qconfig})
        prepared(*samples[0])
        left = jitquant.coverage(jitquant.convert_jit(prepared)).float
        reasons = [(op.op, op.reason) for op in left]
        check(scripted, samples, others, float_reasons=reasons)
        # One of Differ's layers stands in both branches.
        assert {reason.rpartition("; ")[2] for _, reason in reasons} <= {
            *(NEVER, LOOP_NEVER, ALONE)
        }


class ConstantCondition(Convs):
    def forward(self, x: Tensor) -> Tensor:
        if self.flag:
            return self.conv1(x)
        return self.conv3(self.conv2(x))


def test_condition_that_an_attribute_decides() -> None:
    check(script(ConstantCondition(True)), [(images(),)], int8=["aten::conv2d"])
    check(script(ConstantCondition(False)), [(images(),)], int8=["aten::conv2d"] * 2)


class FixedLoop(Convs):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.conv1(x)
        return self.conv2(x)


class WhileLoop(Convs):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        steps = 0
        while steps < x.shape[0]:
            x = torch.relu(self.conv2(x)) + x * 0.5
            steps += 1
        return self.conv3(x)


class Collects(Convs):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        for i in range(x.shape[0]):
            x = self.conv1(x)
            outputs.append(x)
            if i % 2 == 0:
                x = self.conv2(x)
        return torch.cat(outputs, 1), outputs


class TwoCarried(Convs):
    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(x.shape[0]):
            x, y = self.conv1(y), self.conv2(x)
        return self.conv3(x + y)


class Breaks(Convs):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(5):
            x = self.conv1(x)
            if i == 1:
                continue
            x = self.conv2(x)
            if i >= x.shape[0]:
                break
        return self.conv3(x)


@pytest.mark.parametrize("model", [FixedLoop, WhileLoop, Collects, TwoCarried, Breaks])
def test_loops(model: type[nn.Module]) -> None:
    reasons = [("aten::cat", OTHER_USER)] if model is Collects else []
    check(script(model()), [(images(),), (images(1, 3, 8, 8),)], float_reasons=reasons)


class NeverLoops(Convs):
    def forward(self, x: Tensor, times: int) -> Tensor:
        x = self.conv1(x)
        for _ in range(times):
            x = self.conv2(x)
        return x


def test_loop_that_never_ran_stays_float() -> None:
    reasons = [("aten::conv2d", LOOP_NEVER)]
    check(script(NeverLoops()), [(images(), 0)], [(images(), 2)], float_reasons=reasons)


# fork and wait


def double_relu(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


class ForksMethod(Convs):
    def part(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.part, x)
        y = self.conv1(x)
        return self.conv3(y + torch.jit.wait(future))


class ForksFunction(Convs):
    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(double_relu, self.conv1(x))
        return self.conv2(torch.jit.wait(future))


class ForksModule(Convs):
    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.conv1, x)
        return self.conv2(x) + torch.jit.wait(future)


class WaitsInBranch(Convs):
    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.conv1, x)
        y = self.conv2(x)
        if x.shape[0] > 0:
            y = y + torch.jit.wait(future)
        return y


class WaitsTwice(Convs):
    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.conv1, x)
        return self.conv2(torch.jit.wait(future)) + torch.jit.wait(future)


class ListOfFutures(Convs):
    def forward(self, x: Tensor) -> Tensor:
        futures: list[torch.jit.Future[Tensor]] = []
        for i in range(x.shape[0]):
            futures.append(torch.jit.fork(self.conv1, x * (i + 1)))
        outputs: list[Tensor] = []
        for future in futures:
            outputs.append(torch.jit.wait(future))
        return self.conv2(torch.cat(outputs, 0))


class ForksInBranch(Convs):
    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.conv1, x) if x.shape[0] > 0 else torch.jit.fork(self.conv2, x)
        return self.conv3(torch.jit.wait(future))


class ForksTuple(Convs):
    def part(self, x: Tensor) -> tuple[Tensor, int]:
        return self.conv1(x), x.dim()

    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.part, x)
        y, dim = torch.jit.wait(future)
        return self.conv2(y) * float(dim > 3)


class ForksInFork(Convs):
    def inner(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.conv1, x)
        return self.conv2(torch.jit.wait(future))

    def forward(self, x: Tensor) -> Tensor:
        future = torch.jit.fork(self.inner, x)
        return self.conv3(torch.jit.wait(future))


FORKS = [ForksMethod, ForksFunction, ForksModule, WaitsInBranch, WaitsTwice, ForksInBranch]


@pytest.mark.parametrize("model", [*FORKS, ForksInFork])
def test_forks(model: type[nn.Module]) -> None:
    reasons = [("aten::conv2d", NEVER)] if model is ForksInBranch else []
    check(script(model()), [(images(),)], float_reasons=reasons)


def test_forks_that_end_in_a_list_or_a_tuple() -> None:
    reason = ("aten::mul", COMPUTED)
    cat = ("aten::cat", OTHER_USER)
    check(script(ListOfFutures()), [(images(),)], float_reasons=[reason, cat])
    check(script(ForksTuple()), [(images(),)], float_reasons=[reason])


def test_traced_fork() -> None:
    model = torch.jit.trace(ForksMethod().eval(), images())
    assert isinstance(model, torch.jit.ScriptModule)
    check(model, [(images(),)], int8=["aten::conv2d", "aten::relu", "aten::conv2d", *ADDS])


ADDS = ["aten::add", "aten::conv2d"]


class ReturnsFuture(Convs):
    def forward(self, x: Tensor) -> torch.jit.Future[Tensor]:
        return torch.jit.fork(self.conv1, x)


def test_future_that_leaves_the_model_is_refused() -> None:
    with pytest.raises(jitquant.JitQuantError, match="'forward' takes or returns a future"):
        jitquant.prepare_jit(script(ReturnsFuture()), {"": jitquant.default_qconfig})
