"""Eight callers at once, each with a random generator of its own, and what they leave to be cleaned up."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, cast

import grpc

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code, Volume, capability
from tests.fuzz import oracle
from tests.fuzz.messages import LARGEST, ODD_IDS, Method, Mint, Subject, decoded, describe, fields, methods, texts
from tests.observe import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from tests.driver import Driver
    from tests.fuzz.arena import Arena

THREADS = 8
PATIENCE = 60.0
HURRY = 0.03
PROBE_SECONDS = 10.0
MOST_FINDINGS = 8
LONGEST_ID = 128
"""Bytes (CSI specification, "Size Limits")."""

LIFE = {
    "CreateVolume": 4,
    "NodeStageVolume": 5,
    "NodePublishVolume": 6,
    "NodeGetVolumeStats": 2,
    "ControllerExpandVolume": 2,
    "NodeExpandVolume": 2,
    "ValidateVolumeCapabilities": 1,
    "NodeUnpublishVolume": 3,
    "NodeUnstageVolume": 2,
    "DeleteVolume": 1,
}
"""How often a right request is which one, so that volumes get far. Every other request is any RPC there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A request that the driver should not have answered in that way."""

    method: Method
    data: bytes
    fault: str


@dataclass(slots=True)
class Caller:
    """One thread's connection and its dice."""

    random: Random
    mint: Mint
    channel: grpc.Channel
    answers: Counter[tuple[str, Code]] = field(default_factory=Counter)


def subjects(arena: Arena) -> list[Subject]:
    """Return the volumes that all callers know: every kind, and some with names that make bad file names."""
    directory, loopfile = {"backend": "directory"}, {"backend": "loopfile"}
    thin = {**loopfile, "allocation": "thin"}
    shared = csi.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER
    kinds = [
        ("fuzz-dir-0", directory, capability(group="4321"), 8),
        ("fuzz-dir-1", directory, capability(mode=shared), 8),
        ("fuzz/dir 2\n\u00e9", directory, capability(group="1234", flags=["noexec"]), 8),
        ("fuzz-ext4-0", loopfile, capability(fs="ext4", group="4321"), 32),
        ("fuzz-ext4-1", {**thin, "mkfsOptions": "-m 1"}, capability(fs="ext4", mode=shared), 32),
        ("..", loopfile, capability(fs="ext4", flags=["noatime"]), 32),
        ("fuzz-xfs", thin, capability(fs="xfs"), 320),
        ("fuzz-btrfs", thin, capability(fs="btrfs"), 256),
        ("fuzz-block-0", loopfile, capability(block=True), 8),
        ("fuzz-block-1", thin, capability(block=True, mode=shared), 8),
    ]
    return [
        Subject(
            id=name,
            name=name,
            staging=str(arena.stagings[number % len(arena.stagings)]),
            target=str(arena.target_paths[number % len(arena.target_paths)]),
            size=size * MIB,
            capability=how,
            parameters=parameters,
        )
        for number, (name, parameters, how, size) in enumerate(kinds)
    ]


