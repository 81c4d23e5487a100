"""Refused certificates, by Python 3.13's stricter rules too, and the advice for each."""

import shlex
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from redis import exceptions

from schemas.audio import Encoding as AudioEncoding
from tests.support.certificates import Certificate, add_tls, behind_tls
from worker import tls
from worker.bus.client.connection import connect
from worker.errors import SttTransientError
from worker.local.redis import EmbeddedRedis
from worker.stt.cartesia import CARTESIA
from worker.stt.provider import Endpoint, StreamSettings
from worker.stt.websocket import _tls

Extension: TypeAlias = tuple[x509.ExtensionType, bool]

TRUST = "name your own authority's file"
AUTHORITY = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt"
OWN = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
KEY_USAGE = '-addext "keyUsage=critical,keyCertSign,cRLSign"'
SERVER = "authorityKeyIdentifier=keyid"


def usage(*, signs: bool) -> Extension:
    names = "content_commitment data_encipherment key_agreement encipher_only decipher_only"
    flags = dict.fromkeys([*names.split(), "key_encipherment"], False)
    return (
        x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **flags),
        True,
    )


CA = (x509.BasicConstraints(ca=True, path_length=None), True)
SIGNS = usage(signs=True)


class Maker:
    """A certificate and its key, with any requested extensions."""

    def __init__(
        self,
        name: str,
        extensions: Sequence[Extension],
        issuer: "Maker | None" = None,
        *,
        begins: int = -1,
        ends: int = 1,
        skid: bool = True,
        akid: bool = True,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer or self
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begins))
            .not_valid_after(now + timedelta(days=ends))
        )
        if skid:
            public = self.key.public_key()
            extensions = [*extensions, (x509.SubjectKeyIdentifier.from_public_key(public), False)]
        if akid and issuer is not None:
            public = signer.key.public_key()
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
            extensions = [*extensions, (identifier, False)]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority(name: str = "own authority", **options: Any) -> Maker:
    return Maker(name, [CA, SIGNS], **options)


def server(issuer: Maker | None, *extensions: Extension, name: str = "h", **options: Any) -> Maker:
    named = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    return Maker(name, [(named, False), *extensions], issuer, **options)


def purpose(oid: x509.ObjectIdentifier) -> Extension:
    return x509.ExtendedKeyUsage([oid]), False


Case: TypeAlias = tuple[Maker, list[Maker]]
"""The trusted authority, and the chain that the server sends, its own certificate first."""


def _of(issuer: Maker, *extensions: Extension, **options: Any) -> Case:
    return issuer, [server(issuer, *extensions, **options)]


def _below(*, between: Sequence[Extension], sent: bool = True) -> Case:
    root = authority()
    middle = Maker("between", between, root)
    leaf = server(middle)
    return root, [leaf, middle] if sent else [leaf]


CASES: dict[str, tuple[Callable[[], Case], str, list[str]]] = {
    "a valid certificate": (lambda: _of(authority()), "", []),
    "expired": (lambda: _of(authority(), begins=-3, ends=-1), "has expired", ["renew it"]),
    "not yet valid": (lambda: _of(authority(), begins=1, ends=2), "not yet valid", ["clocks"]),
    "expired authority": (
        lambda: _of(authority(begins=-3, ends=-1)),
        "has expired",
        ["renew it, or set the clocks right"],
    ),
    "another name": (
        lambda: (root := authority(), [Maker("h", [_other_name()], root)]),
        "Hostname mismatch",
        ["connect by a name that the certificate has"],
    ),
    "no name": (
        lambda: (root := authority(), [Maker("h", [], root)]),
        "Hostname mismatch",
        ["subjectAltName=DNS:HOST"],
    ),
    "its own authority": (
        lambda: (authority("another"), [server(None)]),
        "self-signed certificate",
        [TRUST],
    ),
    "an unknown authority": (
        lambda: (authority("another"), [server(authority("unknown"))]),
        "unable to get local issuer certificate",
        [TRUST, "all certificates of its chain"],
    ),
    "an unknown authority in the chain": (
        lambda: (authority("another"), [server(root := authority("unknown")), root]),
        "self-signed certificate in certificate chain",
        [TRUST],
    ),
    "an incomplete chain": (
        lambda: _below(between=[CA, SIGNS], sent=False),
        "unable to get local issuer certificate",
        ["let the server send all certificates of its chain"],
    ),
    "a recreated authority": (
        lambda: (authority(), [server(authority())]),
        "unable to get local issuer certificate",
        [TRUST],
    ),
    "for clients": (
        lambda: _of(authority(), purpose(ExtendedKeyUsageOID.CLIENT_AUTH)),
        "unsuitable certificate purpose",
        ["extendedKeyUsage=serverAuth"],
    ),
    "no authority": (
        lambda: _below(between=[(x509.BasicConstraints(ca=False, path_length=None), True)]),
        "invalid CA certificate",
        [AUTHORITY, KEY_USAGE],
    ),
    "an authority that may not sign": (
        lambda: _of(Maker("own", [CA, usage(signs=False)])),
        "",
        [AUTHORITY, KEY_USAGE],
    ),
    "no key usage": (
        lambda: _of(Maker("own", [CA])),
        "CA cert does not include key usage extension",
        [AUTHORITY, KEY_USAGE],
    ),
    "an unknown extension": (
        lambda: _of(authority(), (x509.UnrecognizedExtension(OWN, b"\x05\x00"), True)),
        "unhandled critical extension",
        ["issue it without critical extensions of your own"],
    ),
    "constraints not critical": (
        lambda: _of(Maker("own", [(CA[0], False), SIGNS])),
        "Basic Constraints of CA cert not marked critical",
        ["basicConstraints=critical,CA:TRUE"],
    ),
    "no subject key identifier": (
        lambda: _of(authority(skid=False), akid=False),
        "Missing",
        ["subjectKeyIdentifier=hash"],
    ),
    "no authority key identifier": (
        lambda: _of(authority(), akid=False),
        "Missing Authority Key Identifier",
        [SERVER],
    ),
}


