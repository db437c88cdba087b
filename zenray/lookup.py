"""What happens to a step run that is ready: its result is committed already, is being made just now, or it has to run.

Runs in: driver.

Of all runs that share a ledger and a store only one computes a key at a time. Within a run the first step run with a
key computes it and its twins wait; between runs a claim in the ledger says who does. A claim lasts as long as its run:
when that has died, the next one that asks takes it over.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from zenray import artifacts
from zenray.journal import StepState
from zenray.metadata.records import CacheEntry, Claims
from zenray.model import Manifest
from zenray.relevance import unforeseen
from zenray.store import Store

POLL_S = (0.05, 0.5)  # how often another run's work is looked for: at first, and in the end
REAP_S = 2.0  # how often runs whose process is gone are looked for meanwhile

Found = tuple[CacheEntry, tuple[Manifest, ...]]


class CacheReader(Protocol):
    """What is read from the metadata store, and who computes what."""

    def find_cache_entries(self, keys: Sequence[str], *, store: str) -> Mapping[str, Found]:
        """Return the entries of those keys that have one, each with its outputs' manifests."""
        ...

    def claim(self, keys: Mapping[str, str], *, store: str, run_id: str) -> Claims:
        """Claim keys, each for a step run of that name; return who holds those not got, and which have an entry."""
        ...


@dataclass(slots=True)
class Sorted:
    """What is to be done with step runs: results that are there, and those that run. All others wait."""

    hits: list[tuple[StepState, CacheEntry, tuple[Manifest, ...]]]
    to_run: list[StepState]


