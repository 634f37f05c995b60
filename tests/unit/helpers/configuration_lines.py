# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of configuration files; integration tests compare them with what real servers read."""

from __future__ import annotations

import typing as t

LINES: t.Final = [
    (b"port = 5433", {"port": "5433"}),
    (b"  Port\t5433  # comment", {"port": "5433"}),
    (b"port=5433#comment", {"port": "5433"}),
    (b"port 0x1538\r", {"port": "0x1538"}),
    (b"a.b = 'c'", {"a.b": "c"}),
    (b"A.B c-d.e:f/g_1", {"a.b": "c-d.e:f/g_1"}),
    (b"work_mem = 64MB", {"work_mem": "64MB"}),
    (b"x = -1.5e-3", {"x": "-1.5e-3"}),
    (b"x = .5", {"x": ".5"}),
    (b"x'it''s'", {"x": "it's"}),
    (rb"x = 'a\'b\\c\t\101\7\q'", {"x": "a'b\\c\tA\7q"}),
    (rb"x = '\303\251'", {"x": "\u00e9"}),
    (b"x = 'caf\xe9'", {"x": "caf\udce9"}),
    (b"x = ''", {"x": ""}),
    (b"x = '# no comment' # a comment with 'quotes", {"x": "# no comment"}),
    (b"\xc3\xa9t\xc3\xa9 = on", {"\u00e9t\u00e9": "on"}),
    (b"", {}),
    (b" \t# nothing", {}),
]
ERRORS: t.Final = [
    b"port", b"port =", b"port = = 1", b"port = 1 2", b"port = 'a", b"port = a'", b"port = 'a'b", b"= 1", b"1 = 1",
    b"a.b.c = 1", b"a-b = 1", b"a-1", b"a.5", b"x = 0.5s", b"x = 1.2.3", b"x = $1", b"x = 'a\\", b"x = %", b"x; = 1",
]  # fmt: skip
