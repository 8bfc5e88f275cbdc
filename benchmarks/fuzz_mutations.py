"""Hostile variants of whole files: bytes flipped, cut or moved, JSON with other values, tars with odd headers."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from typing import Any, Final

Json = Any

_NUMBERS: Final = (0, 1, 2, 127, 128, 255)
_WIDE: Final = (b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\xff" * 8, b"\x00\x00\x00\x01")
_TEXTS: Final = (
    *("", ".", "..", "/", "/etc/passwd", "../../outside/kept.tar", "../outside", "a/b", "a\0b", "caf\udce9", "²", "-1"),
    *(
        "9" * 5000,
        "x" * 300,
        "\x1b[2J",
        "quoted:%2e%2e/%2e%2e/outside/kept.tar",
        "scenes:source/0/9999999999999",
        "nan",
    ),
)
_VALUES: Final = (None, True, False, -1, 0, 10**30, -(10**30), 2**63, 1e308, -0.5, float("nan"), float("inf"))
_BLOCK: Final = 512


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to six changes; from a file that may be empty, too."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not changed:
            return bytes(rng.randbytes(rng.randint(0, 64)))
        rng.choice(_BYTE_CHANGES)(changed, rng)
    return bytes(changed)


def _flip(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice(_NUMBERS)


def _set_in_head(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(min(len(data), 64))] = rng.randrange(256)


def _set_wide(data: bytearray, rng: random.Random) -> None:
    place, value = rng.randrange(len(data)), rng.choice(_WIDE)
    data[place : place + len(value)] = value


def _insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = rng.randbytes(rng.randint(1, 40))


def _cut_out(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randint(1, 40)]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _repeat(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    piece = data[place : place + rng.randint(1, 200)]
    data[place:place] = piece * rng.randint(1, 20)


_BYTE_CHANGES: Final[tuple[Callable[[bytearray, random.Random], None], ...]] = (
    *(_flip, _flip, _set, _set_in_head, _set_in_head, _set_wide),
    *(_insert, _cut_out, _truncate, _repeat),
)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON with one to three values or names replaced by hostile ones; now and then only bytes are changed."""
    if rng.random() < 0.2:
        return mutated(data, rng)
    content = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        content = _with_other_value(content, rng)
    return json.dumps(content).encode(errors="surrogatepass")


