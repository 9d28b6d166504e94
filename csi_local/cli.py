"""The command line: it parses, calls, and turns errors into one line and an exit status."""

import argparse
import sys
from collections.abc import Sequence

from csi_local import __version__, config
from csi_local.model.errors import DriverError, InvalidArgument
from csi_local.model.parameters import parse_parameters
from csi_local.model.quantity import parse_bytes
from csi_local.model.volume import AccessMode, BlockAccess, Capability, CapacityRange, MountAccess
from csi_local.plan.request import VolumeRequest

EXIT_ERROR, EXIT_USAGE = 1, 2
_DEMO_DIR = "/var/tmp"  # noqa: S108 (a temporary directory of its own is made there)
_NOT_SETTINGS = ("run", "command", "output", "size", "param", "block", "dir", "repair")

_POOL_HELP = """pools:
  --pool NAME=KIND:ARG[,key=value…], as often as there are pools:
    path:/dir                    a directory on an existing filesystem
    image:/file,size=20Gi        a file that is made, formatted and mounted; also fs=xfs|btrfs|ext4,
                                 allocation=thick|thin
    device:/dev/disk/by-id/…     a disk that holds nothing yet; also fs=xfs|btrfs|ext4
  and for each kind: media=ssd|hdd|nvme (else read from the disk), reserve=5% or 10Gi (kept free; 2%),
  overcommit=1.5 (how often the room may be promised to thin volumes; 1),
  mounted=yes (path: something must be mounted there; no)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    arguments = _parser().parse_args(argv)
    flags = {key: value for key, value in vars(arguments).items() if key not in _NOT_SETTINGS}
    try:
        return int(arguments.run(arguments, flags) or 0)
    except InvalidArgument as error:
        print(f"csi-local: {error}", file=sys.stderr)
        return EXIT_USAGE
    except DriverError as error:
        print(f"csi-local: {error}", file=sys.stderr)
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="csi-local",
        description="Kubernetes volumes from the disks that a node already has (CSI driver).",
    )
    parser.add_argument("--version", action="version", version=f"csi-local {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = _command(commands, "serve", "serve CSI on a unix socket and do all volume work itself", _serve)
    serve.add_argument("--endpoint", help=f"where to listen ({config.DEFAULT_ENDPOINT})")
    serve.add_argument("--node-id", help="this node's name (the host's name)")
    serve.add_argument("--max-volumes", help=f"volumes staged at once; 0: no limit ({config.DEFAULT_MAX_VOLUMES})")
    serve.add_argument("--get-snapshot", choices=("yes", "no"), help="offer GetSnapshot, an alpha feature of CSI (no)")
    serve.add_argument("--log-level", choices=config.LOG_LEVELS, help="how much to log on stderr (info)")
    serve.add_argument("--log-format", choices=config.LOG_FORMATS, help="text or JSON lines (text)")
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
    demo = commands.add_parser("demo", help="see volumes through their whole life, on this machine (root)")
    demo.add_argument("--dir", default=_DEMO_DIR, help="where to make a temporary pool (/var/tmp)")
    demo.set_defaults(run=_demo)
    return parser


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


def _serve(_arguments: argparse.Namespace, flags: dict[str, object]) -> int:
    from csi_local import app  # noqa: PLC0415 (gRPC is loaded only to serve)

    app.serve(config.load(flags))
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


def _demo(arguments: argparse.Namespace, _flags: dict[str, object]) -> int:
    from csi_local import demo  # noqa: PLC0415

    return demo.run(arguments.dir)