class Lookup:
    """Looks keys up in batches, and remembers who waits for whom. Used under the engine's lock.

    ``outer`` are the runs in whose steps this run was started: they wait for it, so it never waits for them.
    """

    def __init__(
        self, run_id: str, *, reader: CacheReader, store: Store, reap: Callable[[], object], outer: Collection[str] = ()
    ) -> None:
        self._run_id, self._reader, self._store, self._reap = run_id, reader, store, reap
        self._outer = frozenset(outer)
        self._twins: dict[str, tuple[StepState, list[StepState]]] = {}  # of each key: who computes it, and who waits
        self._awaited: dict[str, list[StepState]] = {}  # keys that other runs compute
        self._poll_at = self._reap_at = 0.0
        self._pause_s = POLL_S[0]

    @property
    def is_waiting(self) -> bool:
        """True where a step run waits for another run."""
        return bool(self._awaited)

    def sort(self, states: Sequence[StepState], *, use_cache: bool) -> Sorted:
        """Decide for step runs whose keys are known; what is to run is claimed when its turn has come."""
        result = Sorted([], [])
        wanted: dict[str, list[StepState]] = {}
        for state in states:
            key = state.key.key if state.key else ""
            if not (key and use_cache and state.step.settings.cache):
                result.to_run.append(state)
            elif key in self._twins:
                self._twins[key][1].append(state)
            elif key in self._awaited:
                self._await(state, self._awaited[key][0].awaits)
            else:
                wanted.setdefault(key, []).append(state)
        for key, group in self._take_hits(wanted, result).items():
            self._twins[key] = group[0], group[1:]
            result.to_run.append(group[0])
        return result

    def claim(self, states: Sequence[StepState]) -> Sorted:
        """Claim the keys of step runs that are about to start; sort out those whose result another run makes or made.

        Only then: a claim that is held while nothing runs would keep others waiting for nothing.
        """
        result = Sorted([], [])
        wanted: dict[str, list[StepState]] = {}
        for state in states:
            leads = self._twins.get(state.key.key if state.key else "", (None,))[0] is state
            if leads and not state.holds_claim and state.key:
                wanted[state.key.key] = [state]
            else:
                result.to_run.append(state)
        self._decide(wanted, result)
        return result

    def poll(self) -> Sorted:
        """Look again for what other runs were computing: results that are there now, and keys that were let go."""
        result = Sorted([], [])
        now = time.monotonic()
        if not self._awaited or now < self._poll_at:
            return result
        if now >= self._reap_at:
            self._reap_at = now + REAP_S
            self._reap()
        self._pause_s = min(1.5 * self._pause_s, POLL_S[1])
        self._poll_at = now + self._pause_s
        awaited, self._awaited = self._awaited, {}
        missing = self._take_hits(awaited, result)
        for key, group in missing.items():
            self._twins[key] = group[0], group[1:]
        self._decide({key: group[:1] for key, group in missing.items()}, result)
        return result

    def end(self, state: StepState) -> list[StepState]:
        """Return the step runs that wait for what this one computed; they wait no more."""
        key = state.key.key if state.key else ""
        if self._twins.get(key, (None,))[0] is not state:
            return []
        return self._twins.pop(key)[1]

    def forget(self) -> None:
        """Let nobody wait any more: the run is cancelled."""
        self._awaited.clear()

    def _decide(self, wanted: dict[str, list[StepState]], result: Sorted) -> None:
        """Claim keys, each for the step run that leads: it runs, takes a result that came meanwhile, or waits."""
        if not wanted:
            return
        names = {key: states[0].name for key, states in wanted.items()}
        found = self._reader.claim(names, store=self._store.uri, run_id=self._run_id)
        for key, claim in found.held.items():
            (leader,) = wanted.pop(key)
            if claim.run_id in self._outer:
                leader.awaits = ""
                result.to_run.append(leader)
                continue
            for state in (leader, *self._twins.pop(key)[1]):
                self._await(state, claim.run_id)
        for (leader,) in wanted.values():
            leader.holds_claim = True
        # Whoever held one of them before may have committed its result between the two questions.
        late = {key: wanted.pop(key) for key in found.recorded & wanted.keys()}
        wanted |= self._take_hits(late, result)
        for (leader,) in wanted.values():
            leader.awaits = ""
            result.to_run.append(leader)

    def _take_hits(self, wanted: dict[str, list[StepState]], result: Sorted) -> dict[str, list[StepState]]:
        """Move what has a usable result to the hits, and return the rest."""
        found = self._reader.find_cache_entries(list(wanted), store=self._store.uri) if wanted else {}
        missing: dict[str, list[StepState]] = {}
        for key, states in wanted.items():
            entry = found.get(key)
            for state in states:
                state.refusal = self._refusal(state, *entry) if entry else ""
                if entry is None or state.refusal:
                    missing.setdefault(key, []).append(state)
                    continue
                state.awaits = ""
                result.hits.append((state, *entry))
        return missing

    def _await(self, state: StepState, run_id: str) -> None:
        assert state.key is not None
        if not self._awaited:
            self._pause_s = POLL_S[0]
            self._poll_at = time.monotonic() + self._pause_s
        state.awaits = run_id
        self._awaited.setdefault(state.key.key, []).append(state)

    def _refusal(self, state: StepState, entry: CacheEntry, manifests: Sequence[Manifest]) -> str:
        """Say why a cached result cannot be used; empty where it can."""
        expiry_s = state.step.settings.cache_expiry_s
        if expiry_s is not None and time.time() - entry.created_at > expiry_s:
            return f"the cached result of run {entry.run_id} had expired"
        names = [name for name, _ in entry.outputs]
        if names != [o.name for o in state.step.outputs] or len(manifests) != len(names):
            return f"the cached result of run {entry.run_id} is not all there"
        parts = state.key.parts if state.key else {}
        surprise = next(filter(None, (unforeseen(m, parts.get("environment") or {}) for m in manifests)), "")
        if surprise:
            return f"the step's code does not name {surprise!r}, whose materializer may have changed since"
        missing = [m for m in manifests if not artifacts.exists(m, self._store)]
        if missing:
            return f"artifact {missing[0].digest[:12]} of run {entry.run_id} is no longer in the store"
        return ""
