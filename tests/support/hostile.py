"""Texts that would do something wherever they are shown as they are: what documents, ids and models may hold."""

from __future__ import annotations

HOSTILE = (
    "\x1b]0;owned\x07\x1b[31mred",
    "\x9b31m",
    "over\rwritten",
    "bell\x07 back\x08 nul\x00 del\x7f",
    "\u202egnp.exe\u2066",
    "two\u2028lines\u2029",
    "[link=https://evil.example]click[/link]",
    "[/x]",
    "[a]",
    "[bold red]loud[/]",
    ":bomb:",
    "=cmd|'/c calc'!A1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title></svg></style></main><iframe src=//evil.example>",
    "&lt;b&gt;&#x1b;",
    "]]><!--",
    "{{ 7 * 7 }}{% raw %}",
    "```\n# owned",
    "[a](javascript:alert(1)) ![b](//evil.example) <https://evil.example>",
    "| a | b |",
    "x\"\n    line [9]\n%%{init: {'securityLevel': 'loose'}}%%",
    "$\\frac{",
    "\\",
)
# What a terminal would obey, or shows where it does not belong.
OBEYED = "\x00\x07\x08\x0d\x1b\x7f\x9b\u202e\u2066\u2028\u2029"
