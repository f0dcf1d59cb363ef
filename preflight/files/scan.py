"""What a script contains: statements and where they stand, found without a server.

The text is cut as psql cuts it (quotes, dollar quotes, comments, parentheses, BEGIN ATOMIC bodies,
inline COPY data), one statement at a time, so that a file of 100 MB needs no second copy of itself.
What a statement *does* is asked of PostgreSQL's own parser (libpg_query, through postgast), and
only when its first words leave a doubt: the import costs 0.12 s.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

# A group that is taken possessively ends with nothing as its last alternative, here and wherever
# else: a Python before 3.11.5 forgets where a try began that fails part-way, and one that takes
# nothing does not fail. See https://github.com/python/cpython/issues/106052.
_TAG = rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?\$"
_ENDS = rb"--[ \t]*\+goose[ \t]+(?i:statementend)\b"  # what stands for a semicolon in its files
_NOTE = rb"--[ \t]*(?i:preflight)[ \t]*:"  # how a directive begins
_SAYS = rb"(?:%b|%b)" % (_NOTE, _ENDS)
_REST = rb"[^\n\r]*+"  # a comment ends at a lone CR, too
_COMMENT = rb"--" + _REST
_MORE = rb"[ \t\f\v]*+(?:%b|)?+[\n\r](?:\s++|%b|)*+" % (_COMMENT, _COMMENT)
_ESCAPED = rb"'(?:[^'\\]++|\\.|''|)*+'"
_ESCAPED += rb"(?:%b%b|)*+(?!%b')" % (_MORE, _ESCAPED, _MORE)  # goes on on a further line
_PLAIN = rb"(?<![eE])'[^']*+'|(?<=[A-Za-z_\x80-\xff][eE])'[^']*+'"
_PLAIN += rb"|(?<=[^\w$\x80-\xff][eE])" + _ESCAPED

_GAP = re.compile(rb"(?:\s++|(?!%b)%b|)*+" % (_SAYS, _COMMENT))
_LINE = re.compile(_REST)
_DIRECTIVE = re.compile(_NOTE)
_LAST = re.compile(rb"(?m)^" + _ENDS)
_STRING = re.compile(rb"'[^']*+'")
_E_STRING = re.compile(_ESCAPED, re.DOTALL)
_DOLLAR = re.compile(_TAG)
_META = re.compile(rb"\\[^\s\\]*")
_BLOCK_EDGE = re.compile(rb"/\*|\*/")
_FIRST = re.compile(rb"[A-Za-z]*")
_TOKENS = (
    rb"%b|(?P<block>/\*)|(?<![\w$\x80-\xff])[eE]%b|'[^']*+'|\"[^\"]*+\"" % (_COMMENT, _ESCAPED)
    + rb"|(?<![\w$\x80-\xff])(?P<tag>%b)" % _TAG
    + rb"|(?P<word>[A-Za-z_\x80-\xff][\w$\x80-\xff]*+)|(?P<sign>[(),=.]"
)
_TOKEN = re.compile(_TOKENS + rb")", re.DOTALL)
# what is no code; a quoted name is, but nothing begins in it
_OPENED = re.compile(rb"['\"]|(?<![\w$\x80-\xff])(?:[eE]'|\$)|--|/\*")
_ASIDES = rb"%b|(?P<block>/\*)|[eE]?%b|'[^']*+(?:''[^']*+|)*+'|(?P<name>\"[^\"]*+\")|(?P<tag>%b)"
_ASIDE = re.compile(_ASIDES.replace(b"?%b", b"%b") % (_COMMENT, _ESCAPED, _TAG), re.DOTALL)
# where a backslash escapes in every text
_ASIDE_ESCAPED = re.compile(_ASIDES % (_COMMENT, _ESCAPED, _TAG), re.DOTALL)
_SPACE = rb"\s|%b|/\*.*?\*/" % _COMMENT
# what decides whether it does in those that follow
_DECIDES = re.compile(
    rb"(?is)(?:set#(?:session#|(?P<local>local)#)?|reset#)\"?standard_conforming_strings\b\"?"
    rb"(?:@(?:=|to\b)@e?['\"]?(?P<off>off?|f|fa|fal|fals|false|no?|0+)\b)?"
    rb"|reset#all\b".replace(b"#", rb"(?>%b)@" % _SPACE).replace(b"@", rb"(?:%b|)*+" % _SPACE)
)
_ATOMIC = re.compile(rb"\bATOMIC\b", re.IGNORECASE)
_REST_OF_LINE = re.compile(rb"[ \t\f\v]*+(?:%b|)?+" % _COMMENT)
_COPY_END = re.compile(rb"^\\\.(?:\n|\Z)", re.MULTILINE)
_SEMICOLON, _BACKSLASH, _QUOTE = b";\\'"
_ESCAPE = re.compile(rb"(?s)\\.")
_UNBOUND = "no-transaction"  # the directive
_INSIDE = bytes(range(0x80, 0xC0))  # every byte of a character but its first
_PART = 1 << 20
_AT_ONCE, _AGAIN = 5000, 1000  # words that are looked at together, and once more with the next
_SHOWN = 200  # bytes of a word or a directive that may be as long as the file
_IN_NAMES = bytes([*b"_$", *b"0123456789", *b"abcdefghijklmnopqrstuvwxyz"])
_IN_NAMES += bytes([*_IN_NAMES.upper(), *range(0x80, 0x100)])


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: byte offsets in its script, and the inline COPY data that follows it.

    `escaped`: standard_conforming_strings is off, so a backslash escapes in plain texts, too.
    `semicolons`: some stand in it, in parentheses or in a body.
    """

    start: int
    end: int
    data: tuple[int, int] | None = None
    escaped: bool = False
    semicolons: bool = False

    def text(self, script: bytes) -> bytes:
        """Return the statement without its semicolon; the script itself if it is all of it."""
        return (
            script if (self.start, self.end) == (0, len(script)) else script[self.start : self.end]
        )

    def read(self, script: bytes) -> bytes:
        """Return the statement as all that reads texts in the standard way is to have it.

        It is as long, and what its texts hold is the same but for what other escapes mean.
        """
        return _standard(self.text(script)) if self.escaped else self.text(script)


