"""TLS: what may be asked for in a Redis URL, and what goes wrong in words that say what to do.

Trusted are the system's authorities, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`; `ssl_ca_certs`
adds to them.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Final

OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"}
    | {"ssl_ciphers", "ssl_keyfile", "ssl_min_version"}
)
"""Of a Redis URL."""

_ANOTHER_NAME: Final = "connect by a name that the certificate has"
_ANOTHER_TIME: Final = "renew it, or set the clocks right"
# By OpenSSL's X509_V_ERR_*, of which Python knows no names.
_ADVICE: Final = {9: _ANOTHER_TIME, 10: _ANOTHER_TIME, 62: _ANOTHER_NAME, 64: _ANOTHER_NAME}


def check_options(options: Mapping[str, str]) -> None:
    """Refuse options that no connection could be made with.

    Raises ValueError, which names the option and never holds its value.
    """
    if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    if options.get("ssl_min_version", "771") not in {"771", "772"}:
        raise ValueError("ssl_min_version must be 771 (TLS 1.2) or 772 (TLS 1.3)")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("ssl_keyfile wants an ssl_certfile")
    context = ssl.create_default_context()
    for option, use in (
        ("ssl_ca_certs", lambda file: context.load_verify_locations(cafile=file)),
        ("ssl_ca_path", os.listdir),
        # With an empty password, for OpenSSL asks whoever gives none for it, on the terminal.
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


def in_words(error: ssl.SSLError, trust: str) -> str:
    """Say what is wrong with TLS and, of a certificate, what to do.

    `trust` says how an authority of one's own is made known.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        return str(error)
    fault = error.verify_message.rstrip(".")
    return f"certificate refused: {fault}; {_ADVICE.get(error.verify_code, trust)}"
