"""No credential in what is shown: users, passwords, queries and tokens are taken out of texts and URLs, in one pass.

A URL is found as the most lenient finds it who may have taken it for one: a browser's parser (any number of slashes,
either way round, white space inside, escapes), a shell (options, assignments), somebody who pastes (no scheme at all).
Texts come from servers and from storage: each step takes time in proportion to the text, whatever that is.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote

SHOWN = "***"
HTTP_SCHEMES = ("http", "https")
_LEAST = 4  # characters of a known secret: what is shorter stands in any text
_CONTAINER_FIRST = ("abfs", "abfss", "wasb", "wasbs")  # abfs://container@account.dfs.core.windows.net/path
_CONTAINER = re.compile(r"[a-z0-9$-]{3,63}")
_WEB = ("http", "https", "ws", "wss", "ftp", "ftps")  # a browser's parser passes over slashes that are too many
# Those that are known by their name alone, with slashes missing.
_LOGIN = rf"""(?i:{"|".join(_WEB)}|s3a?|gc?s|sftp|ssh|scp|webdavs?|davs?|smb|git|hdfs|amqp|redis|postgresql|mysql)"""

_HEAD = re.compile(rf"[\w+.-]++:[/\\]{{2,}}|{_LOGIN}:[/\\]?|[/\\]{{2}}(?![/\\])")
_HEAD_IN_WORD = re.compile(
    rf"(?<![\w+.-])(?:[\w+.-]++:[/\\]{{2,}}|{_LOGIN}:[/\\]?)|(?<![^\s(\[{{=,;|])[/\\]{{2}}(?![/\\])"
)
_CHAIN = re.compile(r"\s*+(?:[\w+.-]++::)*+")
_WORD = re.compile(r"[^\s\"'<>]+")
_SUSPECT = re.compile(r"[@?#;:]|%[0-9A-Fa-f]{2}|&#|&[a-z]+;|\\u00|[^\x00-\x7f]")
_ESCAPES = re.compile(r"%(?:25|3[abAB]|3[dfDF]|26|40)|&#|&[a-z]+;|\\[nrtu]|[^\x00-\x7f]")  # of : ; = ? & @ and %
_JSON_ESCAPE = re.compile(r"\\(?:u00([0-7][0-9A-Fa-f])|[nrt])")
_MAX_LAYERS = 3  # of escapes
# White space that URLs lose, and what follows: of a query that has begun, of a password that has.
_MORE_OF_QUERY = re.compile(r"(?:[\t\r\n]+[^\s\"'<>]+)*")
_MORE_OF_PASSWORD = re.compile(r"[^@\r\n]{0,256}+(?:[\r\n][\t\r\n]*+[^@\s]{0,256}+)?@[^\s\"'<>]*")
_MORE_OF_USER = re.compile(r"[\t\r\n]++[^\s@]{0,256}+@[^\s\"'<>]*")  # behind scheme://user:
_IN_BRACKETS = re.compile(r"\[[^\]]*\](?::[0-9]{0,5})?")
_PORT = re.compile(r"[0-9]{0,5}")
_PUNCTUATION = ".,;:)]}"  # what a sentence puts behind a URL
_PARAMETER = re.compile(r";[^/;=]*=[^/;]*")  # of a path: /login;jsessionid=…
_QUERY = re.compile(r"\?[^?=]*+=.*", re.DOTALL)  # of a path: not all clients tell whole URLs

# name=value, name: value, "name": "value", "name" => "value"
_FIELD = re.compile(
    r"(?<![\w.$-])([\w.$-]++)([\"'\\]*+)[ \t]*+(:?=++>?|:|\\u003d|%(?:25)*+3[dD]|&(?:#61|#x3[dD]|equals);)[ \t]*+"
)
_OPTION = re.compile(r"(?<![^\s\"'`(])--?([A-Za-z][\w-]*+)[ \t]++(?=[^\s-])")
_PAIR = re.compile(r"[(\[][ \t]*+[bBrRuU]{0,2}[\"']([\w.$-]++)[\"'][ \t]*+,[ \t]*+")  # ("name", "value")
# A literal, as programs print one: b'…', 'it\'s', SecretStr('…'), Some("…"); or one inside of a literal.
_QUOTED = (
    r"\\+(?:\"[^\"]*+\"|'[^']*+')"
    r"|(?:[A-Za-z_][\w.:]{0,63}\([ \t]?){0,3}[bBrRuUfF]{0,2}(?:\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+')"
)
_LIST = r"\[++[^\[\]\r\n]*+\]*+|\([^()\r\n]*+\)?"
_VALUE = re.compile(rf"{_LIST}|{_QUOTED}|\\*[\"']?[^\s\"'&;<>]+", re.DOTALL)
_VALUE_OF_HEADER = re.compile(rf"{_LIST}|{_QUOTED}|\\*[\"']?(?:[A-Za-z][\w-]*+[ \t]++)?[^\s\"'&;<>]+", re.DOTALL)
_VALUE_OF_PAIR = re.compile(rf"(?:{_QUOTED})(?=[ \t]*+[)\]])", re.DOTALL)
_LINE = re.compile(rf"{_LIST}|{_QUOTED}|\\*[^\r\n\"'<>]+", re.DOTALL)
_LONG_NAMES = (
    "token", "secret", "password", "passwd", "passphrase", "apikey", "accesskey", "accesskeyid", "secretkey",
    "accountkey", "sharedkey", "privatekey", "credential", "credentials", "authorization", "cookie", "sessionid",
    "sessid", "signature",
)  # fmt: skip
_SHORT_NAMES = {"auth", "jwt", "pass", "pin", "pw", "pwd", "sas", "sid", "sig"}
_NAMED_ALIKE = ("inputsignature", "outputsignature", "functionsignature")
_IN_PROSE = {"pass", "pin", "pw", "sid", "auth", "sas", "sig"}  # what a sentence puts before a colon
_OF_ERRORS = ("invalid", "expired", "unexpected", "missing")  # ExpiredToken: …
_PARTS = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_BEARER = re.compile(r"(?i)\b(bearer[ \t]++)[^\s\"',;&<>]+")
# Tokens that tell by their own shape that they are.
_TOKEN = re.compile(
    r"\beyJ[\w-]{8,}+\.[\w-]++(?:\.[\w-]*+)?|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}+|\bgithub_pat_\w{20,}+"
    r"|\bglpat-[\w-]{16,}+|\bhf_\w{20,}+|\bxox[abeoprs]-[\w-]{10,}+|\bya29\.[\w-]{16,}+|\bAIza[\w-]{30,}+"
    r"|\bsk-[\w-]{20,}+"
)
# <name …>text</name>, also with escapes; cut off, its text begins at once, as it does not in a usage: <token> means it.
_ELEMENT = re.compile(r"<([\w.:-]++)([^<>]*+)>")
_ESCAPED_ELEMENT = re.compile(
    r"(?:&(?:lt|#60|#x3c);|\\u003c)([\w.:-]++)((?:(?!&(?:[lg]t|#6[02]|#x3[ce]);|\\u003[ce])[^<>])*+)"
    r"(?:&(?:gt|#62|#x3e);|\\u003e)",
    re.IGNORECASE,
)
_BEGINS = r"(?:\s*+<!--[^>]*+>)?(?:\s*+<!\[CDATA\[.*?(?:\]\]>|\Z)|"
_TEXT = re.compile(rf"{_BEGINS}[^<]++(?=</)|(?:[\r\n]\s*+)?[\w+/=$%!#@~*\\-][^<]*+)", re.DOTALL)
_ESCAPED_TEXT = re.compile(r"(?:(?!&(?:lt|#60|#x3c);|\\u003c)[^<])++", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[\"';]([\w.$-]++)[\"'&\\]")
# A pair that tells the name and the value apart, in either order: "name": "password", "value": "x".
_NAME_LABELS = ("name", "key", "id", "field", "property", "parameter", "header", "type")
_VALUE_LABELS = ("value", "val", "content", "string", "text", "data")
_NAME_VALUE = re.compile(r"\s*+[bBuU]?\\*[\"']?([\w.$/:-]++)")
_PAIR_FIELDS = 4  # and no more are looked at to either side
_INSIDE = re.compile(r"\s*+[{\[<&]|\\u003c")
# botocore's error of a reply that is no XML has the whole of it: also of one that is cut off, with credentials.
_UNPARSED = re.compile(r"(Further retries may succeed:).*", re.DOTALL)
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----).*?(?:-----END[^-]{0,60}-----|\Z)", re.DOTALL)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without credentials: the given secrets, user parts, queries and parameters of URLs, fields and options
    whose names tell of a secret, and tokens of known shapes."""
    for secret in sorted((s for s in secrets if len(s) >= _LEAST), key=len, reverse=True):
        text = text.replace(secret, SHOWN)
    text = _UNPARSED.sub(rf"\1 {SHOWN}", _PRIVATE_KEY.sub(rf"\1{SHOWN}", text))
    text = _without_urls(text)
    text = _without_fields(text)
    return _TOKEN.sub(SHOWN, _BEARER.sub(rf"\1{SHOWN}", text))


