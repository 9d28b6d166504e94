"""Keys of encrypted volumes: asked for when one is needed, from whoever the volume's class names, and kept nowhere."""

import json
from dataclasses import dataclass
from enum import StrEnum

from csi_local.host.api import Host
from csi_local.model.encryption import KeySources
from csi_local.model.errors import CommandFailed, FailedPrecondition, SyscallFailed, Unauthenticated, Unavailable
from csi_local.model.secret import Secret, without_newline
from csi_local.model.volume import Encryption, KeyProvider, VolumeRecord

KEY = "encryptionKey"
"""Under which name a request's secrets have the key."""

PREVIOUS = "previousEncryptionKey"
"""Under which name they have the key that it takes the place of, while a key is being changed."""

PREVIOUS_FILE = ".previous"
"""What the name of a key file has behind it, likewise."""

MAX_KEY = 4096
"""Bytes; as many as CSI's secrets can have."""

NO_SUCH_KEY = 2
"""What a key program exits with where the key is not there, or not given: asking again is no use."""

_VERSION = 1


class Action(StrEnum):
    """What a key is needed for, as key programs are told."""

    OPEN = "open"
    GROW = "grow"
    ROTATE = "rotate"
    PREVIOUS = "previous"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenKeys:
    """The keys that came with a request, if any did: the volume's, and the one before it."""

    key: Secret | None = None
    previous: Secret | None = None


NONE_GIVEN = GivenKeys()


class Keys:
    """Gets the key of a volume."""

    def __init__(self, host: Host, sources: KeySources) -> None:
        self._host = host
        self._sources = sources

    def get(self, record: VolumeRecord, encryption: Encryption, action: Action, given: GivenKeys) -> Secret:
        """The key of a volume; *given* is what came with the request.

        Raises:
            Unauthenticated: there is none, or it cannot be one.
            FailedPrecondition: this node is not set up for that.
            Unavailable: who has it cannot be asked now.
        """
        if encryption.provider is KeyProvider.SECRET:
            key, whence = _of_request(record, action, given.key), f"the secret's {KEY!r}"
        elif encryption.provider is KeyProvider.FILE:
            key, whence = self._of_file(record, encryption.key_name), f"the key file {encryption.key_name!r}"
        else:
            key, whence = self._of_program(record, encryption, action), "what the key program printed"
        if not key:
            raise Unauthenticated(f"volume {record.id}: {whence} is empty")
        if len(key) > MAX_KEY:
            key.forget()
            raise Unauthenticated(f"volume {record.id}: {whence} has more than {MAX_KEY} bytes")
        return key

    def previous(self, record: VolumeRecord, encryption: Encryption, given: GivenKeys, *, ask: bool) -> Secret | None:
        """The key that a volume's takes the place of; None where there is none.

        Whether a key program is to be asked as well, is said by *ask*.

        Raises:
            FailedPrecondition, Unavailable: see :meth:`get`.
        """
        key: Secret | None = None
        try:
            if encryption.provider is KeyProvider.SECRET:
                key = Secret(without_newline(given.previous.reveal())) if given.previous is not None else None
            elif encryption.provider is KeyProvider.FILE:
                key = self._of_file(record, encryption.key_name + PREVIOUS_FILE)
            elif ask:
                key = self._of_program(record, encryption, Action.PREVIOUS)
        except Unauthenticated:  # there is none
            return None
        return key or None

    def _of_file(self, record: VolumeRecord, name: str) -> Secret:
        """The links of a mounted Secret of Kubernetes are followed, but not out of the directory."""
        directory = self._host.real_path(self._sources.directory)
        path = self._host.real_path(f"{directory}/{name}")
        if not path.startswith(f"{directory}/"):
            raise FailedPrecondition(f"volume {record.id}: the key file {directory}/{name} is a link out of there")
        try:
            return Secret(without_newline(self._host.read_file(path)))
        except SyscallFailed as error:
            raise Unauthenticated(f"volume {record.id}: its key file cannot be read: {error}") from error

    def _of_program(self, record: VolumeRecord, encryption: Encryption, action: Action) -> Secret:
        program = self._sources.program
        if not program:
            raise FailedPrecondition(
                f"volume {record.id} has keyProvider: exec, and this node no key program: give it --key-program"
            )
        try:
            status, answer, complaint = self._host.ask_for_key(program, question(record, encryption, action))
        except CommandFailed as error:
            raise Unavailable(f"volume {record.id}: the key program gives no answer: {error}") from error
        with answer:
            if status == NO_SUCH_KEY:
                raise Unauthenticated(f"volume {record.id}: the key program has no key for it: {complaint}")
            if status:
                raise Unavailable(f"volume {record.id}: the key program failed with status {status}: {complaint}")
            return Secret(without_newline(answer.reveal()))


def _of_request(record: VolumeRecord, action: Action, given: Secret | None) -> Secret:
    if given is None:
        which = "node-expand" if action is Action.GROW else "node-stage"
        raise Unauthenticated(
            f"volume {record.id} is encrypted, and the request has no secret with {KEY!r}: its StorageClass needs"
            f" csi.storage.k8s.io/{which}-secret-name and -namespace"
        )
    return Secret(without_newline(given.reveal()))


def question(record: VolumeRecord, encryption: Encryption, action: Action) -> bytes:
    """What a key program is asked, as one line of JSON; docs/guides/encryption.md describes it."""
    asked = {
        "version": _VERSION,
        "action": str(action),
        "volume": record.id,
        "name": record.name,
        "keyName": encryption.key_name,
        "labels": dict(record.labels),
    }
    return json.dumps(asked).encode() + b"\n"
