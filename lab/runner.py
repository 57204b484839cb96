"""Runs trials: a fresh arena, the load, the drain, the samples, the bill."""

from __future__ import annotations

import contextlib
import gc
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import resources
from lab.arenas.executor import ExecutorProgram
from lab.bench import Bench
from lab.checks import faults
from lab.jobs import Jobs
from lab.model import LabError, Run, Trial
from lab.observe import Tapes, observe
from lab.plan import expected_s
from lab.session import Session
from producer.pacers import Closed
from producer.publish import Sent

PATIENCE = 5.0
PATIENCE_S = 20.0
"""A run may take this many times, and this much longer, than expected before its missing jobs count as lost."""
RETAKES = 2
"""A run that was disturbed is taken again this often before its fault stands."""
PARTS = 10
"""Into which loads are cut that are run side by side: what changes on the machine within a run then hits all alike."""
DISTURBANCES = frozenset({"noisy_machine", "machine_left", "late_tail"})
"""Faults of a moment, which may not come again: others used the machine, one was lost, the producer was held up."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs trials of one session."""

    session: Session
    cores: int
    retakes: int = RETAKES
    idle: Callable[[], None] = lambda: None
    """Called now and then while nothing urgent happens, such as to draw a progress bar."""

    def run(self, trial: Trial) -> Run:
        """Run the trial; again, up to `retakes` times, when others used the machine meanwhile.

        Raises LabError when its workers do not come up.
        """
        return self.together([trial])[0]

    def together(self, trials: Sequence[Trial]) -> list[Run]:
        """Run queued trials at the same time, their loads in turns, part by part; all again where one was disturbed.

        Their workers all stand ready, and only one trial's jobs are under way at any moment. Raises LabError when
        workers do not come up.
        """
        retakes = 0
        while True:
            runs = [replace(run, retakes=retakes) for run in self._once(trials)]
            # kombu's connections lie in cycles and hold files until those are found, which takes ever longer the more
            # a suite holds: after a thousand trials there would be no file left to open.
            gc.collect()
            runs = [replace(run, faults=faults(run)) for run in runs]
            # A machine that has left would only be missed again; whoever continues the suite takes the trial again.
            gone = any(fault.check == "machine_left" for run in runs for fault in run.faults)
            if retakes == self.retakes or gone or not any(map(is_disturbed, runs)):
                self.session.watch.changes.clear()  # these runs tell of them
                return runs
            retakes += 1

    def _once(self, trials: Sequence[Trial]) -> list[Run]:
        with self.session.awake(trials[0].setup):
            if trials[0].setup.queued:
                return self._queued(trials)
            return [self._bare(trial) for trial in trials]

    @contextlib.contextmanager
    def _place(self) -> Iterator[tuple[int, Path]]:
        """A nonce for one trial, and a folder that is gone afterwards."""
        nonce = secrets.randbits(63)
        directory = self.session.children.directory / f"trial-{nonce:016x}"
        try:
            yield nonce, directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _queued(self, trials: Sequence[Trial]) -> list[Run]:
        with contextlib.ExitStack() as stack:
            benches = []
            for trial in trials:
                nonce, directory = stack.enter_context(self._place())
                limit_s = _limit_s(trial, self.cores)
                benches.append(stack.enter_context(Bench(trial, self.session, nonce, directory, limit_s=limit_s)))
            parts = PARTS if len(benches) > 1 else 1
            for part in range(parts):
                # Whoever was first comes last the next time: what grows steadily hits all alike.
                for bench in benches if part % 2 == 0 else reversed(benches):
                    others = [p for other in benches if other is not bench for p in other.processes()]
                    bench.go(part, parts, others=[*self.session.helpers, *others], idle=self.idle)
            return [bench.run() for bench in benches]

    def _bare(self, trial: Trial) -> Run:
        with self._place() as (nonce, directory):
            tapes = Tapes(directory / "tapes")
            tapes.directory.mkdir(parents=True)
            return self._execute(trial, Jobs(self.session, trial.setup, nonce), directory, tapes)

    def _execute(self, trial: Trial, jobs: Jobs, directory: Path, tapes: Tapes) -> Run:
        setup = trial.setup
        if isinstance(setup.pacer, Closed):
            raise LabError(f"{setup.label}: a closed load needs workers to wait for; it cannot run without a queue")
        due_ns = [round(due * 1e9) for due in jobs.pacer.due_s()]
        program = ExecutorProgram(
            self.session.children,
            setup,
            python=self.session.python(setup),
            directory=directory,
            tape_dir=tapes.directory,
            nonce=jobs.nonce,
            due_ns=due_ns,
            jobs=[(jobs.name(seq), jobs.args(seq), jobs.beside(seq)) for seq in range(len(due_ns))],
            broker_url=self.session.broker.url,
        )
        try:
            before = resources.snapshot(program.processes(), self.session.helpers)
            start_ns, sent_ns = program.go(timeout_s=_limit_s(trial, self.cores))
            after = resources.snapshot(program.processes(), self.session.helpers)
            pairs = enumerate(zip(due_ns, sent_ns, strict=True))
            sent = [Sent(seq, start_ns + due, moment, moment) for seq, (due, moment) in pairs]
            samples, ledger = observe(sent, tapes.marks(jobs.nonce), expected=jobs.expected, beside=jobs.beside)
            bill = resources.bill(program, [(before, after)], sent, samples)
            return Run(trial, samples, ledger, bill, processes=tuple(tapes.headers()))
        finally:
            program.close()


def is_disturbed(run: Run) -> bool:
    """Whether something came between that has nothing to do with the trial, which so is better taken again."""
    return any(fault.check in DISTURBANCES for fault in run.faults)


def _limit_s(trial: Trial, cores: int) -> float:
    return PATIENCE * expected_s(trial, cores=cores) + PATIENCE_S
