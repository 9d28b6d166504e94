"""fio on a raw block volume that is encrypted, against dm-crypt made by hand over a bare loop device.

    tests/uml/run --only speed

`make bench` does that as well, and reads what is printed behind MARK.
Both lie on the same disk and are measured in alternating rounds; the ratio is what counts, since one processor that is
itself a process is slow at ciphers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import fio
from tests.driver import serving
from tests.observe import MIB
from tests.rules.kinds import LUKS_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 192 * MIB
HEADER = 16 * MIB
SETTINGS = fio.Settings(size=64 * MIB, seconds=1.0, rounds=int(os.environ.get("CSI_LOCAL_ROUNDS", "5")))
MARK = "speed: "
KEY = "correct horse"
NAME = "bare"
FORMAT = """luksFormat --batch-mode --type luks2 --pbkdf argon2id --pbkdf-memory 8192 --pbkdf-force-iterations 4
    --pbkdf-parallel 1 --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 --key-file=-"""


@contextmanager
def bare(folder: Path) -> Iterator[Path]:
    """Do by hand what the driver does."""
    with fio.image(folder, SIZE + HEADER) as image, fio.bare_loop(image) as loop:
        for words in (FORMAT.split(), ["open", "--key-file=-"]):
            name = [NAME] if words[0] == "open" else []
            _run("cryptsetup", *words, str(loop), *name)
        try:
            yield Path("/dev/mapper") / NAME
        finally:
            _run("cryptsetup", "close", NAME)


def _run(*argv: str) -> None:
    env = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(argv, input=KEY.encode(), check=True, env=env)


def main() -> int:
    """Measure, and print it as one line of JSON."""
    with serving("image:{root}/pool.img,size=1Gi") as driver:
        driver.secrets = {"encryptionKey": KEY}
        volume = LUKS_BLOCK.create(driver, size=SIZE)
        target = driver.attach(volume)
        with bare(driver.pool_roots()[0]) as device:
            targets = [fio.Target(name="dm-crypt", path=device), fio.Target(name="volume", path=target)]
            results = fio.compare(targets, SETTINGS)
        driver.release()
    print(f"{MARK}{json.dumps(results)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
