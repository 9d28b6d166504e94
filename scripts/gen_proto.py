"""Generate csi_local/_proto from proto/, or with --check tell whether what is committed is up to date."""

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("csi_local/_proto")
SOURCES = ("csi.proto", "pluginregistration.proto")
INIT = '"""Generated from proto/ by scripts/gen_proto.py; imported by csi_local.rpc only."""\n'


def generate(out: Path) -> None:
    """Write the package's files under `out`.

    The include path gives proto/ the virtual name of the package, so that the generated imports are
    `csi_local._proto.…` without any rewriting. Servicer stubs are concrete for the type checker: an RPC that
    this driver does not serve is simply not written, and gRPC answers UNIMPLEMENTED.
    """
    plugins = Path(sys.executable).parent
    arguments = (
        "protoc",
        f"--proto_path={PACKAGE}={ROOT / 'proto'}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin={plugins / 'protoc-gen-mypy'}",
        f"--plugin={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet,only_sync,generate_concrete_servicer_stubs:{out}",
        *(str(PACKAGE / name) for name in SOURCES),
    )
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")
    (out / PACKAGE / "__init__.py").write_text(INIT)


def stale_files(fresh: Path, committed: Path) -> list[str]:
    """Names of the files that differ between the two directories or exist in one of them only."""
    names = {path.name for directory in (fresh, committed) for path in directory.glob("*.py*")}
    _, mismatch, errors = filecmp.cmpfiles(fresh, committed, sorted(names), shallow=False)
    return sorted(mismatch + errors)


def main() -> None:
    """Generate in place, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything is out of date")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = stale_files(Path(scratch) / PACKAGE, ROOT / PACKAGE)
    if stale:
        sys.exit(f"out of date in {PACKAGE}: {', '.join(stale)}; run `make proto`")


if __name__ == "__main__":
    main()
