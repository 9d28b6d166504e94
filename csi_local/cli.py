"""The command line: it parses, calls, and turns errors into one line and an exit status."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from csi_local import __version__, config
from csi_local.model.errors import DriverError, InvalidArgument
from csi_local.model.parameters import parse_parameters
from csi_local.model.quantity import parse_bytes
from csi_local.model.text import on_one_line
from csi_local.model.volume import AccessMode, BlockAccess, Capability, CapacityRange, MountAccess
from csi_local.plan.request import VolumeRequest

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_LONGEST = 2000
"""Characters of an error: it may quote what somebody gave."""
_ACCESS_MODES = ("ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany")
_DEMO_DIR = "/var/tmp"  # noqa: S108 (a temporary directory of its own is made there)
_OF_COMMANDS = """run command output size param block dir repair path name namespace claim storage_class access_mode
    read_only record_in volume old_key_file new_key_file"""
_NOT_SETTINGS = frozenset(_OF_COMMANDS.split())

_POOL_HELP = """pools:
  --pool NAME=KIND:ARG[,key=value…], as often as there are pools:
    path:/dir                    a directory on an existing filesystem
    image:/file,size=20Gi        a file that is made, formatted and mounted; also fs=xfs|btrfs|ext4,
                                 allocation=thick|thin
    device:/dev/disk/by-id/…     a disk that holds nothing yet; also fs=xfs|btrfs|ext4
  and for each kind: media=ssd|hdd|nvme (else read from the disk), reserve=5% or 10Gi (kept free; 2%),
  overcommit=1.5 (how often the room may be promised to thin volumes; 1),
  ephemeral=10% or 20Gi (what inline ephemeral volumes may have of it; 100%),
  mounted=yes (path: something must be mounted there; no)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    arguments = _parser().parse_args(argv)
    flags = {key: value for key, value in vars(arguments).items() if key not in _NOT_SETTINGS}
    try:
        status = int(arguments.run(arguments, flags) or 0)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except InvalidArgument as error:
        return _failed(str(error), EXIT_USAGE)
    except (DriverError, OSError) as error:
        return _failed(str(error), EXIT_ERROR)
    return status