def redact_url(url: str) -> str:
    """`url` without user name, password, parameters, query string and fragment; Azure's container before the @ stays.

    Shows of a URL no secret that `redact` would not. A path is no URL, whatever is in it. `scheme://***` if it is not
    clear where a password ends.
    """
    before, url = _split_chain(url)
    if _ESCAPES.search(url):
        plain = url
        for _ in range(_MAX_LAYERS):
            plain = unicodedata.normalize("NFKC", html.unescape(unquote(plain)))
        plain = re.sub(r"\s", "", plain)  # which parsers of URLs drop
        shown = _redacted_url(plain)
        if shown != plain:
            return before + shown
    return before + _redacted_url(url)


def _redacted_url(url: str) -> str:
    head, scheme, rest = _split_head(url)
    if not head:
        return url
    user, rest, is_clear = _split_user(rest)
    if not is_clear:
        return head + SHOWN
    kept = f"{user}@" if scheme in _CONTAINER_FIRST and _CONTAINER.fullmatch(user) else ""
    path, mark, _ = _split_at(rest, "?#")
    shown = f"{head}{kept}{_PARAMETER.sub(f';{SHOWN}', path)}" + (f"?{SHOWN}" if mark == "?" else "")
    return _TOKEN.sub(SHOWN, _without_fields(shown))


