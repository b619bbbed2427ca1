"""Results of ``ranktable check`` for people, for programs (JSON) and for code hosts (SARIF)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Dict, List, Sequence
from urllib.parse import quote

from orchestrator.planning.ranktable_lint import CheckedTable
from orchestrator.planning.ranktable_rules import ERROR, NOTE, RULES, WARNING, Finding, Rule
from orchestrator.problems import shown

_SHOWN_OF_ONE_RULE = 5
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_text(checks: Sequence[CheckedTable]) -> str:
    """One block a file: what it is, each finding with its place, HCCL's behaviour and the remedy.
    Of many findings of one rule the first few are shown."""
    return "".join(_block(checked) for checked in checks)


def as_json(checks: Sequence[CheckedTable]) -> str:
    """A JSON object with all files and all findings."""
    files = [
        {
            "file": checked.name,
            "form": checked.form or None,
            "servers": checked.servers,
            "devices": checked.devices,
            "errors": checked.errors,
            "findings": [
                {
                    "code": finding.rule.code,
                    "severity": finding.rule.severity,
                    "line": finding.location.line,
                    "column": finding.location.column,
                    "message": finding.message,
                    "hccl": finding.rule.hccl,
                    "remedy": finding.remedy,
                }
                for finding in checked.findings
            ],
        }
        for checked in checks
    ]
    return json.dumps({"schema": 1, "files": files}, indent=2, ensure_ascii=False) + "\n"


def as_sarif(checks: Sequence[CheckedTable], version: str) -> str:
    """A SARIF 2.1.0 log; ``version`` is that of glm2-orch."""
    codes = list(RULES)
    run = {
        "tool": {
            "driver": {
                "name": "glm2-orch ranktable check",
                "version": version,
                "rules": [_sarif_rule(rule) for rule in RULES.values()],
            }
        },
        "columnKind": "unicodeCodePoints",
        "artifacts": [{"location": {"uri": _uri(checked.name)}} for checked in checks],
        "results": [
            {
                "ruleId": finding.rule.code,
                "ruleIndex": codes.index(finding.rule.code),
                "level": finding.rule.severity,
                "message": {"text": f"{finding.message}. {_capital(finding.remedy)}."},
                "locations": [
                    {
                        "physicalLocation": {
                            "artifactLocation": {"uri": _uri(checked.name), "index": index},
                            "region": {
                                "startLine": finding.location.line,
                                "startColumn": finding.location.column,
                            },
                        }
                    }
                ],
            }
            for index, checked in enumerate(checks)
            for finding in checked.findings
        ],
    }
    log = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def rules_page() -> str:
    """The documentation of all rules, in Markdown (``docs/rank-table-rules.md``)."""
    lines = [
        "# Rules for rank tables",
        "",
        "`glm2-orch ranktable check FILE...` reports breaches of these rules; exit status 3 when",
        "there is an error, else 0. This page is generated from the code",
        "(`glm2-orch ranktable rules`); a test compares it. *Unverified* marks what was not tried",
        "on hardware.",
        "",
        "| code | severity | rule | in a job that breaks it, HCCL | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rule in RULES.values():
        cells = (rule.code, rule.severity, rule.title, rule.hccl, rule.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def summary(checks: Sequence[CheckedTable]) -> str:
    """One line: how many errors, warnings and notes in how many files."""
    return f"{_plural(len(checks), 'file')}: {_counts([f for c in checks for f in c.findings])}"


def _block(checked: CheckedTable) -> str:
    name = shown(checked.name, 200)[1:-1]
    what = "no rank table"
    if checked.form:
        kind = checked.form if checked.form.startswith("group") else f"version {checked.form}"
        size = f"{_plural(checked.servers, 'server')}, {_plural(checked.devices, 'device')}"
        what = f"{kind}, {size}"
    lines = [f"{name}: {what}: {_counts(checked.findings)}"]
    seen: Counter[str] = Counter()
    for finding in checked.findings:
        seen[finding.rule.code] += 1
        if seen[finding.rule.code] <= _SHOWN_OF_ONE_RULE:
            lines += _finding(finding, name)
    lines += [
        f"  … and {count - _SHOWN_OF_ONE_RULE} more of {code}"
        for code, count in seen.items()
        if count > _SHOWN_OF_ONE_RULE
    ]
    return "\n".join(lines) + "\n"


def _finding(finding: Finding, name: str) -> List[str]:
    rule = finding.rule
    place = f"{name}:{finding.location.line}:{finding.location.column}"
    return [
        f"  {place}: {rule.severity} {rule.code}: {finding.message}",
        f"      HCCL {rule.hccl}",
        f"      {finding.remedy}",
    ]


def _counts(findings: Sequence[Finding]) -> str:
    found: Dict[str, int] = Counter(finding.rule.severity for finding in findings)
    parts = [_plural(found[kind], kind) for kind in (ERROR, WARNING, NOTE) if found.get(kind)]
    return ", ".join(parts) or "clean"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _sarif_rule(rule: Rule) -> Dict[str, object]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.title}. Otherwise HCCL {rule.hccl}."},
        "help": {"text": _capital(rule.remedy)},
        "defaultConfiguration": {"level": rule.severity},
    }


def _uri(name: str) -> str:
    return ("file://" if name.startswith("/") else "") + quote(name)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