def hostile_value(rng: random.Random) -> Json:
    """Return a value that nobody expects."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(_TEXTS)
    if kind < 4:
        return rng.choice(_VALUES)
    if kind == 4:
        return rng.choice(({}, [], [[]], {"": None}, [None] * 50, dict.fromkeys(_TEXTS, 1)))
    nested: Json = 1
    for _ in range(rng.choice((3, 100, 700))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def _with_other_value(content: Json, rng: random.Random, depth: int = 0) -> Json:
    """Replace a value somewhere in it, each level with the same chance."""
    if depth > 20 or not content or not isinstance(content, dict | list) or rng.random() < 0.15:
        return hostile_value(rng)
    if isinstance(content, list):
        place = rng.randrange(len(content))
        changed = list(content)
        if rng.random() < 0.1:
            return changed[:place] + [changed[place]] * rng.randint(2, 5) + changed[place + 1 :]
        changed[place] = _with_other_value(content[place], rng, depth + 1)
        return changed
    name = rng.choice(sorted(content))
    others = {key: value for key, value in content.items() if key != name}
    change = rng.random()
    if change < 0.1:
        return others
    if change < 0.25:
        return others | {rng.choice(_TEXTS): content[name]}
    return content | {name: _with_other_value(content[name], rng, depth + 1)}


def hostile_tar(members: dict[str, bytes], rng: random.Random) -> bytes:
    """Return a tar of members in one of three formats, with odd names, types, sizes, pax fields, or broken anywhere."""
    buffer = io.BytesIO()
    kind = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=kind, errors="surrogateescape") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if rng.random() < 0.3:
                info.name = rng.choice(_TAR_NAMES if kind != tarfile.USTAR_FORMAT else _TAR_NAMES[:-1])
            if kind == tarfile.PAX_FORMAT and rng.random() < 0.4:
                info.pax_headers = {rng.choice(_PAX_NAMES): rng.choice(_PAX_VALUES)}
            tar.addfile(info, io.BytesIO(data))
    return _with_odd_headers(buffer.getvalue(), rng)


_TAR_NAMES: Final = ("", "/", ".", "..", "./a.png", "x/.png", "caf\udce9.png", "deep/" * 60 + "a.png")
_PAX_NAMES: Final = ("size", "path", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.major", "mtime", "hdrcharset")
_PAX_VALUES: Final = ("-512", "-1024", "-1", "0", "1", str(10**12), str(10**30), "x", "1.5", "../../a.png", "BINARY")


def _with_odd_headers(data: bytes, rng: random.Random) -> bytes:
    """Change fields of header blocks and mend their checksums, so that what is behind them is reached."""
    changed = bytearray(data)
    for _ in range(rng.randint(0, 3)):
        start = rng.randrange(max(1, len(changed) // _BLOCK)) * _BLOCK
        block = changed[start : start + _BLOCK]
        if len(block) < _BLOCK or block[257:262] != b"ustar":
            continue
        change = rng.randrange(4)
        if change == 0:
            block[156] = ord(rng.choice("01234567xgLKSVDX"))
        elif change == 1:
            block[124:136] = rng.choice(
                (b"\xff" * 12, b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"-0000000512\0")
            )
        elif change == 2:
            block[rng.randrange(345)] = rng.randrange(256)
        else:
            block[386:398] = rng.choice((b"77777777777\0", b"\xff" * 12, b"00000000001\0"))
        total = sum(block[:148]) + 8 * 32 + sum(block[156:])
        block[148:156] = b"%06o\0 " % total
        changed[start : start + _BLOCK] = block
    return mutated(bytes(changed), rng) if rng.random() < 0.3 else bytes(changed)


def hostile_yaml(text: str, rng: random.Random) -> bytes:
    """Return settings with lines replaced, aliases of aliases, tags and deep nesting among them."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        change = rng.randrange(5)
        if change == 0:
            lines[place : place + rng.randint(1, 5)] = []
        elif change == 1:
            lines.insert(place, lines[rng.randrange(len(lines))] if lines else "")
        elif change == 2:
            lines.insert(rng.choice((0, place)), rng.choice(_YAML_LINES))
        elif change == 3:
            name, sign, _ = lines[place].partition(":")
            lines[place] = f"{name}{sign} {rng.choice(_YAML_VALUES)}"
        else:
            lines[place] = f"{' ' * rng.randint(0, 6)}{lines[place].strip()}"
        if not lines:
            break
    data = "\n".join(lines).encode(errors="surrogatepass")
    return mutated(data, rng) if rng.random() < 0.2 else data


_BOMB: Final = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)
)
_YAML_LINES: Final = (
    _BOMB,
    "loop: &l [*l]",
    "loop: &m {a: *m}",
    "<<: {seed: 1}",
    "? [1, 2]\n: 3",
    "1: 2",
    "null: 3",
    "---",
)
_YAML_VALUES: Final = (
    *(
        "[" * 3000,
        "{a: " * 500,
        "!!python/object/apply:os.system ['true']",
        "!!binary x",
        "!!int zz",
        "!!float x",
        "*none",
    ),
    *(
        "2001-99-99",
        "0x",
        "1e400",
        ".nan",
        ".inf",
        "-1",
        str(10**30),
        "9" * 5000,
        "/dev/zero",
        "../outside",
        "''",
        "null",
    ),
    *("{}", "[]", "[1, a]", "{kind: folder, images: /dev}", "true", '"\\ud800"', "!!set {a, b}", "!!omap [a: 1]"),
)
