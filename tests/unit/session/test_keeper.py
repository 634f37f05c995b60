# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session process in states that a real server rarely reaches: a fake psycopg2 replaces the server.

The tests use the real process: started by ``Session.launch``, detached, asked over its socket.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pathlib
import signal
import socket
import sys
import textwrap
import threading
import time
import types
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import connection as _connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session import keeper as _session_keeper
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session import session as _session
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

from tests.unit.helpers.made_up_server import PASSWORD, PSYCOPG2, Case
from tests.unit.helpers.processes import processes_with, wait_until


@pytest.fixture
def case(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Case]:
    """A session process that is not started yet; after the test none may remain."""
    driver = tmp_path / "lib" / "psycopg2"
    driver.mkdir(parents=True)
    (driver / "__init__.py").write_text(PSYCOPG2)
    (driver / "extensions.py").write_text("encodings = {}\n")
    monkeypatch.setattr(_connection, "psycopg2", types.SimpleNamespace(__file__=str(driver / "__init__.py")))
    # Without the environment's packages, which may include a real psycopg2.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    source = inspect.getsource(_session_keeper)
    assert "\nTICK = 5.0\n" in source
    monkeypatch.setattr(inspect, "getsource", lambda module: source.replace("\nTICK = 5.0\n", "\nTICK = 0.05\n"))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    one = Case(tmp_path)
    yield one
    left = processes_with(str(tmp_path))
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "a session process was left behind"


def test_start_and_stop(case: Case) -> None:
    session = case.launch()
    state = session.wait_started()
    assert (state["start_lsn"], state["start_timeline"], state["backend_pid"]) == ("0/2000028", 1, 4711)
    assert bytes.fromhex(state["tablespaces"][0]["location"]) == b"/srv/caf\xe9"
    answer = session.ask("stop")
    assert (answer["state"], answer["stop_lsn"]) == ("stopped", "0/2000120")
    assert bytes.fromhex(answer["label_file"]) == b"LABEL: caf\xe9\n"
    assert bytes.fromhex(answer["map_file"]) == b"16385 /srv/caf\xe9\n"
    assert {key: answer[key] for key in case.ended()} == case.ended()
    queries = [query for query, _parameters in case.log()]
    assert queries.count("SELECT pg_backup_start(%s, %s)::text") == 1
    assert "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)" in queries
    assert queries[0] == "SELECT pg_catalog.set_config('search_path', '', false)"
    switched_off = [parameters[0] for query, parameters in case.log() if "set_config" in query and parameters]
    assert switched_off == [*_session_keeper.TIMEOUTS, "transaction_timeout"]
    with pytest.raises(BackupError) as caught:
        session.watch()
    assert caught.value.code == "already_stopped"


def test_version_14(case: Case) -> None:
    """Version 14 defaults to the exclusive mode and has no transaction_timeout."""
    session = case.launch(version=140000)
    session.wait_started()
    assert session.ask("stop")["map_file"] == ""
    queries = [query for query, _parameters in case.log()]
    assert "SELECT pg_start_backup(%s, %s, false)::text" in queries
    assert "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)" in queries
    assert not any(parameters and parameters[0] == "transaction_timeout" for _query, parameters in case.log())
    case.ended()


SLOT = "pg_create_physical_replication_slot"


def test_it_keeps_the_wal_until_it_is_released(case: Case) -> None:
    """The slot exists before the start and is dropped with the connection, which outlives the stop."""
    session = case.launch(orders={"reserve_wal": True})
    state = session.wait_started()
    queries = [query for query, _parameters in case.log()]
    (asked,) = [place for place, query in enumerate(queries) if SLOT in query]
    assert asked < queries.index("SELECT pg_backup_start(%s, %s)::text")
    assert case.log()[asked] == [f"SELECT {SLOT}(%s, true, true)", [state["slot"]]]
    assert session.ask("release")["state"] == "running"
    for _twice in range(2):
        assert session.ask("stop")["state"] == "stopped"
        assert session.alive()
    assert session.ask("status")["stop_lsn"] == "0/2000120"
    assert session.ask("release")["state"] == "stopped"
    assert case.ended()["state"] == "stopped"


