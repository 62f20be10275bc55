"""No credential in a text or a URL, in any shape that a lenient parser, a shell or a person takes for one."""

from __future__ import annotations

import html
import json
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from ckptflow.storage.redaction import redact, redact_url, user_of

SECRET = "S3CR3T-planted"

SHAPES = [
    # what a browser's parser takes for a URL
    "https://host/a;jsessionid={}",
    "https://host/a;v=1;jsessionid={}/b?x=1",
    "/a/b;jsessionid={}",
    "https://host/x?token=ab\n{}",
    "https://host/x?token=ab\r\n\t{}&x=1 failed",
    "https://host/x?\n{}",
    "https:/user:{}@host/x",
    "https:user:{}@host/x",
    "HTTPS:user:{}@host/x",
    "//user:{}@host/x",
    "//{}@host/x",
    "https:///user:{}@host/x",
    "https:////user:{}@host/x",
    "https:\\\\user:{}@host\\x",
    "https:/\\user:{}@host",
    "\\\\user:{}@host",
    "https://user:{}\\@host/x",
    "https:/\n/user:{}@host/x",
    "https://us\ner:{}@host/x",
    "ht://user:\n{}@host/x",
    "https://user:\t{}@host/x",
    "https://user:my {}@host/x",
    "https://user:my'{}@host/x",
    'https://user:a"{}@host/x',
    "https://user:a<{}>b@host/x",
    "https://host/x#access_token={}",
    "ftp:/user:{}@host",
    "postgresql:user:{}@host/db",
    "my_store://user:{}@host",
    # written by another encoder
    "https%3A%2F%2Fuser%3A{}%40host%2Fx",
    "https%253A%252F%252Fuser%253A{}%2540host",
    "https://proxy/get?url=x&u=https%3A%2F%2Fuser%3A{}%40host",
    "https://proxy/https%3A%2F%2Fuser%3A{}%40host/x",
    "https://u:p@proxy/https%253A%252F%252Fuser%253A{}%2540host",
    "/b/k%3Fx%3D1%26X-Amz-Signature%3D{}",
    "https://user:{}&#64;host/x",
    "https://user:{}&commat;host/x",
    "/b/k?sig\\u003d{}",
    "/b/k?a=b\\u0026sig\\u003d{}",
    "https\uff1a//user\uff1a{}\uff20host/x",
    # told in part
    "/b/k?acl&X-Amz-Signature={}",
    "/b/k?x[y]=1&sig={}",
    "user:{}@host:5432/db",
    "user:a/b?{}@host",
    "(user:{}@host)",
    "dsn=user:{}@host",
    "u1:{}@a,https://u2:{}@b",
    # a shell
    "curl -u me:{} https://host",
    "curl --user me:{} https://host",
    "curl -H 'Authorization: Negotiate {}' x",
    "curl -H 'X-Api-Key: {}' x",
    "tool --password {} x",
    "tool --password={} x",
    "tool --api-key '{}' x",
    "export AWS_SECRET_ACCESS_KEY='{}'",
    "DB_PASS={} tool",
    "GITHUB_TOKEN={}",
    'password="my {}"',
    # headers, JSON, connection strings
    "Cookie: a=b; session={}; c=d",
    "Set-Cookie: a={}; Path=/",
    "Proxy-Authorization: Basic {}",
    "Authorization: Digest {}",
    '{{"client_secret": "{}"}}',
    '{{\\"refresh_token\\": \\"{}\\"}}',
    "{{'accessToken': '{}'}}",
    "AccountName=x;AccountKey={};EndpointSuffix=y",
    "SharedAccessSignature={}",
    "passphrase: {}",
    # literals, as programs print values
    "password=b'{}'",
    "{{b'Authorization': b'Basic {}'}}",
    "{{u'password': u'{}'}}",
    'password=rb"{}"',
    "Config(password=SecretStr('{}'))",
    'token: Some("{}")',
    "token: Some(Secret('{}'))",
    "password='it\\'s {}'",
    'password="it\\"s {}"',
    "Cookie: b'a={}'",
    "('X-Auth-Token', '{}')",
    "[('password','{}')]",
    "(b'Authorization', b'Basic {}')",
    '["api_key", "{}"]',
    "('password', 'it\\'s {}')",
    "passwd&#61;{}",
    "passwd&#x3D;{}",
    "passwd&equals;{}",
    "passwd%253D{}",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "'password' => '{}'",
    ":password => {}",
    "password := {}",
    "password == '{}'",
    # XML, whole and cut off
    "<Credentials><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken></Credentials>",
    "b'<Credentials><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}",
    "<Password>{}</Password>",
    "<Password>\n  {}\n</Password>",
    "<Password>\\n  {}\\n</Password>",
    "<Password>my {}</Password>",
    "<Password>{}'a'</Password>",
    "&lt;Password&gt;{}'a'&lt;/Password&gt;",
    "<password type='text' lang=\"en\">{}</password>",
    "<wsse:Password Type='x'>{}</wsse:Password>",
    "<ns0:SessionToken xmlns:ns0='http://x/y'>{}</ns0:SessionToken >",
    "<Password><![CDATA[{}]]></Password>",
    "<Password>\n<![CDATA[a<b>{}]]>",
    "<Password><!-- it --> {}</Password>",
    "<Password><Value>{}</Value></Password>",
    "&lt;Password&gt;{}&lt;/Password&gt;",
    "&lt;a:Token id=&quot;x&quot;&gt;{}&lt;/a:Token&gt;",
    "\\u003cPassword\\u003e{}\\u003c/Password\\u003e",
    "<entry key='password'>{}</entry>",
    '<property name="db.password">{}</property>',
    "<property><name>fs.s3a.secret.key</name><value>{}</value></property>",
    "<Parameter><Value>{}</Value><Name>password</Name></Parameter>",
    "<dict><key>password</key><string>{}</string></dict>",
    # a name and a value
    '<input name="password" value="{}">',
    '<input type="text" value="{}" id="p" name="password"/>',
    "<meta name='csrf-token' content='{}'>",
    "<meta content='my {}' name='csrf-token'>",
    '{{"name": "password", "value": "{}"}}',
    '{{"value": "my {}", "name": "password"}}',
    "{{'Key': 'db_password', 'Type': 'x', 'Value': b'{}'}}",
    '{{\\"name\\": \\"token\\", \\"value\\": \\"{}\\"}}',
    "name: DB_PASSWORD\nvalue: {}",
    "Key=password,Value={}",
    "Param(name='api_key', default=None, value='{}')",
    '{{"password": {{"value": "{}"}}}}',
    '{{"name": "X-Api-Key", "value": "{}"}}',
    '<input type="password" value="{}">',
    "ParameterKey=DbPassword,ParameterValue={}",
    '{{"Name": "prod/db/password", "SecretString": "{}"}}',
    # a list
    "{{'Authorization': ['Basic {}']}}",
    "{{'password': ['a', '{}']}}",
    'Set-Cookie: ["a={}", "b={}"]',
    "api_key=('{}',)",
    # a parser's error has all that it could not parse
    "Unable to parse response (no element found), invalid XML received. Further retries may succeed:\nb'<a>{}\\n b",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("around", ["{}", "GET {} failed: no", "'{}', 1", "({}).", "a\n{}\nb"])
def test_no_shape_of_a_credential_is_told(shape: str, around: str) -> None:
    shown = redact(around.format(shape.format(*[SECRET] * shape.count("{}"))))
    assert SECRET not in shown, shown
    assert "S3CR3T" not in shown, shown


@pytest.mark.parametrize("token", [
    "AKIAABCDEFGHIJKLMNOP", "ghp_" + "a" * 36, "hf_" + "b" * 34, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "ya29.a0AfH6SMBxxxxxxxxxxxxxxx", "glpat-aaaaaaaaaaaaaaaaaaaa", "xoxb-123456789012-abc",
])  # fmt: skip
def test_a_token_is_known_by_its_shape(token: str) -> None:
    assert redact(f"the server said {token}, no") == "the server said ***, no"


PLAIN = [
    "The request signature we calculated does not match the signature you provided. Check your key.",
    "see https://host:8333/bucket/key for more",
    "see https://host.org/a/b.\nfailed: 2 of 3",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/run: not found",
    "/data/runs/a:b@c/k: cannot write: No space left on device; make room",
    "runs/a:b@c is there",
    "model/token_embedding: expected (3, 4), got (5, 6)",
    "model/x/password: is missing",
    "An error occurred (ExpiredToken) when calling the PutObject operation: the token has expired",
    "ExpiredToken: the provided token is malformed",
    "signatures= raised ValueError: no",
    "f(input_signature=[TensorSpec(shape=(None, 3), dtype=tf.float32)])",
    "no file matches /data/shard-?????.tfrecord; 100% of 3",
    "me@example.org wrote it at 12:30:05",
    "git@host:repo/x",
    "abfs://container@account.dfs.core.windows.net/a",
    "a // b; c=d",
    "file:///data/a;b/c",
    "C++: std::vector, num_tokens=3, key=lineage/1",
    "it ends with ? and = in between",
    "('model/token_embedding', 'model/dense')",
    "('token', 'mask', 'length')",
    "größer: naïve 中文",
    "usage: tool <token> <password>, with <password> as it is",
    "<token>: is missing",
    "<Credentials object at 0x7f00> is <Token name>",
    "<Error><Code>AccessDenied</Code><Message>no</Message><Key>a/1</Key></Error>",
    '{"name": "model/dense", "value": 3}',
    "<tf.Variable 'x:0' shape=(3,)>; name=dense, value=3",
    "if a<b and token>3: c",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_without_one_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a;jsessionid=S/b;c", "https://host/a;***/b;c"),
        ("https:/user:S@host/a", "https:/host/a"),
        ("https:user:S@host/a", "https:host/a"),
        ("//user:S@host/a", "//host/a"),
        ("https:///user:S@host/a", "https:///host/a"),
        ("https:\\\\user:S@host/a", "https:\\\\host/a"),
        ("s3:///user:S@host/a", "s3:///host/a"),
    ],
)
def test_a_url_that_somebody_may_take_for_one(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    if "@" in url:
        assert user_of(url) == "user:S"


@pytest.mark.parametrize(
    "path", ["/data/a@b:c?d#e", "//data/a:b@c", "a;b=c", "file:///data/a@b", "hdfs:///a@b", "git:x", "./https:/a"]
)
def test_a_path_is_no_url(path: str) -> None:
    assert redact_url(path) == path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("simplecache::https://user:S@host/x.keras?sig=S", "simplecache::https://host/x.keras?***"),
        ("filecache::s3://KEY:S@bucket/x", "filecache::s3://bucket/x"),
        ("a::b::s3://KEY:S@bucket/x", "a::b::s3://bucket/x"),
        (" https://user:S@host/x?sig=S", " https://host/x?***"),
        ("https://host/a%3Fsig%3DS", "https://host/a?***"),
        ("https%3A%2F%2Fuser:S@host/x", "https://host/x"),
        ("https://host/token=S/x", "https://host/token=***"),
        ("simplecache::/data/a@b:c?d", "simplecache::/data/a@b:c?d"),
        ("simplecache::s3://bucket/a%20b", "simplecache::s3://bucket/a%20b"),
    ],
)
def test_what_stands_around_a_url_hides_no_secret(url: str, shown: str) -> None:
    assert redact_url(url) == shown


