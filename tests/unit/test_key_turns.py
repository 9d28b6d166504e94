"""One cryptsetup at a time."""

from __future__ import annotations

import pytest

from csi_local.host import crypt
from csi_local.model.errors import Busy
from csi_local.model.secret import Secret


def test_who_hangs_does_not_hold_up_all_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crypt, "_TIMEOUT_S", 0.01)
    with crypt._opening, pytest.raises(Busy, match="waited"):
        crypt.opens("/pool/disk.img", Secret(b"key"))
    assert crypt._opening.acquire(blocking=False), "who did not have its turn has let nobody in"
    crypt._opening.release()