class Storm:
    """Requests at a driver, and the memory of what they did."""

    def __init__(self, driver: Driver, arena: Arena, seed: str) -> None:
        self.driver = driver
        self.answers: Counter[tuple[str, Code]] = Counter()
        self._arena = arena
        self._seed = seed
        self._methods = methods()
        self._by_name = {method.name: method for method in self._methods}
        self._subjects = subjects(arena)
        self._guard = threading.Lock()
        self._ids: dict[str, str] = {}
        self._targets: set[tuple[str, str]] = set()
        self._stagings: set[tuple[str, str]] = set()
        self._findings: dict[str, Finding] = {}
        self._broken: list[BaseException] = []
        self._over = threading.Event()

    # The callers

    def rage(self, seconds: float) -> list[str]:
        """Let all callers call for so long, and return what was wrong with the answers."""
        self._over.clear()
        until = time.monotonic() + seconds
        work = [lambda number=number: self._call_until(until, number) for number in range(THREADS)]
        threads = [threading.Thread(target=self._watched, args=(one,)) for one in (*work, self._probe)]
        for thread in threads:
            thread.start()
        for thread in threads[:-1]:
            thread.join()
        self._over.set()
        threads[-1].join()
        if self._broken:
            raise self._broken[0]
        return self._report()

    def _watched(self, work: object) -> None:
        try:
            assert callable(work)
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised by the thread that waits
            self._broken.append(error)
            self._over.set()

    def _probe(self) -> None:
        while not self._over.wait(0.1):
            answer = self.driver.identity.Probe(csi.ProbeRequest(), timeout=PROBE_SECONDS)
            assert answer.ready.value, "Probe says that the driver is not ready"

    def _call_until(self, until: float, number: int) -> None:
        with self._caller(f"{self._seed}-{number}") as caller:
            while time.monotonic() < until and not self._over.is_set():
                assert self.driver.running, f"the driver is dead:\n{self.driver.last_words()}"
                self._one(caller)
        with self._guard:
            self.answers += caller.answers

    @contextmanager
    def _caller(self, seed: str) -> Iterator[Caller]:
        random = Random(seed)  # noqa: S311 - dice
        ids = [*ODD_IDS, *(subject.id for subject in self._subjects)]
        mint = Mint(random, self._arena.given, self._arena.refused, ids)
        # a connection of its own, and none of gRPC's own limits on what a caller sends
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"unix://{self.driver.socket}", options=options) as channel:
            yield Caller(random=random, mint=mint, channel=channel)

    def _one(self, caller: Caller) -> None:
        """Make one request, perhaps several times, right or wrong."""
        lot, random = caller.random.random(), caller.random
        right = self._by_name[random.choices(list(LIFE), list(LIFE.values()))[0]]
        subject = self._subject(random)
        if lot < 0.35:
            method, spite = right, 0.0
        elif lot < 0.65:
            method, spite = right, 0.1
        elif lot < 0.8:
            method, spite = random.choice(self._methods), 0.1
        else:
            method, spite = random.choice(self._methods), random.choice((0.3, 0.7, 1.0))
        message = caller.mint.request(method, subject, spite)
        data = caller.mint.spoil_bytes(message) if random.random() < 0.1 else message.SerializeToString()
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            self._send(caller, method, data)
        if random.random() < 0.03:
            self._play_pod(random)

    def _subject(self, random: Random) -> Subject:
        """Return one of the volumes, as far as it is known, mostly with its own paths."""
        found = random.choice(self._subjects)
        found = replace(found, id=self._ids.get(found.name, found.id))
        if random.random() < 0.15:
            found = replace(found, staging=random.choice(self._arena.given))
        if random.random() < 0.25:
            found = replace(found, target=random.choice(self._arena.given))
        if random.random() < 0.3:
            found = replace(found, size=found.size + random.randrange(6) * 4 * MIB)
        return found

    def _play_pod(self, random: Random) -> None:
        """Plant links and other things in whatever is mounted at a target, as a malicious pod does."""
        path = random.choice((*self._arena.target_paths, *self._arena.stagings))
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_dev == self._arena.root.stat().st_dev:
                    return  # nothing is mounted there
                plant(handle, self._arena)
            finally:
                os.close(handle)

    # One request

    def _send(self, caller: Caller, method: Method, data: bytes) -> None:
        message = decoded(method, data)
        if message is not None and not all(map(self._arena.is_harmless, texts(message))):
            return
        hurried = caller.random.random() < 0.03
        code, words = self._ask(caller.channel, method, data, HURRY if hurried else PATIENCE)
        caller.answers[method.name, code] += 1
        if message is not None:
            self._remember(method, message, code, words)
        text = words if isinstance(words, str) else ""
        if fault := oracle.fault_of_answer(code, text, hurried=hurried):
            self._note(Finding(method=method, data=data, fault=fault))

    @staticmethod
    def _ask(channel: grpc.Channel, method: Method, data: bytes, timeout: float) -> tuple[Code, str | bytes]:
        """Return the code and the message of an error, or the bytes of an answer."""
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method.path)
        try:
            return Code.OK, call(data, timeout=timeout)
        except grpc.RpcError as error:
            found = cast("grpc.Call", error)  # the error of a finished call is the call
            return found.code(), found.details() or ""

    def _remember(self, method: Method, message: Message, code: Code, words: str | bytes) -> None:
        """Remember what is to be undone; a caller whose time was up does not know, and so must undo it too."""
        volume, done = getattr(message, "volume_id", ""), code in (Code.OK, Code.DEADLINE_EXCEEDED)
        if len(volume.encode()) > LONGEST_ID or message.ByteSize() > LARGEST:
            return  # nobody has looked at it
        with self._guard:
            if method.name == "CreateVolume" and isinstance(words, bytes):
                made = csi.CreateVolumeResponse.FromString(words).volume
                self._ids[getattr(message, "name", "")] = made.volume_id
            elif method.name == "NodeStageVolume" and done:
                self._stagings.add((volume, getattr(message, "staging_target_path", "")))
            elif method.name == "NodePublishVolume":
                staging = getattr(message, "staging_target_path", "")
                # it may be made good there, whatever becomes of the target
                if volume and self._arena.is_given(staging):
                    self._stagings.add((volume, staging))
                if done:
                    self._targets.add((volume, getattr(message, "target_path", "")))

    def _note(self, finding: Finding) -> None:
        """Keep the smallest of the requests that were answered in the same wrong way."""
        kind = f"{finding.method.name} {''.join(c for c in finding.fault if c.isalpha() or c == ' ')[:50]}"
        with self._guard:
            known = self._findings.get(kind)
            if known is None or len(finding.data) < len(known.data):
                self._findings[kind] = finding

    def _report(self) -> list[str]:
        lines = []
        with self._caller("again") as caller:
            for finding in list(self._findings.values())[:MOST_FINDINGS]:
                smallest = self._shrunk(caller, finding)
                lines.append(f"{smallest.fault}\n    {describe(smallest.method, smallest.data)}")
        return lines

    def _shrunk(self, caller: Caller, finding: Finding) -> Finding:
        """Leave out of a request what is not needed for the same code, as far as it can be had again."""
        for one in fields(finding.method.request):
            message = decoded(finding.method, finding.data)
            if message is None:
                break
            message.ClearField(one.name)
            data = message.SerializeToString()
            code, words = self._ask(caller.channel, finding.method, data, PATIENCE)
            fault = oracle.fault_of_answer(code, words if isinstance(words, str) else "", hurried=False)
            if fault.partition(":")[0] == finding.fault.partition(":")[0] and len(data) < len(finding.data):
                finding = Finding(method=finding.method, data=data, fault=fault)
        return finding

    # Afterwards

    def settle(self, spared: frozenset[str]) -> list[str]:
        """Undo everything by ordinary calls, as often as what lies on top of each other needs it.

        Volumes in `spared` stay. What cannot be undone is returned.
        """
        complaints: list[str] = []
        for _ in range(6):
            complaints = []
            for volume, target in sorted(self._targets):
                self._undo("NodeUnpublishVolume", complaints, volume_id=volume, target_path=target)
            for volume, staging in sorted(self._stagings):
                self._undo("NodeUnstageVolume", complaints, volume_id=volume, staging_target_path=staging)
            for volume in {volume.volume_id for volume in self.driver.volumes()} - spared:
                self._undo("DeleteVolume", complaints, volume_id=volume)
            if not complaints:
                break
        return complaints

    def _undo(self, name: str, complaints: list[str], **given: str) -> None:
        service = self.driver.controller if name == "DeleteVolume" else self.driver.node
        try:
            getattr(service, name)(self._by_name[name].request(**given))
        except grpc.RpcError as error:
            complaints.append(f"cannot be undone: {name} {given}: {error}")