HEADS = ["https://", "https:/", "https:", "http:///", "//", "https:\\\\", "ftp:/", "s3://", "", "x+y://"]
ALPHABET = "abcXYZ019/?#@:;=&%+ \t\n'\"<>\\.,[]()é"
spellings = st.sampled_from([str, quote, lambda text: quote(text, safe=""), html.escape])


@given(
    head=st.sampled_from(HEADS),
    before=st.text("abc:;.%+!$*~", max_size=8),
    after=st.text("abc:;.%+!$*~", max_size=8),
    around=st.sampled_from(["{}", "a {} b", "'{}'", "({})", "a\n{}\nb: c"]),
    spell=spellings,
)
@example(head="", before="", after="", around="{}", spell=str)
def test_a_password_is_told_in_no_spelling(head: str, before: str, after: str, around: str, spell: object) -> None:
    url = f"{head}user:{before}PLANTED{after}@host.org/path"
    assert callable(spell)
    assert "PLANTED" not in redact(around.format(spell(url)))
    assert "PLANTED" not in redact(json.dumps(around.format(spell(url))))


@given(
    before=st.sampled_from(["", " ", "\n\t", "simplecache::", "filecache::blockcache::", "zip://a.keras::"]),
    head=st.sampled_from(["https://", "http:///", "s3://", "gs://", "abfs://", "x+y://", "https:\\\\"]),
    around=st.text("abc:;.%+!$*~/", max_size=8),
    what=st.sampled_from(["user:{}@host.org/path", "host.org/x?sig={}", "host.org/x;sid={}", "host.org/token={}/x"]),
    spell=spellings,
)
def test_a_url_shows_no_secret_that_a_text_does_not(
    before: str, head: str, around: str, what: str, spell: object
) -> None:
    assert callable(spell)
    url = before + head + spell(what.format(f"PLANTED{around}"))
    assert "PLANTED" in redact(url) or "PLANTED" not in redact_url(url)


