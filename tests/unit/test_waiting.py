"""A server that is away is waited for by many threads, and whoever waits is told once for all of them."""

import socket
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from zenray.errors import ConfigError, MetadataError, StoreError
from zenray.metadata.database import Database
from zenray.store.faults import Fault, Patience, classify
from zenray.waiting import Server, Waiter, retry_s_of


class Away:
    """A server that fails until it is let back."""

    def __init__(self, *, retry_s: float = 600.0, is_reached: bool = True) -> None:
        self.told: list[str] = []
        self.is_back = threading.Event()
        self.waiter = Waiter(self.told.append)
        self.server = Server("the store 'x'", retry_s=retry_s, waiter=self.waiter, is_reached=is_reached)
        self.tries = 0

    def use(self) -> str:
        with self.server.call() as call:
            while not self.is_back.is_set():
                self.tries += 1
                if not call.pause("ConnectionRefusedError: port 9"):
                    return f"given up{call.tried}"
            call.answer()
            return "answer"


def wait_until(is_true: Callable[[], object]) -> None:
    done = threading.Event()
    for _ in range(600):
        if is_true():
            return
        done.wait(0.05)
    raise AssertionError("it never came")


def test_a_wait_of_many_threads_is_told_once_for_all_and_so_is_its_end() -> None:
    away = Away()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(away.use())) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: away.told)
    away.is_back.set()
    for thread in threads:
        thread.join()
    assert found == ["answer"] * 8
    first, last = away.told
    assert first.startswith("waiting for the store 'x' (ConnectionRefusedError: port 9): ")
    assert first.endswith(" of at most 10 min")
    assert last.startswith("the store 'x' answers again, after ")


def test_an_answer_that_does_not_come_is_told_too() -> None:
    away = Away()

    def hang() -> None:
        with away.server.call() as call:
            away.is_back.wait(60)
            call.answer()

    thread = threading.Thread(target=hang)
    thread.start()
    wait_until(lambda: away.told)
    away.is_back.set()
    thread.join()
    assert away.told[0].startswith("waiting for the store 'x', no answer yet: ")
    assert away.told[1].startswith("the store 'x' answers again, after ")


def test_a_fault_that_passes_soon_is_not_told() -> None:
    away = Away()
    threading.Timer(0.5, away.is_back.set).start()
    assert away.use() == "answer"
    assert away.tries > 1
    assert away.told == []


def test_a_server_that_stays_away_is_given_up_after_its_time_and_that_is_said() -> None:
    assert Away(retry_s=0.5).use().startswith("given up for 0.")
    assert Away(retry_s=0).use().startswith("given up for 0.00 s")


def test_a_server_that_nobody_has_reached_is_given_up_soon() -> None:
    away = Away(is_reached=False)
    assert away.use().startswith("given up")
    with away.server.call() as call:
        call.answer()
    assert away.server.is_reached


def test_who_hurries_waits_no_more() -> None:
    away = Away()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(away.use()))
    thread.start()
    wait_until(lambda: away.tries > 3)
    away.waiter.hurry()
    thread.join()
    assert found[0].startswith("given up")
    assert away.use().startswith("given up")


@pytest.mark.parametrize("value", ["soon", -1, None, True, []])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"'artifact_store': 'retry_s' must be a number of seconds, such as 1800"):
        retry_s_of(value, "'artifact_store'")


def test_a_duration_may_have_a_unit() -> None:
    assert (retry_s_of(600, ""), retry_s_of("600", ""), retry_s_of("2h", "")) == (600, 600, 7200)


def looked_up(host: str) -> str:
    return str(socket.getaddrinfo(host, 80, flags=socket.AI_NUMERICHOST)[0][4][0])


def test_a_store_whose_name_is_not_resolved_for_a_while_is_waited_for_once_it_was_reached() -> None:
    hosts = ["no host", "no host", "127.0.0.1"]
    store = Patience(Server("the store 'x'", is_reached=True))
    assert store.call("look at", lambda: looked_up(hosts.pop(0))) == "127.0.0.1"
    assert hosts == []
    gone = Patience(Server("the store 'x'", is_reached=True, retry_s=0.2))
    with pytest.raises(StoreError, match=r"there is no such host for [0-9.]+ s: check"):
        gone.call("look at", looked_up, "no host")


def test_a_store_that_was_never_reached_and_has_no_host_is_given_up_at_once() -> None:
    hosts = ["no host", "127.0.0.1"]
    with pytest.raises(StoreError, match="there is no such host: check"):
        Patience(Server("the store 'x'")).call("look at", lambda: looked_up(hosts.pop(0)))
    assert hosts == ["127.0.0.1"]


def test_a_name_server_that_fails_passes() -> None:
    assert classify(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")) is Fault.PASSING


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_a_database_whose_name_is_not_resolved_is_waited_for(driver: str) -> None:
    pytest.importorskip(driver.partition("+")[2])
    told: list[str] = []
    database = Database(f"{driver}://u:hid@no-such-host.invalid/db", retry_s=0.2, waiter=Waiter(told.append))
    database.server.is_reached = True
    with pytest.raises(MetadataError, match="; it was tried for ") as error:
        database.read(text("select 1"))
    assert "hid" not in str(error.value)
