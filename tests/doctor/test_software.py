"""What `cad doctor` says of packages that are missing or cannot be imported."""

from pathlib import Path

import pytest
import torch

from cad.doctor import software
from cad.doctor.findings import MISSING, OK, UNKNOWN
from tests.doctor.conftest import only


def test_software_that_is_missing_or_spoilt_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = software.examine_software()
    assert {finding.state for finding in found} <= {OK, UNKNOWN}
    assert {"python", "cad", *software.SHOWN} <= {finding.name for finding in found}
    assert only(found, "torch").says == torch.__version__
    monkeypatch.setattr(software, "SHOWN", ("no-such-package",))
    lost = only(software.examine_software(), "no-such-package")
    assert (lost.state, lost.needed) == (MISSING, True)
    assert "make install" in lost.remedy
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spoilt.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    assert software.import_fault("spoilt") == "RuntimeError: operator torchvision::nms does not exist"
    assert software.import_fault("json") == ""
