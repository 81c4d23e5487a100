"""TLS: options of Redis URLs, and advice for TLS errors.

The trusted authorities are the system's, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
`ssl_ca_certs` adds to them.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Final

URL_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"}
    | {"ssl_ciphers", "ssl_keyfile", "ssl_min_version"}
)
"""TLS options that a Redis URL may have."""

_AUTHORITY: Final = (
    "make the authority's certificate again, with: openssl req -x509 -newkey rsa:2048 -nodes "
    '-keyout ca.key -out ca.crt -days 3650 -subj "/CN=my authority" '
    '-addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"; '
    "then issue the server's certificate with it"
)
_EXTENSIONS: Final = (
    "with these extensions (openssl x509 -req -extfile): subjectAltName=DNS:HOST, "
    "extendedKeyUsage=serverAuth, subjectKeyIdentifier=hash, authorityKeyIdentifier=keyid"
)
_ADVICE: Final = {
    # CERT_NOT_YET_VALID, CERT_HAS_EXPIRED, ERROR_IN_CERT_NOT_BEFORE_FIELD, ..._NOT_AFTER_FIELD
    (9, 10, 13, 14): "renew it, or set the clocks right",
    # CERT_SIGNATURE_FAILURE, AKID_SKID_MISMATCH, AKID_ISSUER_SERIAL_MISMATCH
    (7, 30, 31): "another authority of that name signed it: name the file of the one that did",
    # CERT_REVOKED
    (23,): "it was revoked: renew it",
    # NO_ISSUER_PUBLIC_KEY (before OpenSSL 3.0 INVALID_CA), KEYUSAGE_NO_CERTSIGN, INVALID_CA,
    # PATHLEN_WITHOUT_KU_KEY_CERT_SIGN, ISSUER_NAME_EMPTY, MISSING_SUBJECT_KEY_IDENTIFIER,
    # CA_BCONS_NOT_CRITICAL, CA_CERT_MISSING_KEY_USAGE
    (24, 32, 79, 81, 83, 86, 89, 92): _AUTHORITY,
    # INVALID_PURPOSE, PATHLEN_INVALID_FOR_NON_CA, KU_KEY_CERT_SIGN_INVALID_FOR_NON_CA,
    # MISSING_AUTHORITY_KEY_IDENTIFIER, EMPTY_SUBJECT_ALT_NAME, EMPTY_SUBJECT_SAN_NOT_CRITICAL,
    # AUTHORITY_KEY_IDENTIFIER_CRITICAL
    (26, 80, 82, 85, 87, 88, 90): f"issue the server's certificate again, {_EXTENSIONS}",
    # SUBJECT_NAME_EMPTY, SUBJECT_KEY_IDENTIFIER_CRITICAL, EXTENSIONS_REQUIRE_VERSION_3
    (84, 91, 93): f"{_AUTHORITY}, {_EXTENSIONS}",
    # PATH_LENGTH_EXCEEDED
    (25,): "one of its authorities may not have others below it: issue it with the one above",
    # UNHANDLED_CRITICAL_EXTENSION
    (34,): "issue it without critical extensions of your own",
    # PERMITTED_VIOLATION, EXCLUDED_VIOLATION
    (47, 48): "its authority may not sign for this name: issue it with another",
    # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
    (62, 64): "connect by a name that the certificate has, or issue it with "
    "subjectAltName=DNS:HOST",
    # EE_KEY_TOO_SMALL, CA_KEY_TOO_SMALL, EC_KEY_EXPLICIT_PARAMS
    (66, 67, 94): "issue it with a key of 2048 bits or more (RSA), or prime256v1 (EC)",
    # CA_MD_TOO_WEAK
    (68,): "issue it with a signature of SHA-256 or better",
}
"""Advice by OpenSSL's X509_V_ERR_*, for which Python has no names. From 79 on, most occur only in
Python 3.13 and later, which set VERIFY_X509_STRICT."""
_UNTRUSTED: Final = {2, 18, 19, 20, 21, 27, 28}
"""Codes of a certificate whose authority is unknown or not trusted."""
_NO_CHAIN: Final = {2, 20, 21}
"""Codes that also occur if the server omits the intermediate certificates."""

_HANDSHAKE: Final = {
    "WRONG_VERSION_NUMBER": "the server does not speak TLS on this port",
    "RECORD_LAYER_FAILURE": "the server does not speak TLS on this port",
    "HTTP_REQUEST": "the server does not speak TLS on this port",
    "UNSUPPORTED_PROTOCOL": "let the server speak TLS 1.2 or 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "let both sides speak a common version of TLS",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "both sides have no cipher in common, or the server asks "
    "for a client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server asks for a client certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the server does not know the authority of the client certificate",
}
"""Advice by OpenSSL's reason for a handshake that failed."""


def check_options(options: Mapping[str, str]) -> None:
    """Raise ValueError for options that no connection can use.

    The error names the option and never contains its value.
    """
    if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    if options.get("ssl_min_version", "771") not in {"771", "772"}:
        raise ValueError("ssl_min_version must be 771 (TLS 1.2) or 772 (TLS 1.3)")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile requires ssl_certfile")
    context = ssl.create_default_context()
    for option, use in (
        ("ssl_ca_certs", lambda file: context.load_verify_locations(cafile=file)),
        ("ssl_ca_path", os.listdir),
        # With an empty password: otherwise OpenSSL would prompt for one on the terminal.
        (
            "ssl_certfile",
            lambda file: context.load_cert_chain(file, options.get("ssl_keyfile"), ""),
        ),
        ("ssl_ciphers", context.set_ciphers),
    ):
        if option in options:
            try:
                use(options[option])
            except OSError as error:
                raise ValueError(f"{option}: {error.args[-1]}") from None


def explain(error: ssl.SSLError, trust: str) -> str:
    """Describe a TLS error, with advice if a certificate caused it.

    `trust` is the advice for an authority that is not trusted.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        advice = _HANDSHAKE.get(error.reason or "")
        return f"{error}; {advice}" if advice else str(error)
    reason = error.verify_message.rstrip(".")
    code = error.verify_code
    known = (advice for codes, advice in _ADVICE.items() if code in codes)
    advice = next(known, "let its authority issue one without this fault")
    if code in _UNTRUSTED:
        advice = trust
    if code in _NO_CHAIN:
        advice += "; if that is done, let the server send all certificates of its chain"
    return f"certificate refused: {reason}; {advice}"