def _other_name() -> Extension:
    return x509.SubjectAlternativeName([x509.DNSName("elsewhere.example")]), False


def _sent(chain: Sequence[Maker]) -> bytes:
    return b"".join(each.pem for each in chain)


def refusal(case: Case, directory: Path) -> ssl.SSLCertVerificationError | None:
    """Shake hands in memory, as Python 3.13 does; return the client's error."""
    trusted, chain = case
    shown = directory / "chain.pem"
    shown.write_bytes(_sent(chain) + chain[0].key_pem)
    behind = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    behind.load_cert_chain(shown)
    front = ssl.create_default_context(cadata=trusted.pem.decode())
    front.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = front.wrap_bio(down, up, server_hostname="localhost")
    peer = behind.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, peer):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error
    return None


@pytest.mark.parametrize("name", CASES)
def test_refused_certificate_gets_advice(name: str, tmp_path: Path) -> None:
    make, fault, advice = CASES[name]
    error = refusal(make(), tmp_path)
    if not advice:
        assert error is None
        return
    assert error is not None
    explanation = tls.explain(error, TRUST)
    assert explanation.startswith("certificate refused: ")
    assert fault.lower() in explanation.lower()
    assert "\n" not in explanation
    for part in advice:
        assert part in explanation


def test_rare_refusal_does_not_blame_trust() -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = 53, "unsupported or invalid name syntax"
    explanation = tls.explain(error, TRUST)
    assert explanation.endswith("name syntax; let its authority issue one without this fault")


def test_advised_openssl_commands_work(tmp_path: Path) -> None:
    """The commands of the advice create certificates that are accepted."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    error = refusal(CASES["no key usage"][0](), tmp_path)
    assert error is not None
    advice = tls.explain(error, TRUST).partition("with: ")[2].partition("; then")[0]
    subprocess.run(shlex.split(advice), cwd=tmp_path, check=True, capture_output=True)
    error = refusal(CASES["no authority key identifier"][0](), tmp_path)
    assert error is not None
    extensions = tls.explain(error, TRUST).partition("-extfile): ")[2].replace("HOST", "localhost")
    (tmp_path / "extensions").write_text("\n".join(extensions.split(", ")))
    for command in (
        "openssl req -new -newkey rsa:2048 -nodes -keyout s.key -subj /CN=s -out s.csr",
        "openssl x509 -req -in s.csr -CA ca.crt -CAkey ca.key -out s.crt -extfile extensions",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    issued = Made((tmp_path / "s.crt").read_bytes(), (tmp_path / "s.key").read_bytes())
    root = Made((tmp_path / "ca.crt").read_bytes(), b"")
    assert refusal((root, [issued]), tmp_path) is None  # type: ignore[arg-type, list-item]


class Made:
    """A certificate created by another program."""

    def __init__(self, pem: bytes, key_pem: bytes) -> None:
        self.pem = pem
        self.key_pem = key_pem


@pytest.fixture
def no_key_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Certificate]:
    """A trusted authority's certificate without key usage, where Python is strict."""
    trusted, chain = CASES["no key usage"][0]()
    made = Certificate(tmp_path / "s.pem", tmp_path / "s.key")
    made.chain.write_bytes(_sent(chain))
    made.key.write_bytes(chain[0].key_pem)
    (tmp_path / "ca.pem").write_bytes(trusted.pem)
    make = ssl.create_default_context

    def strict(*args: Any, **options: Any) -> ssl.SSLContext:
        context = make(*args, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    _tls.cache_clear()
    yield made
    _tls.cache_clear()


async def test_redis_error_for_authority_without_key_usage(
    no_key_usage: Certificate, redis_7_binary: Path, tmp_path: Path
) -> None:
    class Named:
        file = tmp_path / "ca.pem"

    async with EmbeddedRedis.start(binary=redis_7_binary) as server:
        port = await add_tls(server, Named(), no_key_usage)  # type: ignore[arg-type]
        async with connect(f"rediss://localhost:{port}?ssl_ca_certs={Named.file}") as redis:
            with pytest.raises(exceptions.ConnectionError) as refused:
                await redis.ping()
    assert "CA cert does not include key usage extension; make the auth" in str(refused.value)
    assert KEY_USAGE in str(refused.value)


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_provider_error_for_authority_without_key_usage(
    no_key_usage: Certificate, *, use_uvloop: bool
) -> None:
    async def connect_to_it() -> str:
        async with behind_tls("ws://127.0.0.1:1/stt", no_key_usage) as url:
            settings = StreamSettings("ink-2", AudioEncoding.PCM_S16LE, 16_000)
            with pytest.raises(SttTransientError) as refused:
                await CARTESIA.open(Endpoint(url, "2026-03-01", "k"), settings)
        return str(refused.value)

    explanation = anyio.run(connect_to_it, backend_options={"use_uvloop": use_uvloop})
    assert "CA cert does not include key usage extension; make the authority's" in explanation
    assert KEY_USAGE in explanation


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("WRONG_VERSION_NUMBER", "does not speak TLS on this port"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "asks for a client certificate"),
    ],
)
def test_failed_handshake_gets_advice(reason: str, advice: str) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}] said by OpenSSL")
    error.reason = reason
    assert advice in tls.explain(error, TRUST)
    error.reason = "NOT_KNOWN"
    assert tls.explain(error, TRUST) == str(error)
