# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How durations are written."""

    DOCUMENTATION = r"""
options: {}
notes:
  - A duration is a number with a unit, for example C(15m), C(20 hours) or C(2d). The units are C(ms), C(s), C(min) or
    C(m), C(h), C(d) and C(w), or their names. A number alone is seconds.
"""
