"""Render deploy/kustomize/base from the chart, or with --check tell whether what is committed is up to date."""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELM = ROOT / ".tools/bin/helm"
CHART = ROOT / "deploy/chart/csi-local"
RENDERED = ROOT / "deploy/kustomize/base/csi-local.yaml"
KUBERNETES = "1.37.0"
"""What the API server is taken to be: one that has all that the chart can use."""

_HELMS_OWN = ("# Source:", "app.kubernetes.io/managed-by:", "app.kubernetes.io/instance:", "helm.sh/chart:")
"""Beginnings of lines that say that Helm has installed it, which is not so."""


def template(*arguments: str) -> str:
    """What the chart makes of its values and these arguments of ``helm template``, its custom resources left out.

    Raises:
        CalledProcessError: it refuses; its stderr says why.
    """
    if not HELM.exists():
        sys.exit(f"{HELM.relative_to(ROOT)} is missing; run: make tools")
    argv: list[str | Path] = [
        HELM,
        "template",
        "csi-local",
        CHART,
        "--namespace",
        "csi-local",
        "--kube-version",
        KUBERNETES,
        *arguments,
    ]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def render() -> str:
    """The content of the rendered file: the chart with the default values, and its custom resources."""
    lines = template("--include-crds").splitlines()
    kept = [line for line in lines if not line.strip().startswith(_HELMS_OWN)]
    return "\n".join(["# Rendered from deploy/chart/csi-local by `make manifests`.", *kept]) + "\n"


def main() -> None:
    """Render in place, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is out of date")
    if not parser.parse_args().check:
        RENDERED.write_text(render())
    elif RENDERED.read_text() != render():
        sys.exit(f"{RENDERED.relative_to(ROOT)} is out of date; run: make manifests")


if __name__ == "__main__":
    main()