def plant(handle: int, arena: Arena) -> None:
    """Put links to places outside, and things that are no files, into the open folder `handle`."""
    goals = {
        "etc": "/etc",
        "passwd": "/etc/passwd",
        "precious": str(arena.links / "precious"),
        "pool": str((arena.links / "to-pool").readlink()),
        "up": "../../../../../../../..",
        "itself": "itself",
        "root": "/proc/self/root",
    }
    for name, goal in goals.items():
        with suppress(FileExistsError):
            os.symlink(goal, name, dir_fd=handle)
    with suppress(FileExistsError):
        os.mkfifo("fifo", dir_fd=handle)
    with suppress(FileExistsError):
        os.mkdir("folder", 0o700, dir_fd=handle)
        os.symlink("/etc", "folder/etc", dir_fd=handle)


class Treasure:
    """Volumes with data in them, of which the callers know nothing."""

    def __init__(self, driver: Driver, random: Random) -> None:
        self._driver = driver
        self._data = random.randbytes(MIB)
        kinds = [
            ({"backend": "directory"}, {}, 16),
            ({"backend": "loopfile"}, {"fs": "ext4"}, 32),
            ({"backend": "loopfile"}, {"block": True}, 16),
        ]
        self._volumes: list[Volume] = []
        for params, how, size in kinds:
            name = f"kept-{random.randbytes(12).hex()}"
            volume = driver.create(name, size * MIB, params=params, **how)  # type: ignore[arg-type]
            observe.put(driver.attach(volume), self._data)
            self._volumes.append(volume)

    @property
    def ids(self) -> frozenset[str]:
        """The volumes' ids."""
        return frozenset(volume.id for volume in self._volumes)

    def is_whole(self) -> bool:
        """Say whether every byte is there still."""
        found = [observe.get(self._driver.target_path(volume), len(self._data)) for volume in self._volumes]
        return all(data == self._data for data in found)