def user_of(url: str) -> str:
    """The user name and the password in `url`, as they stand there; all that may be one, if that is not clear."""
    head, scheme, rest = _split_head(_split_chain(url)[1])
    user, _, is_clear = _split_user(rest) if head else ("", "", True)
    return "" if is_clear and scheme in _CONTAINER_FIRST and ":" not in user else user


# ---- one URL


def _split_chain(url: str) -> tuple[str, str]:
    """What stands before a URL: white space, and what fsspec puts around it, as `simplecache::`."""
    found = _CHAIN.match(url)
    end = found.end() if found is not None else 0
    return url[:end], url[end:]


def _split_head(url: str) -> tuple[str, str, str]:
    """What a URL begins with up to its authority, its scheme, and the rest; no head for what is a path."""
    found = _HEAD.match(url)
    if found is None:
        return "", "", url
    head, rest = found[0], url[found.end() :]
    scheme = head.rstrip("/\\:").lower()
    authority = _split_at(rest, "/\\?#")[0]
    if len(head) - len(scheme) > 3 and scheme not in _WEB and not re.search(":.*@", authority):
        end = len(scheme) + 3  # an authority that is empty, as in file:///path
        return url[:end], scheme, url[end:]
    is_whole = bool(scheme) and len(head) > len(scheme) + 2
    is_url = is_whole or ("@" in rest and (bool(scheme) or ":" in authority or "@" in authority))
    return (head, scheme, rest) if is_url else ("", "", url)


def _split_user(rest: str) -> tuple[str, str, bool]:
    """User and password, what follows them, and whether it is clear where they end: a password may hold `/`, `?`, `#`
    and `@`, although it should not."""
    authority = _split_at(rest, "/?#")[0]
    user, at, host = authority.rpartition("@")
    if at:
        is_clear = ":" not in user or _is_host(host) or "@" not in rest[len(authority) :]
    else:
        is_clear = "@" not in rest or ":" not in authority or _is_host(authority) or authority.startswith("arn:")
    if is_clear:
        return user, rest[len(user) + len(at) :], True
    user, at, _ = _split_at(rest, "?#")[0].rpartition("@")
    return (user, rest[len(user) + 1 :], True) if at else (rest.rpartition("@")[0], "", False)