def test_no_slot_without_need(case: Case) -> None:
    session = case.launch()
    assert session.wait_started()["slot"] is None
    session.ask("stop")
    case.ended()
    assert not case.was_asked(SLOT)


@pytest.mark.parametrize(
    "on, code, sqlstate",
    [
        ([SLOT, "fails", "all replication slots are in use", "53400"], "server_error", "53400"),
        (["FROM pg_replication_slots", "rows", [False]], "slot_too_new", None),
        (["FROM pg_replication_slots", "rows", [None]], "slot_too_new", None),
    ],
)
def test_the_slot_is_no_good(case: Case, on: list[t.Any], code: str, sqlstate: str | None) -> None:
    session = case.launch(on, orders={"reserve_wal": True})
    with pytest.raises(BackupError) as caught:
        session.wait_started()
    assert (caught.value.code, caught.value.details["sqlstate"]) == (code, sqlstate)
    assert case.ended()["state"] == "failed"


@pytest.mark.parametrize("end", ["lease", "deadline", "connection", "abort", "signal"])
def test_it_does_not_retain_the_wal_forever(case: Case, end: str) -> None:
    """A stopped backup stays stopped, however the session ends after that."""
    limits = {"lease": {"session_idle_timeout": 0.5}, "deadline": {"session_timeout": 1}}.get(end, {})
    session = case.launch(orders={"reserve_wal": True, **limits})
    pid = session.wait_started()["pid"]
    assert session.ask("stop")["state"] == "stopped"
    if end == "connection":
        case.wire(b"end")
    elif end == "abort":
        session.ask("abort")
    elif end == "signal":
        os.kill(pid, signal.SIGTERM)
    last = case.ended()
    assert (last["state"], last["stop_lsn"]) == ("stopped", "0/2000120")


def test_a_connection_that_is_lost_with_its_slot(case: Case) -> None:
    session = case.launch(orders={"reserve_wal": True})
    session.wait_started()
    case.wire(b"end")
    with pytest.raises(BackupError) as caught:
        _session.require_alive(case.ended())
    assert (caught.value.code, "max_slot_wal_keep_size" in caught.value.hint) == ("connection_lost_with_slot", True)


def test_what_is_visible_of_it(case: Case) -> None:
    """ps shows the process; no file, command line or environment has the password; no descriptor is kept."""
    session = case.launch()
    pid = session.wait_started()["pid"]
    process = pathlib.Path(f"/proc/{pid}")
    # The script in memory, and its argument.
    line = (process / "cmdline").read_bytes().split(b"\0")
    assert line[-3].startswith(b"/proc/self/fd/")
    assert line[-2:] == [os.fsencode(session.directory), b""]
    assert not [name for name in os.listdir(session.directory) if name.endswith(".py")]
    assert PASSWORD.encode() not in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert os.readlink(process / "cwd") == "/"
    assert [os.readlink(process / "fd" / str(number)) for number in range(3)] == ["/dev/null"] * 3
    assert os.getsid(pid) != os.getsid(0)
    assert json.loads((case.server / "arguments").read_text())["password"] == PASSWORD
    for path in pathlib.Path(session.directory).iterdir():
        if path.is_file():
            assert PASSWORD not in path.read_text(), path
            assert path.stat().st_mode & 0o077 == 0, path
    session.ask("abort")
    assert case.ended()["code"] == "aborted"


@pytest.mark.parametrize("label", ["nightly", "Größe €", "日本", "quote ' and % sign"])
def test_label(case: Case, label: str) -> None:
    """The driver encodes latin-1, so that the server gets the bytes of UTF-8."""
    session = case.launch(orders={"label": label})
    session.wait_started()
    given = next(parameters for query, parameters in case.log() if "backup_start" in query)
    assert given[0].encode("latin-1") == label.encode("utf-8")
    session.ask("abort")
    case.ended()


