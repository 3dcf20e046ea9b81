"""The one orchestrator: what is asked for is read from the store, and made where it is missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from resnet8_eval import backends, environment, lanes, stages
from resnet8_eval.configurations import Configuration
from resnet8_eval.errors import StageError, SuiteError
from resnet8_eval.inputs import Inputs, Settings
from resnet8_eval.store import SCHEDULING, Artifact, Store, digest


class Pipeline:
    """The stages of one run, and the store that they are kept in.

    Parameters
    ----------
    settings
        What the run is asked for.
    announce
        Told one line about each stage that had to be made, and one where another process is waited
        for.
    """

    def __init__(self, settings: Settings, announce: lanes.Announce = lambda _: None) -> None:
        self.settings = settings
        self.store = Store(settings.cache_dir, settings.run)
        self.stages = {stage.name: stage for stage in stages.table(settings)}
        self._announce = announce
        self._failures: dict[str, SuiteError] = {}
        self._made: dict[str, Artifact] = {}

    def prepare(self, names: Iterable[str]) -> None:
        """Make whatever of these stages, and of those they need, is missing.

        Parameters
        ----------
        names
            Stage names. A stage that fails is not reported here; :meth:`artifact` raises its
            error.
        """
        wanted = self.closure(names)
        if all(self.peek(name) for name in wanted):
            return
        # One process schedules at a time; another that wants the same finds it made.
        with self.store.lock(SCHEDULING, self._announce):
            missing = [self.stages[name] for name in wanted if not self.peek(name)]
            make = functools.partial(
                _make, self.settings, {stage.name: self.key(stage.name) for stage in missing}
            )
            logs = self.settings.cache_dir / "logs"
            failed = lanes.run(missing, make, logs, self._announce, self.settings.alone)
            self._failures.update(failed)

    def forget(self, names: Iterable[str]) -> None:
        """Remove stages from the cache, to have them made anew, and how far trainings were.

        What this run made stays: another process of it may have been first.

        Parameters
        ----------
        names
            Stage names.
        """
        # Not under the hands of a run that is making what it needs of them.
        with self.store.lock(SCHEDULING, self._announce):
            for name in names:
                self._made.pop(name, None)
                yet_to_make = self.store.discard(name, self.key(name))
                if yet_to_make and name.startswith("qat-training/"):
                    self.store.discard_trainings()

    def artifact(self, name: str) -> Artifact:
        """The artefact of a stage, made now if it is missing.

        Parameters
        ----------
        name
            A stage name.

        Raises
        ------
        SuiteError
            Why it could not be made.
        """
        if not self.peek(name) and name not in self._failures:
            self.prepare([name])
        return self._found(name)

    def _found(self, name: str) -> Artifact:
        found = self.peek(name)
        if found is None:
            raise self._failures.get(name) or StageError(
                f"The artefact of stage {name} was there and is gone.",
                expected="artefacts that stay while a run reads them",
                given="a folder removed or damaged in the meantime",
                next_step="run again, and leave the cache alone meanwhile",
            )
        return found

    def peek(self, name: str) -> Artifact | None:
        """The artefact of a stage if it exists; nothing is made."""
        if name not in self._made and (found := self.store.get(name, self.key(name))):
            self._made[name] = found
        return self._made.get(name)

    def make(self, name: str, threads: int) -> Artifact:
        """Make one stage in this process, with so many threads.

        Raises
        ------
        StageError
            If something that it needs does not exist; nothing else is made here.
        """
        stage = self.stages[name]
        found = {need: self._found(need) for need in stage.needs}
        return self.store.produce(
            name, self.key(name), lambda out: stage.make(Inputs(self.settings, found, threads, out))
        )

    @functools.cache  # noqa: B019 (a pipeline lives as long as its process)
    def key(self, name: str) -> str:
        """Hash of everything that decides a stage's content."""
        stage = self.stages[name]
        return digest(
            {
                "stage": name,
                "decided_by": stage.decided_by,
                "needs": {need: self.key(need) for need in stage.needs},
                "environment": environment.fingerprint(),
            }
        )

    def closure(self, names: Iterable[str]) -> list[str]:
        """These stages and all that they need, in table order."""
        wanted: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending += self.stages[name].needs
        return [name for name in self.stages if name in wanted]


def model_path(pipeline: Pipeline, row: Configuration) -> Path:
    """The stored model that a row's numbers come from."""
    made = backends.model_file(row)
    return pipeline.artifact(made[0]).path(made[1]) if made else pipeline.settings.assets.model


def _make(settings: Settings, keys: Mapping[str, str], name: str, threads: int) -> float:
    """In a lane: make one stage and return how long it took."""
    pipeline = Pipeline(settings)
    if pipeline.key(name) != keys[name]:
        raise StageError(
            f"Stage {name} was not made, because the suite changed while it was running.",
            expected="the code, packages and processor settings that the run started with",
            given="others in the process that was to make it",
            next_step="run again, and edit or install nothing meanwhile",
        )
    return pipeline.make(name, threads).seconds