def _is_host(authority: str) -> bool:
    """Whether it is plainly a host, with or without a port."""
    if authority.startswith("["):
        return _IN_BRACKETS.fullmatch(authority) is not None
    host, _, port = authority.partition(":")
    return (host == "localhost" or "." in host) and _PORT.fullmatch(port) is not None


def _split_at(text: str, marks: str) -> tuple[str, str, str]:
    """`text` before the first of the marks, that mark, and what follows."""
    at = min((found for found in map(text.find, marks) if found >= 0), default=len(text))
    return text[:at], text[at : at + 1], text[at + 1 :]


# ---- URLs in a text


def _without_urls(text: str) -> str:
    shown: list[str] = []
    at = 0
    while found := _WORD.search(text, at):
        word, end = found[0], found.end()
        if _SUSPECT.search(word):
            more = _goes_on(word)
            if more is not None and (rest := more.match(text, end)):
                end = rest.end()
                word = text[found.start() : end]
            word = _word_without(word)
        shown += text[at : found.start()], word
        at = end
    return "".join((*shown, text[at:]))


def _goes_on(word: str) -> re.Pattern[str] | None:
    """What may follow a word as a part of it: of a URL whose query, or whose password, has begun."""
    head = _HEAD_IN_WORD.search(word)
    if head is None:
        return None
    rest = word[head.end() :]
    if _is_cut(_split_at(rest, "/\\?#")[0]) and "@" not in rest:
        return _MORE_OF_PASSWORD
    if _split_at(rest, "?#;")[1]:
        return _MORE_OF_QUERY
    return _MORE_OF_USER if "@" not in rest and not set(rest) & set("/\\") else None


def _word_without(word: str) -> str:
    if _ESCAPES.search(word):
        plain = word
        for _ in range(_MAX_LAYERS):
            plain = unicodedata.normalize("NFKC", html.unescape(unquote(_JSON_ESCAPE.sub(_unescaped, plain))))
        shown = _without(plain)
        if shown != plain:
            return shown
    return _without(word)


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else "\n"


def _without(word: str) -> str:
    """A word, in which there is no white space of a text, without users, queries and parameters."""
    head = _HEAD_IN_WORD.search(word)
    before, head_text, url = (word[: head.start()], head[0], word[head.end() :]) if head else (word, "", "")
    return _bare_without(before) + (_url_without(head_text, url) if head_text else "")


def _url_without(head: str, rest: str) -> str:
    """As `redact_url`, for a URL that was cut out of a text: what stands before an @ may be a user, with slashes."""
    slashes = len(head) - len(head.rstrip("/\\"))
    is_whole = slashes > 1 and head[:1] not in "/\\"
    authority = _split_at(rest, "/\\?#")[0]
    if not is_whole and not ("@" in rest and (slashes < 2 or ":" in authority or "@" in authority)):
        return head + _PARAMETER.sub(f";{SHOWN}", _QUERY.sub(f"?{SHOWN}", rest))
    path, mark, more = _split_at(rest, "?#")
    if "@" not in path and (_is_cut(authority) or ("@" in more and not _is_host(authority))):
        return head + SHOWN
    user, at, path = path.rpartition("@")
    is_container = head.partition(":")[0].lower() in _CONTAINER_FIRST and _CONTAINER.fullmatch(user)
    head += user + at if is_container else ""
    return head + _PARAMETER.sub(f";{SHOWN}", path) + (f"?{SHOWN}" if mark == "?" else "")


def _bare_without(word: str) -> str:
    """A word without a scheme: user:password@host, or a path with parameters and a query."""
    before, at, host = word.rpartition("@")
    user, colon, _ = before.partition(":")
    if at and colon and not set(user) & set("/\\~") and user != "arn":
        return SHOWN if "?" in before else f"{SHOWN}@{_QUERY.sub(f'?{SHOWN}', host)}"
    word = _QUERY.sub(f"?{SHOWN}", word)
    return _PARAMETER.sub(f";{SHOWN}", word) if "/" in word.partition(";")[0] else word