@dataclass(frozen=True, slots=True)
class Directive:
    """A `-- preflight: …` comment and where it stands."""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Defect:
    """Something that no server would run as it was meant, and what to do about it."""

    start: int
    message: str
    hint: str | None = None


def position(script: bytes, offset: int) -> tuple[int, int]:
    """Return the line and the column (in characters) of a byte offset, both from 1."""
    line_start = script.rfind(b"\n", 0, offset) + 1
    return script.count(b"\n", 0, offset) + 1, _characters(script, line_start, offset) + 1


def _characters(script: bytes, start: int, end: int) -> int:
    """Count the characters of a stretch without a decoded copy: it may be a line of 100 MB."""
    return sum(
        len(script[at : min(at + _PART, end)].translate(None, _INSIDE))
        for at in range(start, end, _PART)
    )


def places(script: bytes, offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the position of each of many ascending offsets; the script is read once."""
    line, column, before = 1, 1, 0
    for offset in offsets:
        start = script.rfind(b"\n", before, offset) + 1
        if start:
            line, column = line + script.count(b"\n", before, start), 1
        column += _characters(script, start or before, offset)
        yield line, column
        before = offset


def statements(script: bytes, *, unbound: bool = False) -> Iterator[Statement]:
    """Yield the statements of a script that was found sound."""
    return (item for item in items(script, unbound=unbound) if isinstance(item, Statement))


def items(script: bytes, *, unbound: bool = False) -> Iterator[Statement | Directive | Defect]:
    """Yield what a script contains, in order; stops at a defect after which nothing is certain.

    A directive inside a statement comes before it, because the statement's end is not known yet.
    `unbound`: it runs in no transaction, though it has no directive that says so.
    """
    at, size = 0, len(script)
    escaped, run = False, _run(escaped=False)
    while at >= 0:
        at = _after(_GAP, script, at)
        if at == size:
            return
        if script[at] == _SEMICOLON:
            at += 1
        elif script.startswith((b"--", b"/*", b"\\"), at):
            item, at = _aside(script, at)
            if item is not None:
                yield item
                unbound = unbound or (isinstance(item, Directive) and item.text == _UNBOUND)
        elif script[at] in b"cC":  # CREATE and COPY may be longer than they seem
            at = yield from _statement(script, at, at, escaped=escaped)
        else:
            sets = script[at] in b"sSrR" and script[at + 2 : at + 3] in b"tTsS"  # SET, RESET
            if sets and (said := _DECIDES.match(script, at)) is not None:
                escaped = escaped if unbound and said["local"] else said["off"] is not None
                run = _run(escaped=escaped)
            end = _after(run, script, at)
            if end < size and script[end] == _SEMICOLON:
                yield Statement(at, end, escaped=escaped)
                at = end + 1
            else:
                at = yield from _statement(script, at, end, escaped=escaped)


@functools.cache
def _run(*, escaped: bool) -> re.Pattern[bytes]:
    """Return what matches all that needs no thought: an INSERT of many rows is one match."""
    easy = rb"[^'\"$();\\/-]++|%b|\"[^\"]*+\"|-(?!-)|/(?!\*)|(?!%b)%b"
    easy %= (_ESCAPED if escaped else _PLAIN, _SAYS, _COMMENT)
    pair = rb"\((?:%b|)*+\)" % easy
    return re.compile(rb"(?:%b|%b|\((?:%b|%b|)*+\)|)*+" % (easy, pair, easy, pair), re.DOTALL)


def _after(pattern: re.Pattern[bytes], script: bytes, at: int) -> int:
    """Return where a pattern that matches everywhere, if only nothing, ends."""
    found = pattern.match(script, at)
    return found.end() if found else at


def _statement(  # noqa: C901, PLR0912 -- one branch a kind of token
    script: bytes, start: int, at: int, *, escaped: bool
) -> Generator[Statement | Directive | Defect, None, int]:
    """Yield the statement that begins at `start` and was read up to `at`; return where to go on.

    -1 is nowhere.
    """
    body = _Body(script, start, escaped=escaped)
    run = _run(escaped=escaped)
    known, depth, inner = start, 0, False  # a name does not reach back beyond `known`
    while (at := _after(run, script, at)) < len(script):
        match script[at : at + 1]:
            case b"(":
                depth, at = depth + 1, at + 1
            case b")":
                depth, at = max(0, depth - 1), at + 1
            case b";":
                if depth == 0 and not body.open(at):
                    break
                at, inner = at + 1, True
            case b"$":
                tag = _DOLLAR.match(script, at)
                if tag is None or _name_before(script, known, at):
                    at += 1
                    continue
                close = script.find(tag.group(), tag.end())
                if close < 0:
                    shown = tag.group()[:_SHOWN].decode("utf-8", "replace")
                    yield Defect(at, f"this {shown} never ends")
                    return -1
                known = at = close + len(tag.group())
            case b"'":
                escapes = escaped or _name_before(script, known, at) in (b"e", b"E")
                string = (_E_STRING if escapes else _STRING).match(script, at)
                if string is None:
                    yield Defect(at, "this string never ends", "Its closing quote is missing.")
                    return -1
                known = at = string.end()
            case b'"':
                yield Defect(at, "this quoted name never ends", "Its closing quote is missing.")
                return -1
            case _:  # -- /* \
                item, after = _aside(script, at)
                if _LAST.match(script, at):
                    yield Statement(start, at, escaped=escaped, semicolons=inner)
                    return after
                if item is not None:
                    yield item
                if after < 0 or script[at] == _BACKSLASH:
                    return after
                known = at = after
    whole: Statement | Defect
    if at == len(script) and body.open(at):
        hint = "Each of its statements has a semicolon, also the last one before END."
        whole, at = Defect(start, "this BEGIN ATOMIC never ends", hint), -1
    else:
        made = Statement(start, at, escaped=escaped, semicolons=inner)
        whole, at = _with_data(script, made)
    yield whole
    return at


def _name_before(script: bytes, known: int, at: int) -> bytes:
    """Return the name that ends right before an offset, or nothing."""
    text = script[max(known, at - 256) : at]
    return text[len(text.rstrip(_IN_NAMES)) :].lstrip(b"$0123456789")


def _aside(script: bytes, at: int) -> tuple[Directive | Defect | None, int]:
    """Return what a comment or meta-command is and where to go on; -1 for nowhere."""
    if script.startswith(b"/*", at):
        end = _block_end(script, at + 2)
        never = Defect(at, "this comment never ends", "Close it with */.") if end < 0 else None
        return never, end
    end = _after(_LINE, script, at)
    if script[at] == _BACKSLASH:
        return _meta_command(script, at), end
    if (note := _DIRECTIVE.match(script, at, end)) is None:
        return None, end
    said = script[note.end() : end].strip()[:_SHOWN]
    return Directive(at, said.decode("utf-8", "replace")), end


def _block_end(script: bytes, at: int) -> int:
    depth = 1
    while depth:
        edge = _BLOCK_EDGE.search(script, at)
        if edge is None:
            return -1
        depth += 1 if edge.group() == b"/*" else -1
        at = edge.end()
    return at


RESTRICTS = ("psql meta-command \\restrict", "psql meta-command \\unrestrict")


def _meta_command(script: bytes, at: int) -> Defect:
    found = _META.match(script, at)
    command = found.group()[:_SHOWN].decode("utf-8", "replace") if found else ""
    if command == "\\.":
        return Defect(at, "\\. ends inline COPY data, but no COPY … FROM stdin is open")
    hint = "Only psql knows this command; write plain SQL"
    hint += (
        " (this looks like a dump: restore it with psql, do not migrate with it)."
        if command in ("\\restrict", "\\unrestrict", "\\connect")
        else "."
    )
    return Defect(at, f"psql meta-command {command}", hint)


def _with_data(script: bytes, statement: Statement) -> tuple[Statement | Defect, int]:
    """Return a statement with the inline data that follows it, and where to go on."""
    start, end = statement.start, statement.end
    if first_word(script, start) != b"COPY" or not copies(statement.read(script), "FROM"):
        return statement, end + 1
    after = _after(_REST_OF_LINE, script, end + 1)
    if script[after : after + 1] != b"\n":
        hint = r"Its rows begin on the line after the semicolon and end with a line \."
        return Defect(start, "COPY … FROM stdin without its data on the next line", hint), -1
    close = _COPY_END.search(script, after + 1)
    if close is None:
        hint = r"End it with a line \."
        return Defect(start, "the data of COPY … FROM stdin never ends", hint), -1
    data = after + 1, close.end()
    return replace(statement, data=data), close.end()


def copies(text: bytes, direction: str) -> bool:
    """Tell whether a COPY statement reads its rows FROM us, or sends them TO us."""
    depth, before = 0, ""
    for word in tokens(text):
        # to PostgreSQL's grammar the two are one word
        if depth == 0 and before == direction and word in ("STDIN", "STDOUT"):
            return True
        depth += {"(": 1, ")": -1}.get(word, 0)
        before = word
    return False


def copy_data(script: bytes, statement: Statement) -> tuple[int, int]:
    r"""Return the byte range of a statement's inline data, without the closing \. line."""
    first, last = statement.data or (0, 0)
    return first, max(first, script.rfind(b"\\.", first, last))


class _Body:
    """Knows where BEGIN ATOMIC … END of the statement at `at` is open, as far as it was read.

    By the grammar each statement of a body has a semicolon, so that only an END behind one ends it:
    whatever else is called END or CASE is a name, a label or part of an expression. psql counts
    them, and loses count where they are names.
    """

    def __init__(self, script: bytes, at: int, *, escaped: bool) -> None:
        self.script, self.at, self.escaped = script, at, escaped
        self.begun = False
        said = [word for word in islice(tokens(script, at), 4) if word not in ("OR", "REPLACE")]
        self.routine = said[:1] == ["CREATE"] and said[1:2] in (["FUNCTION"], ["PROCEDURE"])

    def open(self, end: int) -> bool:
        """Tell whether a semicolon at this offset stands inside such a body; ask at each of them.

        Not about those in parentheses.
        """
        if not self.routine:
            return False
        if self.begun:
            self.begun = next(_each(_every(), self.script, self.at, end), "") != "END"
        elif _ATOMIC.search(self.script, self.at, end):
            text = self.script[self.at : end]
            self.begun = _begins(_standard(text) if self.escaped else text)
        self.at = end + 1
        return self.begun


def _begins(head: bytes) -> bool:
    """Tell whether a body begins in what stands before a routine's first semicolon, and goes on."""
    depth, before, said = 0, "", _each(_every(), head)
    for word in said:
        if depth == 0 and (before, word) == ("BEGIN", "ATOMIC"):  # else parameters, or a label
            return next(said, "") != "END"
        depth += {"(": 1, ")": -1}.get(word, 0)
        before = word
    return False


@functools.cache
def _every() -> re.Pattern[bytes]:
    """Return what finds numbers and operators, too; few files have such a body."""
    return re.compile(_TOKENS + rb"|\d[\w.]*+|\S)", re.DOTALL)


def _standard(text: bytes) -> bytes:
    """Return a text in which backslashes escape as one of the same length that ends alike."""
    kept, at = list[bytes](), 0
    for start, end in asides(text, len(text), escaped=True):
        if text[start] == _QUOTE:
            kept += [text[at:start], _ESCAPE.sub(_doubled, text[start:end])]
            at = end
    return b"".join([*kept, text[at:]])


def _doubled(escape: re.Match[bytes]) -> bytes:
    return b"''" if escape.group() == b"\\'" else escape.group()


def asides(text: bytes, most: int, *, escaped: bool = False) -> Iterator[tuple[int, int]]:
    """Yield where each comment, text and dollar-quoted body of a statement begins and ends.

    Ends before a stretch of more than so many bytes without one.
    """
    at, aside = 0, _ASIDE_ESCAPED if escaped else _ASIDE
    while (opened := _OPENED.search(text, at, at + most)) is not None:
        token = aside.match(text, opened.start())
        if token is None or token["name"]:
            at = token.end() if token else opened.end()
            continue
        at = token.end()
        if token["block"]:
            at = _block_end(text, at)
        elif token["tag"]:
            close = text.find(token["tag"], at)
            at = -1 if close < 0 else close + len(token["tag"])
        yield token.start(), at if at >= 0 else len(text)
        if at < 0:
            return


def code(text: bytes) -> Iterator[bytes]:
    """Yield a statement without its texts and comments, in pieces between which no name stands."""
    kept, size, at = list[bytes](), 0, 0
    for start, end in asides(text, len(text)):
        kept.append(text[at:start])
        size, at = size + start - at, end
        if size > _PART:
            yield b" ".join(kept)
            kept, size = [], 0
    yield b" ".join([*kept, text[at:]])


def bodies(text: bytes, longer: int) -> Iterator[tuple[int, int]]:
    """Yield where what is in each text begins and ends that is longer than so many bytes."""
    for start, end in asides(text, len(text)):
        if end - start > longer and text[start] not in b"-/":
            tag = _DOLLAR.match(text, start)
            inside = tag.end() if tag else text.index(b"'", start) + 1  # E'…' begins before it
            yield inside, end - (len(tag.group()) if tag else 1)


def tokens(text: bytes, at: int = 0, end: int | None = None) -> Iterator[str]:
    """Yield bare words in upper case, the signs ( ) , = . and `'` or `"` for what is quoted."""
    return _each(_TOKEN, text, at, end)


def _each(
    pattern: re.Pattern[bytes], text: bytes, at: int = 0, end: int | None = None
) -> Iterator[str]:
    """Yield what a pattern of tokens finds, as `tokens` does; comments are none."""
    end = len(text) if end is None else end
    while (token := pattern.search(text, at, end)) is not None:
        at = token.end()
        if token["block"]:
            at = _block_end(text, at)
            if at < 0:
                return
        elif token["tag"]:
            close = text.find(token["tag"], at, end)
            at = end if close < 0 else close + len(token["tag"])
            yield "'"
        elif token["word"] or token["sign"]:
            yield token.group().decode("utf-8", "replace").upper()
        elif not token.group().startswith(b"--"):
            yield chr(token.group()[-1])


def words(text: bytes, limit: int | None = None) -> list[str]:
    """Return the bare words and the signs ( ) , = . of a statement, upper case, quotes left out."""
    return list(islice(bare(text), limit))


def bare(text: bytes, at: int = 0, end: int | None = None) -> Iterator[str]:
    """Yield the bare words and the signs of a part of a statement, as `words` returns them."""
    return (word for word in tokens(text, at, end) if word not in "'\"")


def windows(text: bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[list[str], int]]:
    """Yield the words of a part of a statement, some thousand at a time.

    Each time those that stand before, and the first that was not looked at with all behind it.
    """
    said, before, first = bare(text, at, end), list[str](), 0
    while more := list(islice(said, _AT_ONCE)):
        yield [*before, *more], first
        before, first = more[-_AGAIN:], 1


def first_word(script: bytes, at: int) -> bytes:
    """Return the word that a statement begins with, in upper case."""
    found = _FIRST.match(script, at)
    return found.group().upper() if found else b""