@pytest.mark.parametrize(
    "on, code, sqlstate, text",
    [
        (["backup_start", "fails", "permission denied for function", "42501"], "server_error", "42501", "permission"),
        (["backup_start", "fails", "Zugriff verweigert f\xc3\xbcr", "42501"], "server_error", "42501", "für"),
        (["pg_is_in_recovery()", "rows", [4712, False]], "pooling_proxy", None, "pooling proxy"),
        (["pg_is_in_recovery()", "rows", [4711, True]], "role_changed", None, "role"),
        (["system_identifier", "rows", ["1"]], "other_cluster", None, "another cluster"),
        (["system_identifier", "fails", ""], "server_error", None, "Error"),
    ],
)
def test_start_fails(case: Case, on: list[t.Any], code: str, sqlstate: str | None, text: str) -> None:
    session = case.launch(on)
    with pytest.raises(BackupError) as caught:
        session.wait_started()
    assert (caught.value.code, caught.value.details["sqlstate"]) == (code, sqlstate)
    assert text in caught.value.msg
    assert case.ended()["state"] == "failed"


def test_connection_is_refused(case: Case) -> None:
    session = case.launch(connect=[["fails", "could not connect: \nConnection refused"]])
    with pytest.raises(BackupError, match="could not connect: Connection refused"):
        session.wait_started()
    case.ended()


@pytest.mark.parametrize(
    "on, code",
    [
        (["backup_stop", "fails", "the standby was promoted during online backup", "55000"], "server_error"),
        (["SELECT pg_backend_pid()", "rows", [9]], "pooling_proxy"),
        # The result exists, but not the value to compare it with.
        (["min_recovery_end_timeline", "fails", "server closed the connection unexpectedly"], "server_error"),
        (["pg_tablespace_location", "fails", "server closed the connection unexpectedly"], "server_error"),
    ],
)
def test_stop_fails(case: Case, on: list[t.Any], code: str) -> None:
    """A backup whose stop failed, for whatever reason, is void and stays void."""
    session = case.launch()
    session.wait_started()
    case.script(on)
    answer = session.ask("stop")
    assert (answer["state"], answer["code"], answer["failed_in"]) == ("failed", code, "stopping")
    assert case.ended()["state"] == "failed"
    with pytest.raises(BackupError):
        _session.require_alive(session.ask("stop"))


def test_connection_lost_between(case: Case) -> None:
    session = case.launch(farewell=["FATAL:  terminating connection\n  due to administrator command\n"])
    session.wait_started()
    watch = session.watch()
    watch.check()
    case.wire(b"notice")
    watch.check()
    case.wire(b"bye")
    with pytest.raises(BackupError) as caught:
        wait_until(watch.check, "the news")
    assert caught.value.code == "connection_lost"
    assert "terminating connection due to administrator command" in caught.value.msg
    assert case.ended()["state"] == "failed"


@pytest.mark.parametrize("when", ["connect", "backup_start", "backup_stop"])
@pytest.mark.parametrize("cause", ["session_timeout", "aborted", "signal"])
def test_end_while_the_server_works(case: Case, when: str, cause: str) -> None:
    timeout = 2.0 if cause == "session_timeout" else 60
    script = {"connect": [["blocks"]]} if when == "connect" else {}
    session = case.launch([when, "blocks"], orders={"session_timeout": timeout}, **script)
    asked = None
    if when == "backup_stop":
        session.wait_started()
        asked = _in_thread(lambda: session.ask("stop"))
    state = {"connect": "connecting", "backup_start": "starting", "backup_stop": "stopping"}[when]
    wait_until(lambda: case.was_asked(when) or not session.alive(), when)
    if cause == "aborted":
        answer = session.ask("abort")
        assert answer["state"] == "failed"
    elif cause == "signal":
        os.kill(session.recorded()["pid"], signal.SIGTERM)
    end = case.ended()
    assert (end["state"], end["code"], end["failed_in"]) == ("failed", cause, state)
    assert (case.server / "canceled").exists() == (when != "connect")
    if asked is not None:
        assert asked()["code"] == cause