def _is_cut(authority: str) -> bool:
    """Whether a password has begun in it, and no host has come."""
    return ":" in authority and not _ends_in_port(authority) and not authority.startswith(("arn:", "["))


def _ends_in_port(authority: str) -> bool:
    """Whether it ends as host:port does, or as host: does, with what a sentence puts behind it."""
    end = authority.rstrip(_PUNCTUATION)
    return ":" in authority[len(end) :] or _PORT.fullmatch(end.rpartition(":")[2]) is not None


# ---- fields


def _without_fields(text: str) -> str:
    values = {option.end(): _value_of_option(option) for option in _OPTION.finditer(text)}
    values |= {pair.end(): _VALUE_OF_PAIR if _is_secret(pair[1]) else None for pair in _PAIR.finditer(text)}
    values |= _named_values(text)
    shown: list[str] = []
    at = 0
    for start, pattern in sorted(values.items(), key=lambda each: each[0]):
        value = pattern.match(text, start) if pattern is not None and start >= at else None
        if value is None:
            continue
        is_literal = pattern not in (_TEXT, _ESCAPED_TEXT) and value[0][-1] in "\"'"
        quote = value[0][-1] if is_literal else ""
        before = value[0].partition(quote)[0].lstrip("\\") if quote else ""
        shown += text[at:start], f"{before}{quote}{SHOWN}{quote}"
        at = value.end()
    return "".join((*shown, text[at:]))


def _named_values(text: str) -> dict[int, re.Pattern[str] | None]:
    """Where the value of each field and element begins, and what it looks like if it is a secret."""
    # name, what any value of it looks like, what a secret one does
    found = {field.end(): (field[1], _VALUE, _value_of(field)) for field in _FIELD.finditer(text)}
    for kind, inner in ((_ELEMENT, _TEXT), (_ESCAPED_ELEMENT, _ESCAPED_TEXT)):
        for element in kind.finditer(text):
            is_secret = any(map(_is_secret, (element[1], *_ATTRIBUTE.findall(element[2]))))
            found[element.end()] = (element[1], inner, inner if is_secret else None)
    starts = sorted(found)
    values = {start: found[start][2] for start in starts}
    for number, start in enumerate(starts):
        name, _, secret = found[start]
        near: list[int] = []
        if secret is not None and _INSIDE.match(text, start):
            near = starts[number + 1 : number + 2]  # what is inside of it
        elif _last_word(name) in _NAME_LABELS and (told := _NAME_VALUE.match(text, start)) and _is_secret(told[1]):
            around = starts[max(0, number - _PAIR_FIELDS) : number + 1 + _PAIR_FIELDS]
            near = [each for each in around if _last_word(found[each][0]) in _VALUE_LABELS]
        values |= {each: values[each] or found[each][1] for each in near}
    return values


def _last_word(name: str) -> str:
    return _PARTS.split(name)[-1].lower()


def _value_of(field: re.Match[str]) -> re.Pattern[str] | None:
    """What the value of a field looks like, if its name tells that it is a secret."""
    name, quotes, mark = field[1], field[2], field[3]
    is_prose = mark == ":" and not quotes
    words = [part.lower() for part in _PARTS.split(name) if part]
    if not words or (is_prose and (words[-1] in _IN_PROSE or field.string[field.start() - 1 : field.start()] == "/")):
        return None
    joined = "".join(words)
    if is_prose and joined.startswith(_OF_ERRORS):
        return None
    if joined.endswith("cookie"):
        return _LINE
    if joined.endswith("authorization"):
        return _VALUE_OF_HEADER
    is_secret = joined.endswith(_LONG_NAMES) and not joined.endswith(_NAMED_ALIKE)
    return _VALUE if is_secret or words[-1] in _SHORT_NAMES else None


def _value_of_option(option: re.Match[str]) -> re.Pattern[str] | None:
    return _VALUE if _is_secret(option[1]) else _USER if option[1] in ("u", "user") else None


def _is_secret(name: str) -> bool:
    words = [part.lower() for part in _PARTS.split(name) if part]
    return bool(words) and ("".join(words).endswith(_LONG_NAMES) or words[-1] in _SHORT_NAMES)


_USER = re.compile(r"[\"']?[^\s:\"']+:(?:[^\s\"']+)")
