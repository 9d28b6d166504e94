"""``csi-local doctor``: what this node and its pools have, lack, and have wrong with them, with the fix for each."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Timer

from csi_local.config import Config
from csi_local.engine.check import Checker, Report, find
from csi_local.engine.looking import Place
from csi_local.host.api import Host
from csi_local.host.features import features
from csi_local.host.linux import LinuxHost
from csi_local.model.errors import DriverError
from csi_local.model.pool import QuotaSupport
from csi_local.model.text import on_one_line
from csi_local.plan.findings import Finding, PoolSeen
from csi_local.show import Row, show

_ANSWERS_WITHIN_S = 5.0
_NARROWEST = 24
_GAPS = 8


def doctor(config: Config | None, output: str, *, repair: bool = False) -> int:
    """Show each check and each finding; with *repair* mend first what may be. Returns 1 where all is not well."""
    rows = [_row(one.name, "ok" if one.there else _bad(needed=one.needed), one.found, one.fix) for one in features()]
    said: list[Row] = []
    if config is not None:
        host = LinuxHost()
        with ExitStack() as held:
            places = [find(host, spec, config.run_dir, held, to_mend=repair) for spec in config.pools]
            report = examine(host, places, os.geteuid(), repair=repair)
            said = finding_rows(report)
            for place, seen in zip(places, report.seen, strict=True):
                rows += _abilities(host, place) if place.root else []
                rows.append(_contents(seen, report))
    if output == "json":
        show([*rows, *said], output, empty="")
    else:
        show(rows, output, empty="")
        _show_findings(said)
        sys.stdout.write(_summary(said, repair=repair) if config is not None else "")
    return 1 if any(row["state"] in ("bad", "error", "warning") for row in (*rows, *said)) else 0


def examine(host: Host, places: Sequence[Place], us: int, *, repair: bool) -> Report:
    """Look at the pools' contents, or look and mend."""
    checker = Checker(host, places, us)
    return checker.repair() if repair else checker.check()


def _bad(*, needed: bool) -> str:
    return "bad" if needed else "lacks"


def _row(check: str, state: str, found: str, fix: str) -> Row:
    return {"check": check, "state": state, "found": found, "fix": "" if state == "ok" else fix}


# --- pools


def _abilities(host: Host, place: Place) -> list[Row]:
    """What a pool can do. It is tried out, and so the last thing done: a frozen filesystem answers nothing."""
    name = f"pool {place.spec.name}"
    try:
        with _patiently(name):
            can, media = host.abilities(place.root), place.spec.media or host.media(place.root)
            read_only = host.room(place.root).read_only
    except DriverError as error:
        return [_row(name, "bad", f"it cannot be read: {error}", "see the message")]
    checks = [
        ("reserves blocks", can.preallocate, "thick volumes need it; use allocation: thin, or XFS, ext4 or btrfs"),
        ("direct I/O", can.direct_io, "loop devices need it; use a filesystem on a real disk"),
        ("limits directories", can.quota is not QuotaSupport.NONE, can.quota_reason + "; or use backend: loopfile"),
        ("clones files at once", can.reflink, "quick snapshots need it: XFS (reflink=1) or btrfs"),
        ("gives blocks back", can.discard, "thin volumes do not shrink on it"),
        ("can be encrypted", can.encryption, f"{can.encryption_reason}; encryption: luks2 is refused here"),
    ]
    found = [_row(f"{name} {what}", "ok" if there else "lacks", can.filesystem, fix) for what, there, fix in checks]
    if read_only:
        return [_row(name, "bad", "it is read-only", "look at the kernel's log: a filesystem does that after errors")]
    return [_row(name, "ok", f"{can.filesystem}, {media}", ""), *found]


@contextmanager
def _patiently(name: str) -> Iterator[None]:
    """Say why nothing happens where something does not answer: whoever writes to a frozen filesystem waits."""
    text = (
        f"csi-local: {name} does not answer for {_ANSWERS_WITHIN_S:.0f} s now. Its filesystem may be frozen: thaw it"
        " from another terminal (fsfreeze -u). Or its disk fails: look at the kernel's log\n"
    )
    timer = Timer(_ANSWERS_WITHIN_S, sys.stderr.write, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _contents(seen: PoolSeen, report: Report) -> Row:
    here = [finding for finding in report.findings if finding.pool == seen.name and finding.wrong]
    held = _count(len(seen.volumes), "volume") + (", in use by a driver" if seen.busy else "")
    check = f"pool {seen.name} contents"
    if not here:
        return _row(check, "ok", f"{held}, nothing wrong", "")
    severities = [str(finding.severity) for finding in here]
    counted = [_count(severities.count(name), name) for name in dict.fromkeys(severities)]
    return _row(check, "bad", f"{held}: {', '.join(counted)}" if seen.root else here[0].found, "see below")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def finding_rows(report: Report) -> list[Row]:
    """A row for each finding, what was mended first."""
    roots = {seen.name: seen.root for seen in report.seen}
    rows = [_finding(one, roots[one.pool], "mended", "it was mended") for one in report.mended]
    return [*rows, *(_finding(one, roots[one.pool], str(one.severity), one.fix) for one in report.findings)]


def _finding(finding: Finding, root: str, state: str, fix: str) -> Row:
    inside = f"{root}/" if root else ""
    where = finding.where.removeprefix(inside)
    return {
        "check": f"pool {finding.pool}: {on_one_line(where)}".removesuffix(": "),
        "state": state,
        "found": on_one_line(finding.found.replace(inside, "") if inside else finding.found),
        "fix": on_one_line(fix),
        "pool": finding.pool,
        "volume": finding.volume,
        "path": on_one_line(finding.where),
        "mendable": bool(finding.mend) and state != "mended",
    }


def _show_findings(rows: Sequence[Row]) -> None:
    if not rows:
        return
    columns = {"state": "state", "where": "check", "what it means": "found", "what to do": "fix"}
    widths = _widths(rows)
    table = [{title: _fill(str(row[key]), widths.get(key, 0)) for title, key in columns.items()} for row in rows]
    sys.stdout.write("\n")
    show(table, "table", empty="")


def _widths(rows: Sequence[Row]) -> dict[str, int]:
    """How wide the columns of text may be: on a terminal what fits, elsewhere (0) a finding is a line."""
    if not sys.stdout.isatty():
        return {}
    longest = {key: max(len(str(row[key])) for row in rows) for key in ("state", "check")}
    where = min(longest["check"], 40)
    left = shutil.get_terminal_size().columns - longest["state"] - where - _GAPS
    return {"check": where, "found": max(_NARROWEST, left * 3 // 5), "fix": max(_NARROWEST, left * 2 // 5)}


def _fill(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) if width else text


def _summary(rows: Sequence[Row], *, repair: bool) -> str:
    states = [str(row["state"]) for row in rows]
    parts = [f"{states.count('mended')} mended"] if "mended" in states else []
    parts += [_count(states.count(state), state) for state in ("error", "warning") if state in states]
    parts += [f"{states.count('info')} only to know"] if "info" in states else []
    mendable = sum(bool(row["mendable"]) for row in rows)
    hint = (
        f"; {mendable} can be mended: stop the driver if one runs, and add --repair" if mendable and not repair else ""
    )
    return f"\n{', '.join(parts)}{hint}\n" if parts else ""