def _in_thread(work: t.Callable[[], t.Any]) -> t.Callable[[], t.Any]:
    """Begin ``work`` and return a function that waits for its result."""
    results: list[t.Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result() -> t.Any:
        thread.join(20)
        return results[0]

    return result


def test_two_stops_at_once(case: Case) -> None:
    """The server is asked once, and both get the answer."""
    session = case.launch(["backup_stop", "blocks"])
    session.wait_started()
    first, second = _in_thread(lambda: session.ask("stop")), _in_thread(lambda: session.ask("stop"))
    case.in_state("stopping")
    time.sleep(0.05)
    case.go()
    assert [first()["state"], second()["state"]] == ["stopped", "stopped"]
    case.ended()
    assert sum("backup_stop" in query for query, _parameters in case.log()) == 1
    assert session.ask("stop")["state"] == "stopped"


def test_stop_before_it_runs(case: Case) -> None:
    session = case.launch(["backup_start", "blocks"])
    case.in_state("starting")
    assert session.ask("stop")["state"] == "starting"
    case.go()
    session.wait_started()
    session.ask("abort")
    assert case.ended()["code"] == "aborted"


def test_idle_lease(case: Case) -> None:
    session = case.launch(orders={"session_idle_timeout": 0.3})
    session.wait_started()
    # A query without renew renews nothing.
    deadline = time.monotonic() + 5
    while session.alive() and time.monotonic() < deadline:
        session.ask("status", renew=False)
    assert case.ended()["code"] == "session_idle_timeout"


def test_watcher_renews_the_lease(case: Case) -> None:
    session = case.launch(orders={"session_idle_timeout": 0.3})
    session.wait_started()
    watch = session.watch()
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        watch.check()
        time.sleep(0.02)
    gone = time.monotonic()
    watch.close()
    assert case.ended()["code"] == "session_idle_timeout"
    assert time.monotonic() - gone > 0.2


def test_lease_waits_for_the_server(case: Case) -> None:
    """A checkpoint may take longer than the lease, and the process does not spin during it."""
    session = case.launch(["backup_start", "blocks"], orders={"session_idle_timeout": 0.1})
    wait_until(lambda: session.recorded().get("state") == "starting", "starting")
    pid = session.recorded()["pid"]
    before = _cpu_seconds(pid)
    time.sleep(0.6)
    assert session.alive()
    assert _cpu_seconds(pid) - before < 0.25
    case.go()
    assert case.ended()["code"] == "session_idle_timeout"


def _cpu_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_deadline(case: Case) -> None:
    session = case.launch(orders={"session_timeout": 0.4})
    session.wait_started()
    with contextlib.closing(session.watch()) as watch, pytest.raises(BackupError) as caught:
        wait_until(watch.check, "the deadline")
    assert caught.value.code == "session_timeout"
    case.ended()


def test_folder_removed(case: Case) -> None:
    session = case.launch()
    session.wait_started()
    os.rename(session.directory, case.folder / "elsewhere")
    wait_until(lambda: not processes_with(str(case.folder)), "the end of the process")
    assert session.ask("status")["state"] == "failed"


def test_killed(case: Case) -> None:
    session = case.launch()
    pid = session.wait_started()["pid"]
    watch = session.watch()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BackupError) as caught:
        wait_until(watch.check, "the news")
    assert caught.value.code == "session_killed"
    end = session.ask("status")
    assert (end["state"], end["failed_in"], end["start_lsn"]) == ("failed", "running", "0/2000028")


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\n", b"{}\n", b"[]\n", b"1\n", b'"do"\n', b"\xff\xfe\n", b'{"do"', b"[" * 4000, b"x" * 100000],
    ids=lambda garbage: repr(garbage[:8]),
)
def test_garbage(case: Case, garbage: bytes) -> None:
    session = case.launch()
    session.wait_started()
    client = session._connect(5.0)
    with contextlib.suppress(OSError):
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        client.recv(100)
    client.close()
    assert session.ask("stop")["state"] == "stopped"
    case.ended()


