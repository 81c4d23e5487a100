"""Random commands on streams and their groups."""

from typing import Final

from tests.simulation.redis.differential.draws import (
    CONSUMERS,
    FAR_MS,
    GROUPS,
    KEYS,
    Command,
    Draws,
    Id,
    Part,
    Weights,
)


def xadd(draws: Draws) -> Command:
    fields: list[Part] = []
    for name in draws.one(("audio",), ("audio",), ("session", "type", "event"), ("n", "n")):
        fields += [name, draws.one(draws.text(), "127", "-1", "16000", "4000000", "1" * 20)]
    trim = draws.one(
        (), (), (), (), ("MAXLEN", 10_000), ("MAXLEN", "~", 5), ("MAXLEN", "=", 3),
        ("MINID", draws.any_id()), ("MINID", "~", draws.any_id()), ("MAXLEN", "~", 2, "LIMIT", 3),
    )  # fmt: skip
    entry_id = draws.one(*["*"] * 8, "7-3", "5-*", "0-0", draws.any_id())
    return ("XADD", draws.stream(), *draws.maybe("NOMKSTREAM"), *trim, entry_id, *fields)


def xread(draws: Draws) -> Command:
    streams = draws.some((draws.stream(), draws.stream()), 2)
    block = draws.one((), (), ("BLOCK", 1))
    cursors = [draws.one("0", "$", draws.any_id()) for _ in streams]
    count = draws.maybe("COUNT", draws.one(1, 2, 32))
    return ("XREAD", *count, *block, "STREAMS", *streams, *cursors)


def xrange(draws: Draws) -> Command:
    first, last = draws.one("-", draws.any_id(), excluded(draws)), draws.one("+", draws.any_id())
    count = draws.one((), ("COUNT", draws.one(0, 1, 5, -1)))
    if draws.rng.random() < 0.3:
        return ("XREVRANGE", draws.stream(), last, first, *count)
    return ("XRANGE", draws.stream(), first, last, *count)


def excluded(draws: Draws) -> Part:
    drawn = draws.any_id()
    return Id(drawn.number, "(") if isinstance(drawn, Id) else "(5"


def xtrim(draws: Draws) -> Command:
    how = draws.one(
        ("MINID", draws.any_id()), ("MINID", "~", draws.any_id()), ("MAXLEN", draws.one(0, 1, 5)),
        ("MAXLEN", "~", draws.one(0, 1, 5)), ("MAXLEN", "~", 0, "LIMIT", draws.one(0, 2)),
    )  # fmt: skip
    return ("XTRIM", draws.stream(), *how)


def xdel(draws: Draws) -> Command:
    if draws.rng.random() < 0.3:
        return ("XDEL", KEYS.sessions, draws.entry())
    return ("XDEL", draws.stream(), *(draws.any_id() for _ in range(draws.rng.randint(1, 2))))


def xinfo(draws: Draws) -> Command:
    kind = draws.one("STREAM", "GROUPS", "CONSUMERS")
    group = (draws.one(*GROUPS),) if kind == "CONSUMERS" else ()
    return ("XINFO", kind, draws.stream(), *group)


def xgroup(draws: Draws) -> Command:
    group, stream = draws.one(*GROUPS), draws.one(KEYS.sessions, draws.stream())
    start = draws.one("0", "0", "0", "$", draws.any_id())
    return draws.one(
        *[("XGROUP", "CREATE", stream, group, start, *draws.maybe("MKSTREAM"))] * 6,
        ("XGROUP", "DESTROY", stream, "other"),
        ("XGROUP", "DESTROY", stream, group) if draws.rng.random() < 0.3 else ("XLEN", stream),
        ("XGROUP", "CREATECONSUMER", stream, group, draws.one(*CONSUMERS)),
        ("XGROUP", "DELCONSUMER", stream, group, draws.one(*CONSUMERS)),
        ("XGROUP", "SETID", stream, group, start),
    )


def xreadgroup(draws: Draws) -> Command:
    after = draws.one(">", ">", ">", ">", "0", draws.any_id())
    group, consumer = draws.one(*GROUPS), draws.one(*CONSUMERS[:2])
    options = (*draws.maybe("COUNT", draws.one(1, 2, 50)), *draws.maybe("BLOCK", 1))
    stream = draws.one(KEYS.sessions, KEYS.sessions, draws.stream())
    return ("XREADGROUP", "GROUP", group, consumer, *options, "STREAMS", stream, after)


def xack(draws: Draws) -> Command:
    more = draws.maybe(draws.entry())
    return ("XACK", KEYS.sessions, draws.one(*GROUPS), draws.entry(), *more)


def xpending(draws: Draws) -> Command:
    head = ("XPENDING", KEYS.sessions, draws.one(*GROUPS))
    if draws.rng.random() < 0.3:
        return head
    idle = draws.one((), (), ("IDLE", 0), ("IDLE", FAR_MS))
    first, last = draws.one("-", draws.any_id(), excluded(draws)), draws.one("+", draws.any_id())
    return (*head, *idle, first, last, draws.one(0, 1, 1_000),
            *draws.maybe(draws.one(*CONSUMERS, "unknown")))  # fmt: skip


def xclaim(draws: Draws) -> Command:
    options: list[Part] = []
    for option in (
        ("JUSTID",),
        ("FORCE",),
        ("RETRYCOUNT", 4),
        ("IDLE", 0),
        ("LASTID", draws.any_id()),
    ):
        options += draws.maybe(*option) if option[0] == "JUSTID" or draws.rng.random() < 0.3 else ()
    ids = [draws.entry() for _ in range(draws.rng.randint(1, 3))]
    return ("XCLAIM", KEYS.sessions, draws.one(*GROUPS), draws.one(*CONSUMERS),
            draws.one(0, 0, FAR_MS), *ids, *options)  # fmt: skip


def xautoclaim(draws: Draws) -> Command:
    options = (*draws.maybe("COUNT", draws.one(1, 2, 16)), *draws.maybe("JUSTID"))
    return ("XAUTOCLAIM", KEYS.sessions, draws.one(*GROUPS), draws.one(*CONSUMERS),
            draws.one(0, FAR_MS), draws.one("0-0", draws.any_id()), *options)  # fmt: skip


WEIGHTS: Final[Weights] = {
    xadd: 8,
    xread: 4,
    xrange: 4,
    xtrim: 2,
    xdel: 2,
    xinfo: 3,
    xgroup: 3,
    xreadgroup: 6,
    xack: 2,
    xpending: 4,
    xclaim: 4,
    xautoclaim: 2,
}
