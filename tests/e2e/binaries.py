"""The programs of a Kubernetes cluster, built from their Go modules.

    binaries.py cluster …     build what is missing of these sets, and print the folder that has them

Nothing here is downloaded as a binary, so the only thing trusted is Go's module proxy and its checksum database.
The folder is named after a digest of all versions below: another clone on the same machine finds it, a change of
a version makes another one. A program appears under its name only when it is whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LINKER_FLAGS = "-s -w"
"""No symbol tables: half the size, and a quarter less to read at every start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """Programs of one Go module. Its own `replace` lines hold only in its own repository, so they are repeated."""

    module: str
    version: str
    programs: Mapping[str, str]
    """Name to package, relative to the module."""
    staging: str = ""
    """The version under which what it replaces by a folder `staging` of its own is to be had."""
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Go variables to set, as its own build does."""
    tests: bool = False
    """The packages are test suites: built by `go test -c`."""


_VERSION = {"gitVersion": "v1.37.2", "gitMajor": "1", "gitMinor": "37"}
"""What the API server says of itself, which charts and clients compare with what they need."""

KUBERNETES = Tool(
    module="k8s.io/kubernetes",
    version="v1.37.2",
    programs={
        name: f"cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
    },
    staging="v0.37.2",
    variables={f"k8s.io/component-base/version.{name}": text for name, text in _VERSION.items()},
)
SNAPSHOTTER = Tool(
    module="github.com/kubernetes-csi/external-snapshotter/v8",
    version="v8.3.0",
    programs={name: f"cmd/{name}" for name in ("csi-snapshotter", "snapshot-controller")},
)

SETS: Mapping[str, tuple[Tool, ...]] = {
    "cluster": (
        KUBERNETES,
        Tool(module="go.etcd.io/etcd/server/v3", version="v3.6.16", programs={"etcd": "."}),
        Tool(
            module="github.com/kubernetes-csi/external-provisioner/v5",
            version="v5.1.0",
            programs={"csi-provisioner": "cmd/csi-provisioner"},
        ),
        Tool(
            module="github.com/kubernetes-csi/external-resizer",
            version="v1.12.0",
            programs={"csi-resizer": "cmd/csi-resizer"},
        ),
    ),
    "snapshots": (SNAPSHOTTER,),
    "external": (
        dataclasses.replace(KUBERNETES, programs={"e2e.test": "test/e2e"}, tests=True),
        dataclasses.replace(KUBERNETES, programs={"agnhost": "test/images/agnhost"}),
        Tool(module="github.com/onsi/ginkgo/v2", version="v2.32.0", programs={"ginkgo": "ginkgo"}),
    ),
}
"""What each purpose needs: `cluster` for the scenarios, `external` for the suite that Kubernetes judges drivers by."""

SNAPSHOT_CRDS = ("github.com/kubernetes-csi/external-snapshotter/client/v8", "v8.2.0")


def folder() -> Path:
    """Where the programs of these versions are kept, outside the checkout."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = json.dumps([LINKER_FLAGS, SETS, SNAPSHOT_CRDS], default=dataclasses.asdict, sort_keys=True)
    return cache / "csi-local" / f"e2e-{hashlib.sha256(versions.encode()).hexdigest()[:12]}" / "bin"


def build(sets: list[str]) -> Path:
    """Build what is missing of `sets`.

    Raises CalledProcessError when Go does not build a program: its own messages are on stderr.
    """
    bin_folder = folder()
    bin_folder.mkdir(parents=True, exist_ok=True)
    tools = [tool for name in sets for tool in SETS[name]]
    if all((bin_folder / program).exists() for tool in tools for program in tool.programs):
        return bin_folder
    with _alone(bin_folder), tempfile.TemporaryDirectory(prefix="tmp-", dir=bin_folder.parent) as work:
        for tool in tools:
            missing = {name: package for name, package in tool.programs.items() if not (bin_folder / name).exists()}
            if missing:
                start = time.monotonic()
                _build_tool(tool, missing, Path(work), bin_folder)
                print(f"built {', '.join(missing)} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return bin_folder


def _build_tool(tool: Tool, programs: Mapping[str, str], work: Path, bin_folder: Path) -> None:
    module = Path(tempfile.mkdtemp(dir=work))
    (module / "go.mod").write_text("module e2e\n")
    lines = ["module e2e", f"require {tool.module} {tool.version}", *_replaces(tool, module)]
    (module / "go.mod").write_text("\n".join(lines) + "\n")
    flags = " ".join([LINKER_FLAGS, *(f"-X {name}={text}" for name, text in tool.variables.items())])
    how = ("-trimpath", f"-ldflags={flags}")
    for name, package in programs.items():
        path = f"{tool.module}/{package}".removesuffix("/.")
        command = ("test", "-c") if tool.tests else ("build",)  # not `go install`, which asks for all versions
        _go(*command, "-mod=mod", *how, "-o", name, path, cwd=module)
        (module / name).rename(bin_folder / name)
    shutil.rmtree(module)


def _replaces(tool: Tool, module: Path) -> Iterator[str]:
    """Repeat the `replace` lines of a tool that name a released version."""
    about = json.loads(_go("mod", "download", "-json", f"{tool.module}@{tool.version}", cwd=module))
    for line in json.loads(_go("mod", "edit", "-json", about["GoMod"], cwd=module))["Replace"] or ():
        old, new = line["Old"]["Path"], line["New"]
        if new["Path"].startswith("./staging/"):
            yield f"replace {old} => {old} {tool.staging}"
        elif "Version" in new:
            yield f"replace {old} => {new['Path']} {new['Version']}"


def _go(*words: str, cwd: Path) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOBIN": str(cwd)}
    argv = [os.environ.get("GO", "go"), *words]
    done = subprocess.run(argv, cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def snapshot_crds() -> Path:
    """The folder with the custom resource definitions of snapshots, from the Go module cache."""
    module, version = SNAPSHOT_CRDS
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "go.mod").write_text("module e2e\n")
        answer = json.loads(_go("mod", "download", "-json", f"{module}@{version}", cwd=Path(work)))
    return Path(answer["Dir"]) / "config/crd"


@contextmanager
def _alone(bin_folder: Path) -> Iterator[None]:
    """Two clones that build at once would only slow each other down: the second one waits and finds all done."""
    with (bin_folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Build the sets that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    print(build(parser.parse_args().sets))


if __name__ == "__main__":
    main()
