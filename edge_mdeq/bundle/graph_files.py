"""What an ONNX file refers to, read from its wire format: no onnx is needed, and nothing is copied.

A graph can name any file as the home of a tensor, and can hold operators that carry compiled code
or the path of it (``EPContext``). Whoever loads a graph follows what it says, so it is looked
through first. The numbers below are those of the fields in onnx.proto.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from mmap import mmap

from edge_mdeq.errors import BundleError

__all__ = ["GraphFacts", "look_through"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; the two others are not in use
DEEPEST = 32  # messages within messages; a graph of ours has five
MOST_KINDS = 4096  # of files and domains

CHILDREN = {  # of each message the fields that hold messages which lead to tensors or nodes
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
DOMAIN, KEY = 7, 1  # of a node, of an entry


@dataclass
class GraphFacts:
    """What a graph refers to.

    Attributes:
        files: where it says that tensors lie, as it says it.
        domains: of its operators; "" is ONNX itself.
    """

    files: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)


def look_through(data: bytes | mmap, where: str) -> GraphFacts:
    """Find every external file and every operator's domain, in subgraphs and functions too.

    Args:
        data: an ONNX file.
        where: names it in messages.

    Raises:
        BundleError: it is cut short, nested without end, or no protocol buffer.
    """
    facts = GraphFacts()
    try:
        visit(data, 0, len(data), "model", facts, 0)
    except ValueError as error:
        raise BundleError(f"{where} is not an ONNX graph: {error}; export it again") from error
    return facts


def visit(data: bytes | mmap, at: int, end: int, kind: str, facts: GraphFacts, depth: int) -> None:
    """One message, ``data[at:end]``, and all within it; written for speed, not for its looks."""
    if depth > DEEPEST:
        raise ValueError("its messages are nested without end")
    children, is_node, is_entry = CHILDREN[kind], kind == "node", kind == "entry"
    keys: list[bytes] = []
    values: list[bytes] = []
    domain = b""
    while at < end:
        tag, at = data[at], at + 1
        if tag > 127:
            tag, at = varint(data, at - 1, end)
        if not 8 <= tag < 2**32:  # readers disagree about what is beyond
            raise ValueError(f"a field has the tag {tag}")
        wire = tag & 7
        if wire == BYTES:
            size, at = varint(data, at, end)
            after = at + size
            if after > end:
                raise ValueError("it is cut short")
            number = tag >> 3
            if number in children:
                visit(data, at, after, children[number], facts, depth + 1)
            elif is_node and number == DOMAIN:
                domain = data[at:after]  # the last one counts, as protocol buffers have it
            elif is_entry:
                (keys if number == KEY else values).append(data[at:after])
            at = after
        elif wire == VARINT:
            _, at = varint(data, at, end)
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field has the wire type {wire}")
    if at > end:
        raise ValueError("it is cut short")
    if is_node:
        facts.domains.add(domain.decode(errors="replace"))
    elif b"location" in keys:
        facts.files.update(value.decode(errors="replace") for value in values or [b""])
    if len(facts.files) + len(facts.domains) > MOST_KINDS:
        raise ValueError("it refers to thousands of files")


def varint(data: bytes | mmap, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits per byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        if byte < 128:
            return value | byte << shift, at
        value |= (byte & 127) << shift
        shift += 7
    raise ValueError("it is cut short")
