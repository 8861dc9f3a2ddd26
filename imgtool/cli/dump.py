"""What the commands that print XML have in common: --xpath, --wrap, --security-info, --json."""

from __future__ import annotations

import argparse
import os
from typing import Any

from imgtool.cli import output
from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context


def dump_options(parser: Parser) -> None:
    """Declare the options that `dump` looks at."""
    parser.flag("security-info", "with the passwords of graphics, if there are any")
    parser.add_argument("--xpath", metavar="EXPRESSION", help="only the nodes that this finds")
    parser.flag("wrap", "with --xpath: put them below one element")


def dump(
    xml: bytes, root: str, facts: dict[str, Any], options: argparse.Namespace, context: Context
) -> int:
    """Print a document: byte by byte as text, or as `facts` with "xml" in JSON.

    Raises BadRequestError for an XPath that is none.
    """
    from imgtool.xml.query import secretless, select

    where = str(facts["domain"])
    if not options.security_info:
        xml = secretless(xml, root=root, where=where)
    if options.xpath is not None:
        nodes = select(xml, options.xpath, root=root, where=where, wrap=options.wrap)
        text = "\n".join(nodes)
        return context.answer(facts | {"xml": text, "nodes": nodes}, lambda: text, listing=True)
    if context.json:
        return context.answer(facts | {"xml": os.fsdecode(xml)}, str)
    output.write_xml(xml)
    return 0
