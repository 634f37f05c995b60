# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding the primary of a standby for the role pg_backup.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import Facts, part, sentence

LOGIN = ("login_host", "login_port", "login_unix_socket")


def asks_primary(facts: Facts) -> bool:
    """Return whether the primary's archiver is responsible for the WAL of a backup of ``server``.

    A standby archives only with ``archive_mode=always``; an archive that is set is read on the standby's host.
    """
    server = part(facts, "server")
    return (
        server.get("role") == "standby"
        and part(server, "archiving").get("mode") != "always"
        and not facts["external_archive"]
    )


def split_address(text: str, default_port: t.Any) -> tuple[str, t.Any]:
    """Return host and port of ``host``, ``host:port``, ``[address]:port`` or an IPv6 address."""
    host, port = text, default_port
    head, colon, tail = text.rpartition(":")
    if colon and tail.isdigit() and (":" not in head or head.endswith("]")):
        host, port = head, int(tail)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, port


def candidates(facts: Facts, hostvars: t.Mapping[str, Facts], hosts: t.Iterable[str]) -> list[str]:
    """Return the host or address that is set, else those of ``hosts`` that are primaries of the same cluster."""
    if facts["primary_named"]:
        return [str(facts["primary_named"])]
    wanted = part(facts, "server").get("system_identifier")
    found = []
    for host in hosts:
        seen = hostvars[host].get("__pg_backup_server")
        if isinstance(seen, t.Mapping) and seen.get("system_identifier") == wanted and seen.get("role") == "primary":
            found.append(str(host))
    return found


def find(facts: Facts, hostvars: t.Mapping[str, Facts], hosts: t.Iterable[str]) -> dict[str, t.Any]:
    """Return how to reach the primary of the standby ``server``, and its problems.

    The facts are those of the role, ``hosts`` those of the play. Without ``primary_answer``, the result of server_info,
    the login is that of the server to ask: the primary itself (``purpose`` is ``wal_switch``), or the standby, which is
    asked for its upstreams (``find_primary``).

    Returns ``several`` (a message when there are several primaries, else ''), ``purpose``, ``find_primary``,
    ``delegate``, ``login_host``, ``login_port``, ``login_unix_socket``, ``name`` (for messages, '' when it was not
    found) and ``problems``, a list of ``code``, ``msg``, ``hint``.
    """
    found = candidates(facts, hostvars, hosts)
    answer = part(facts, "primary_answer")
    if found:
        result = _named(found[0], facts, hostvars)
        judged = answer
    else:
        judged = part(answer, "primary") if "primary" in answer else answer
        result = _upstream(facts, part(answer, "primary"))
    several = ""
    if len(found) > 1:
        several = (
            f"{' and '.join(found)} are both primaries of the cluster with the system identifier"
            f" {part(facts, 'server').get('system_identifier')} that {facts['host']} belongs to."
            " Name the right one: pg_backup_primary."
        )
    problems = _problems(judged, result) if answer else []
    return {**result, "several": several, "problems": problems}


def _named(candidate: str, facts: Facts, hostvars: t.Mapping[str, Facts]) -> dict[str, t.Any]:
    result: dict[str, t.Any] = {"purpose": "wal_switch", "find_primary": False, "name": candidate}
    if facts["primary_is_host"] or not facts["primary_named"]:
        # Parts of the login that its own variables do not set are those of the standby.
        theirs = hostvars[candidate]
        login = {name: theirs.get(f"pg_backup_{name}", facts[name]) for name in LOGIN}
        return {**result, **login, "delegate": candidate}
    host, port = split_address(candidate, facts["login_port"])
    return {**result, "login_host": host, "login_port": port, "login_unix_socket": "", "delegate": facts["host"]}


def _upstream(facts: Facts, primary: Facts) -> dict[str, t.Any]:
    result: dict[str, t.Any] = {"purpose": "backup", "find_primary": True, "delegate": facts["host"], "name": ""}
    if not primary.get("login_host"):
        return {**result, **{name: facts[name] for name in LOGIN}}
    host, port = primary["login_host"], primary.get("login_port") or facts["login_port"]
    return {**result, "login_host": host, "login_port": port, "login_unix_socket": "", "name": f"{host}:{port}"}


def _problems(answer: Facts, result: Facts) -> list[dict[str, str]]:
    if "problems" not in answer:
        msg = str(answer.get("error") or answer.get("msg") or "It is unknown.")
        return [{"code": "primary_unknown", "msg": msg, "hint": ""}]
    return list(answer["problems"])


def refusal(facts: Facts, problems: t.Sequence[Facts]) -> str:
    """Return why a standby's backup is not begun, '' when nothing prevents it."""
    if not problems:
        return ""
    reasons = " ".join(sentence(problem) for problem in problems)
    return (
        f"{facts['host']} is a standby, and the primary must finish and archive the WAL that its backup needs."
        f" {reasons}"
        " There are three ways to name the primary: pg_backup_primary (a host of the inventory, or host:port);"
        " the primary as a host of the same play;"
        " or an upstream that the standby reports and that accepts the login of"
        f" {facts['login_user']} from here."
    )