@given(text=st.text(ALPHABET, max_size=60), secret=st.sampled_from(["?sig=PLANTED", ";sid=PLANTED", "?a&b=PLANTED"]))
def test_a_query_is_told_behind_no_text(text: str, secret: str) -> None:
    assert "PLANTED" not in redact(f"{text}/x{secret}")


@given(at=st.integers(0, 26), space=st.sampled_from(["\n", "\t", "\r\n", "\n\t"]))
def test_white_space_that_a_parser_drops_hides_nothing(at: int, space: str) -> None:
    url = "https://user:QWERTYUI@host"
    shown = redact(f"a {url[: max(at, 7)]}{space}{url[max(at, 7) :]} b")
    assert not any(piece in shown for piece in ("QWE", "RTY", "TYUI")), shown


@given(text=st.text(ALPHABET, max_size=80))
def test_any_text_is_redacted(text: str) -> None:
    assert text == redact(text) or "***" in redact(text) or "@" in text
    assert "\n" in text or "\n" not in redact_url(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("f(password=b'x', size=3)", "f(password=b'***', size=3)"),
        ("token: Some('x'), size: 3", "token: Some('***'), size: 3"),
        ("[('password', 'x'), ('size', '3')]", "[('password', '***'), ('size', '3')]"),
        ("password='a\\'b', size='3'", "password='***', size='3'"),
        ("<Password>x</Password><Size>3</Size>", "<Password>***</Password><Size>3</Size>"),
        ('{"name": "password", "value": "x", "size": 3}', '{"name": "password", "value": "***", "size": 3}'),
        ('<input name="password" value="x" size="3">', '<input name="password" value="***" size="3">'),
    ],
)
def test_of_a_literal_only_the_value_is_taken(text: str, shown: str) -> None:
    assert redact(text) == shown
