"""Threads for work that waits: bounded, reused, and no reason for a process to stay."""

import gc
import subprocess
import sys
import threading

import pytest

from zenray.threads import Threads


def test_no_more_than_so_many_work_at_once_and_all_is_done() -> None:
    threads, at_work, most = Threads(3, "some"), threading.Semaphore(3), []

    def work(n: int) -> int:
        most.append(at_work.acquire(blocking=False))
        threading.Event().wait(0.01)
        at_work.release()
        return n

    futures = [threads.submit(work, n) for n in range(30)]
    assert [f.result() for f in futures] == list(range(30))
    assert all(most)


def test_an_idle_thread_is_used_again() -> None:
    threads = Threads(8, "one-by-one")
    names = {threads.submit(lambda: threading.current_thread().name).result() for _ in range(20)}
    assert len(names) < 8


def test_an_error_reaches_who_waits_and_the_thread_goes_on() -> None:
    threads = Threads(1, "failing")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result()
    assert threads.submit(lambda: 1).result() == 1


def test_work_that_has_not_begun_can_be_cancelled() -> None:
    threads, may_end = Threads(1, "busy"), threading.Event()
    first, second = threads.submit(may_end.wait), threads.submit(lambda: 1)
    assert second.cancel()
    may_end.set()
    assert first.result()


def test_threads_that_nobody_needs_any_more_end() -> None:
    threads = Threads(2, "forgotten")
    threads.submit(lambda: None).result()
    del threads
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("forgotten"):
            thread.join(30)
            assert not thread.is_alive()


def test_a_process_ends_while_one_is_still_at_work() -> None:
    code = "import time; from zenray.threads import Threads; Threads(1, 'x').submit(time.sleep, 600)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
