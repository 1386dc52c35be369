"""Reads what pytest and compute-sanitizer print, also when they were stopped half-way."""

import re
from typing import Any

MOST_DETAILS = 20
OUTCOMES = {"PASSED": "passed", "FAILED": "failed", "ERROR": "errors", "SKIPPED": "skipped"}
TEST_LINE = r"(?P<name>\S+\.py::.+?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)\b"
TEST_LINE_OF_WORKER = (  # of pytest-xdist
    r"\[gw\d+\] \[ *\d+%\] (?P<outcome>PASSED|FAILED|ERROR|SKIPPED) (?P<name>\S+\.py::.+)$"
)


def parse_pytest(text: str) -> dict[str, Any]:
    """Return the tests passed, failed, skipped and in error of `pytest -v -ra`, and which failed.

    Counts come from the lines of the single tests, so that an interrupted run still has them.
    """
    counts: dict[str, Any] = dict.fromkeys(OUTCOMES.values(), 0)
    failures: dict[str, str] = {}
    reasons: list[str] = []
    for line in text.splitlines():
        if test := re.match(TEST_LINE, line) or re.match(TEST_LINE_OF_WORKER, line):
            counts[OUTCOMES[test["outcome"]]] += 1
            if test["outcome"] in ("FAILED", "ERROR"):
                failures.setdefault(test["name"], "")
        elif told := re.match(r"(FAILED|ERROR) (\S+\.py(?:::.+?)?)(?: - (.+))?$", line):
            if "::" not in told[2]:
                counts["errors"] += 1  # a file that could not be collected
            failures[told[2]] = told[3] or failures.get(told[2], "")
        elif why := re.match(r"SKIPPED \[\d+\] (?:.*?: )(.+)$", line):
            reasons.append(why[1])
    details = [f"{name}: {why}" if why else name for name, why in failures.items()]
    counts["failures"] = details[:MOST_DETAILS]
    counts["skip_reasons"] = sorted(set(reasons))[:MOST_DETAILS]
    counts["complete"] = re.search(r"^=+ .*\bin [\d.]+s.* =+$", text, re.MULTILINE) is not None
    return counts


def parse_sanitizer(text: str) -> dict[str, Any]:
    """Return the errors that one tool of compute-sanitizer counted (None: it did not finish)."""
    summary = re.search(r"=+ ERROR SUMMARY: (\d+) error", text)
    hazards = re.search(r"=+ RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error", text)
    found = hazards or summary
    calls = re.search(r"^(\d+) calls of (\d+) ops", text, re.MULTILINE)
    kinds: dict[str, None] = {}
    for line in text.splitlines():
        if kind := re.match(r"=+ ((?:Invalid|Misaligned|Uninitialized|Barrier|Error: ).+)", line):
            kinds[kind[1].strip()] = None
    return {
        "errors": int(found[1]) if found else None,
        "calls": int(calls[1]) if calls else 0,
        "ops": int(calls[2]) if calls else 0,
        "kinds": list(kinds)[:MOST_DETAILS],
    }