def _failed(why: str, status: int) -> int:
    """Say why, on one line that a terminal bears; what somebody else wrote is in it."""
    first, *rest = why.split("\n")  # the demo's end of a log
    shown = first if len(first) <= _LONGEST else f"{first[:_LONGEST]}…"
    with suppress(OSError):
        print("\n".join(map(on_one_line, (f"csi-local: {shown}", *rest))), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="csi-local",
        description="Kubernetes volumes from the disks that a node already has (CSI driver).",
    )
    parser.add_argument("--version", action="version", version=f"csi-local {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = _command(commands, "serve", "serve CSI on a unix socket and do all volume work itself", _serve)
    serve.add_argument("--node-id", help="this node's name (the host's name)")
    node = _command(commands, "node", "serve a Kubernetes node's kubelet, and do what the controller asks of it", _node)
    node.add_argument("--node-id", help="the Kubernetes node's name ($NODE_NAME)")
    node.add_argument(
        "--kubelet-dir", metavar="DIR", help=f"the kubelet's directory, here and there ({config.DEFAULT_KUBELET_DIR})"
    )
    node.add_argument(
        "--registration", choices=("yes", "no"), help="register with the kubelet; no: a sidecar does it (yes)"
    )
    _in_kubernetes(node)
    controller = commands.add_parser(
        "controller",
        help="serve the sidecars of a Kubernetes cluster: volumes of all its nodes",
        description="Serve the sidecars of a Kubernetes cluster: volumes of all its nodes, made by their agents.",
    )
    controller.set_defaults(run=_controller)
    _in_kubernetes(controller)
    _serving(controller)
    for server in (serve, controller):
        server.add_argument(
            "--get-snapshot", choices=("yes", "no"), help="offer GetSnapshot, an alpha feature of CSI (no)"
        )
    for server in (serve, node):
        _keys(server)
        server.add_argument("--max-volumes", help=f"volumes staged at once; 0: no limit ({config.DEFAULT_MAX_VOLUMES})")
        _serving(server)
    pools = _command(commands, "pools", "show each pool, its room and what it can do", _pools)
    volumes = _command(commands, "volumes", "show each volume and where it is mounted", _volumes)
    snapshots = _command(commands, "snapshots", "show each snapshot, of what and how large", _snapshots)
    explain = _command(commands, "explain", "show for a request why each pool is taken or passed over", _explain)
    explain.add_argument("--size", default="1Gi", help="how large (1Gi)")
    explain.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a StorageClass parameter")
    explain.add_argument("--block", action="store_true", help="a raw block device")
    doctor = _command(
        commands,
        "doctor",
        "show what this node and its pools have, lack, and have wrong with them, and the fix",
        _doctor,
    )
    doctor.add_argument(
        "--repair", action="store_true", help="mend in the pools what is safe to mend; no driver may run"
    )
    for shown in (pools, volumes, snapshots, explain, doctor):
        shown.add_argument(
            "--output", choices=("table", "json"), default="table", help="for people or programs (table)"
        )
    _adopt_parser(commands)
    rotate = _command(
        commands, "rotate-key", "let another key open an encrypted volume, and the old one no more", _rotate
    )
    rotate.add_argument("volume", metavar="VOLUME", help="its id; pods may go on using it")
    rotate.add_argument("--old-key-file", required=True, metavar="FILE", help="holds the key that it has")
    rotate.add_argument("--new-key-file", required=True, metavar="FILE", help="holds the key that it is to have")
    demo = commands.add_parser("demo", help="see volumes through their whole life, on this machine (root)")
    demo.add_argument("--dir", default=_DEMO_DIR, help="where to make a temporary pool (/var/tmp)")
    demo.set_defaults(run=_demo)
    return parser


def _adopt_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "let a directory that exists be a volume where it is, and print its PersistentVolume and claim"
    adopt = _command(commands, "adopt", text, _adopt)
    adopt.add_argument("path", metavar="PATH", help="the directory; nothing in it is touched")
    adopt.add_argument("--name", default="", help="of the volume (one made from the path)")
    adopt.add_argument("--size", help="what to say that it has; nothing enforces it (its filesystem's size)")
    adopt.add_argument("--claim", default="", metavar="NAME", help="of the claim (the volume's)")
    adopt.add_argument("--namespace", default="default", help="of the claim (default)")
    adopt.add_argument("--storage-class", default="", metavar="NAME", help="of volume and claim (none)")
    adopt.add_argument("--access-mode", choices=_ACCESS_MODES, default=_ACCESS_MODES[0], help="(ReadWriteOnce)")
    adopt.add_argument("--read-only", action="store_true", help="no pod may write")
    adopt.add_argument("--record-in", default="", metavar="POOL", help="the pool that is to have the record")
    adopt.add_argument("--node-id", help="this node's name (the host's name)")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, run: object
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=_POOL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pool", action="append", metavar="NAME=KIND:ARG[,…]", help="a pool; see below")
    parser.add_argument("--config", metavar="FILE", help=f"YAML with the same content ({config.DEFAULT_FILE})")
    parser.add_argument("--run-dir", metavar="DIR", help=f"where pools are mounted ({config.DEFAULT_RUN_DIR})")
    parser.set_defaults(run=run)
    return parser


def _keys(parser: argparse.ArgumentParser) -> None:
    """Where keys of encrypted volumes are had from."""
    parser.add_argument("--key-dir", metavar="DIR", help=f"key files, for keyProvider: file ({config.DEFAULT_KEY_DIR})")
    parser.add_argument("--key-program", metavar="PATH", help="a program that prints keys, for keyProvider: exec")


def _serving(parser: argparse.ArgumentParser) -> None:
    """What every program that serves can be told."""
    parser.add_argument("--endpoint", metavar="unix:///PATH", help="where to listen")
    parser.add_argument(
        "--http-address", metavar="HOST:PORT", help="where to serve /healthz, /readyz and /metrics; '': nowhere"
    )
    parser.add_argument("--log-level", choices=config.LOG_LEVELS, help="how much to log on stderr (info)")
    parser.add_argument("--log-format", choices=config.LOG_FORMATS, help="text or JSON lines (text)")


def _in_kubernetes(parser: argparse.ArgumentParser) -> None:
    """What every part of a cluster can be told."""
    parser.add_argument("--namespace", help=f"where the driver's Leases are ($NAMESPACE, {config.DEFAULT_NAMESPACE})")
    parser.add_argument("--kubeconfig", metavar="FILE", help="how to reach the Kubernetes API (as a pod does)")


def _serve(_arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import app  # noqa: PLC0415 (gRPC is loaded only to serve)

    app.serve(config.load(flags))
    return 0


def _node(_arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import app  # noqa: PLC0415 (likewise)

    app.node(config.load(flags, config.Role.NODE))
    return 0


def _controller(_arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import app  # noqa: PLC0415 (likewise)

    app.controller(config.load(flags, config.Role.CONTROLLER))
    return 0


def _pools(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import show  # noqa: PLC0415

    return show.pools(config.load(flags), arguments.output)


def _volumes(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import show  # noqa: PLC0415

    return show.volumes(config.load(flags), arguments.output)


def _snapshots(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import show  # noqa: PLC0415

    return show.snapshots(config.load(flags), arguments.output)


def _explain(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import show  # noqa: PLC0415

    parameters: dict[str, str] = {}
    for text in arguments.param:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgument(f"--param {text!r}: write NAME=VALUE")
        parameters[name] = value
    access = BlockAccess() if arguments.block else MountAccess()
    request = VolumeRequest(
        name="explain",
        capacity=CapacityRange(required=parse_bytes(arguments.size)),
        capabilities=(Capability(access=access, mode=AccessMode.SINGLE_NODE_WRITER),),
        parameters=parse_parameters(parameters),
    )
    return show.explain(config.load(flags), request, arguments.output)


def _doctor(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import doctor  # noqa: PLC0415

    if not config.names_pools(flags):
        if arguments.repair:
            raise InvalidArgument("--repair mends pools: say which, with --pool or --config")
        return doctor.doctor(None, arguments.output)
    return doctor.doctor(config.load(flags), arguments.output, repair=arguments.repair)


def _adopt(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import adopt  # noqa: PLC0415

    claim = adopt.Claim(
        name=arguments.claim,
        namespace=arguments.namespace,
        storage_class=arguments.storage_class,
        access_mode=arguments.access_mode,
        read_only=arguments.read_only,
    )
    if not arguments.path:
        raise InvalidArgument("PATH is empty: say which directory is to be a volume")
    path = str(Path(arguments.path).absolute())
    size = adopt.parse_size(arguments.size)
    pool = arguments.record_in
    return adopt.adopt(config.load(flags), adopt.request(path, arguments.name, size, pool, claim), claim)


def _rotate(arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import rotate  # noqa: PLC0415

    files = (arguments.old_key_file, arguments.new_key_file)
    return rotate.rotate(config.load(flags), arguments.volume, *files)


def _demo(arguments: argparse.Namespace, _flags: dict[str, object]) -> int:
    from csi_local.demo import story  # noqa: PLC0415

    return story.run(arguments.dir)
