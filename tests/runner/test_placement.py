"""Which stage may start where: rules that hold for every machine and every plan, and a few cases by hand."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from paft_plugin.runner.devices import Device
from paft_plugin.runner.placement import MARGIN, Machine, Placed, fit_together, impossible, main_memory_of, place
from paft_plugin.runner.stages import Resources

GB = 10**9
LONGEST = 5  # ticks of a simulated stage

sizes = st.sampled_from([0, 2 * GB, 6 * GB, 12 * GB, 28 * GB])
devices = st.builds(
    lambda number, memory, used, instance: Device(f"{'MIG' if instance else 'GPU'}-{number}", "", memory, used),
    st.uuids(),
    st.sampled_from([0, 16 * GB, 24 * GB, 80 * GB]),
    st.sampled_from([0, 0, GB]),
    st.sampled_from([False, False, False, True]),
)
machines = st.builds(
    Machine,
    workers=st.integers(1, 6),
    devices=st.lists(devices, max_size=4).map(tuple),
    memory=st.sampled_from([0, 32 * GB]),
    share=st.booleans(),
)
wishes = st.builds(Resources, devices=st.sampled_from([0, 1, 1, 1, 2, 2, 3, 4]), device_memory=sizes, memory=sizes)


def check_rules(machine: Machine, running: list[Placed]) -> None:
    assert len(running) <= machine.workers
    for placed in running:
        assert len(set(placed.devices)) == (placed.wants.devices if machine.devices else 0)
    for index, device in enumerate(machine.devices):
        there = [placed.wants.device_memory for placed in running if index in placed.devices]
        if len(there) > 1:
            assert machine.share
            assert all(there), "an unknown estimate shares with nobody"
            assert sum(there) <= device.memory * (1 - MARGIN) - device.used
    taken = [main_memory_of(machine, placed.wants) for placed in running]
    if machine.memory and sum(size > 0 for size in taken) > 1:
        assert sum(taken) <= machine.memory * (1 - MARGIN)


def simulate(
    machine: Machine,
    plan: list[Resources],
    lasts: Callable[[], int],
    arrival: int = 0,
    endless: Resources | None = None,
) -> dict[int, int]:
    """Run `plan` in ticks as the scheduler would; each stage runs for `lasts()` ticks.

    With `endless`, one more stage like it comes up behind the plan each tick, from the first; the plan itself from `arrival` on.
    Returns stage → tick of its start.
    """
    running: dict[int, Placed] = {}
    left: dict[int, int] = {}
    started: dict[int, int] = {}
    for tick in range(1000):
        pending = {number: wants for number, wants in enumerate(plan) if number not in started and tick >= arrival}
        others = {number: endless for number in range(len(plan), len(plan) + tick + 1) if number not in started}
        waiting: list[Resources] = []
        for number, wants in {**pending, **(others if endless else {})}.items():
            where = place(machine, list(running.values()), wants, waiting)
            if where is None:
                waiting.append(wants)
                if number >= len(plan):
                    break  # the others are alike
                continue
            running[number], left[number], started[number] = Placed(wants, where), lasts(), tick
            check_rules(machine, list(running.values()))
        if started.keys() >= set(range(len(plan))):
            return started
        for number in list(running):
            left[number] -= 1
            if left[number] == 0:
                del running[number]
    raise AssertionError(f"these never ran: {pending}")


@settings(max_examples=300, deadline=None)
@given(machines, st.lists(wishes, max_size=12), st.data())
def test_no_rule_is_ever_broken_and_all_that_can_run_does(
    machine: Machine, plan: list[Resources], data: st.DataObject
) -> None:
    plan = [wants for wants in plan if not impossible(machine, wants)]
    simulate(machine, plan, lambda: data.draw(st.integers(1, LONGEST)))


@settings(max_examples=300, deadline=None)
@given(machines, st.lists(wishes, min_size=1, max_size=4), wishes)
def test_nobody_starves_behind_an_endless_row_of_others(
    machine: Machine, plan: list[Resources], other: Resources
) -> None:
    """The others come one a tick and all last as long: no two devices ever fall free together by chance."""
    plan = [wants for wants in plan if not impossible(machine, wants)]
    endless = None if impossible(machine, other) else other
    started = simulate(machine, plan, lambda: LONGEST, arrival=LONGEST, endless=endless)
    # Each device may have to run empty for each stage in turn.
    patience = LONGEST * (len(machine.devices) + 1)
    assert all(started[number] <= LONGEST + patience * (number + 1) for number in range(len(plan)))


@given(machines, wishes)
def test_an_idle_machine_takes_whatever_is_not_impossible(machine: Machine, wants: Resources) -> None:
    assert (place(machine, [], wants, []) is None) == bool(impossible(machine, wants))


def test_two_small_trainings_share_a_device_and_two_large_ones_do_not() -> None:
    card = Device("0", "GPU 0", 24 * GB)
    small, large, unknown = (Resources(1, size) for size in (10 * GB, 12 * GB, 0))
    for wants, fits in ((small, True), (large, False), (unknown, False)):
        machine = Machine(2, (card,))
        assert place(machine, [Placed(wants, (0,))], wants, []) == ((0,) if fits else None)
        assert place(Machine(2, (card,), share=False), [Placed(wants, (0,))], wants, []) is None
    assert not fit_together(Device("0", "GPU 0", 24 * GB, used=2 * GB), [10 * GB, 10 * GB]), "others' memory counts"
    assert not fit_together(Device("0", "GPU 0"), [1, 1]), "a device of unknown size is not shared"


def test_empty_devices_come_before_shared_ones_and_the_cpu_runs_beside() -> None:
    two = Machine(4, (Device("0", "", 80 * GB), Device("1", "", 80 * GB)))
    training, recipe = Resources(1, 10 * GB), Resources()
    first = Placed(training, (0,))
    assert place(two, [first], training, []) == (1,)
    assert place(two, [first, Placed(training, (1,))], training, []) == (0,)
    assert place(two, [first, Placed(Resources(1), (1,))], recipe, [Resources(2)]) == ()


def test_a_stage_that_waits_for_two_devices_gets_them() -> None:
    two = Machine(4, (Device("0", "", 80 * GB), Device("1", "", 80 * GB)))
    both, one = Resources(2), Resources(1)
    assert place(two, [Placed(one, (0,))], both, []) is None
    assert place(two, [Placed(one, (0,))], one, [both]) is None, "the free device is kept for what waits"
    assert place(two, [Placed(one, (0,))], one, []) == (1,)
    assert place(two, [], both, []) == (0, 1)


def test_without_devices_trainings_share_the_main_memory() -> None:
    machine = Machine(4, memory=16 * GB)
    training = Resources(1, 8 * GB)
    assert place(machine, [Placed(training, ())], training, []) is None
    assert place(machine, [Placed(training, ())], Resources(1, 6 * GB), []) == ()
    assert place(machine, [], Resources(1, 40 * GB), []) == (), "alone it may always try"


def test_what_can_never_run_is_said_in_words() -> None:
    cards = tuple(Device(str(n), f"GPU {n}") for n in range(2))
    assert impossible(Machine(2, cards), Resources(3)) == "it wants 3 devices at once, and this run has 2 devices."
    assert impossible(Machine(2, cards), Resources(2)) == ""
    assert impossible(Machine(2), Resources(8)) == "", "on a CPU, devices are no matter"
    instances = tuple(Device(f"MIG-{n}", f"GPU 0.{n}") for n in range(2))
    assert "only one MIG instance" in impossible(Machine(2, instances), Resources(2))