@pytest.mark.parametrize("drips", [False, True])
def test_a_client_that_says_nothing(case: Case, drips: bool) -> None:
    """A silent client must not block others, not even one that sends a byte now and then."""
    session = case.launch()
    session.wait_started()
    silent = session._connect(5.0)
    stop = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.1):
                silent.sendall(b" ")

    thread = threading.Thread(target=drip)
    if drips:
        thread.start()
    begun = time.monotonic()
    assert session.ask("status")["state"] == "running"
    assert time.monotonic() - begun < 3
    stop.set()
    if drips:
        thread.join()
    silent.close()
    session.ask("abort")
    case.ended()


def test_a_living_session_is_never_dead(case: Case) -> None:
    """A process that holds the lock but does not answer is starting, ending, or stopped by a signal."""
    session = case.launch()
    pid = session.wait_started()["pid"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(BackupError) as caught:
        session.ask("status", seconds=0.2)
    assert caught.value.code == "session_silent"
    socket_path = os.path.join(session.directory, "socket")
    os.rename(socket_path, socket_path + ".away")
    with pytest.raises(BackupError) as caught:
        session.ask("status", seconds=0.2)
    assert caught.value.code == "session_silent"
    os.rename(socket_path + ".away", socket_path)
    os.kill(pid, signal.SIGCONT)
    assert session.ask("status")["state"] == "running"
    session.ask("abort")
    case.ended()


def test_the_label_outlives_the_process(case: Case) -> None:
    """The label is on disk before any client gets it: a kill right after that loses only the last queries."""
    session = case.launch(["min_recovery_end_timeline", "ignores_cancel"])
    session.wait_started()
    asked = _in_thread(lambda: session.ask("stop"))
    wait_until(lambda: "label_file" in session.recorded(), "the label")
    os.kill(session.recorded()["pid"], signal.SIGKILL)
    answer = asked()
    assert (answer["state"], answer["failed_in"], answer["stop_lsn"]) == ("failed", "stopping", "0/2000120")
    assert bytes.fromhex(answer["label_file"]) == b"LABEL: caf\xe9\n"


def test_final_is_final(tmp_path: pathlib.Path) -> None:
    """The server and a signal can end the session at the same time."""
    for first, second in (("stopped", "failed"), ("failed", "stopped")):
        record = _session_keeper.Record(str(tmp_path), state="stopping")
        record.write(state=first, error="one")
        record.write(state=second, error="two")
        content = json.loads((tmp_path / "state.json").read_text())
        assert content == record.get() == {"state": first, "error": "one"}


def test_driver_that_cannot_be_imported(case: Case) -> None:
    (case.folder / "lib" / "psycopg2" / "__init__.py").write_text("import no_such_thing")
    with pytest.raises(BackupError) as caught:
        case.launch()
    assert caught.value.code == "session_not_started"
    assert "no_such_thing" in caught.value.msg
    assert PASSWORD not in caught.value.msg


def test_folder_in_use(case: Case) -> None:
    session = case.launch()
    session.wait_started()
    with pytest.raises(FileExistsError):
        Session(session.directory).launch({})
    assert session.ask("stop")["state"] == "stopped"
    case.ended()


def test_long_path(case: Case) -> None:
    """A socket's path is limited to about 100 bytes, a repository's is not."""
    deep = case.folder / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    case.session = Session(str(deep / "session"))
    session = case.launch()
    session.wait_started()
    assert session.ask("stop")["state"] == "stopped"
    wait_until(lambda: not processes_with(str(case.folder)), "the end of the process")


def test_the_script_stands_alone() -> None:
    """The script runs after the module's files were removed: it may import only the standard library and psycopg2."""
    allowed = {"psycopg2", *sys.stdlib_module_names}
    lines = textwrap.dedent(inspect.getsource(_session_keeper)).splitlines()
    imports = [line.split()[1].partition(".")[0] for line in lines if line.strip().startswith(("import ", "from "))]
    assert set(imports) <= allowed
