"""The border: every error has its code, no secret passes, nothing too large comes in."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from csi_local._proto import csi_pb2
from csi_local.model import errors
from csi_local.model.snapshot import snapshot_id
from csi_local.rpc import boundary, translate
from csi_local.rpc.boundary import Undecodable, check_limits, code_of, decoder, guarded, patience, secret_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

Code = grpc.StatusCode
VALUE = "hunter2"


def subclasses(kind: type[errors.DriverError]) -> Iterator[type[errors.DriverError]]:
    """Yield a class and all below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def example(kind: type[errors.DriverError]) -> errors.DriverError:
    """Return an error of that class."""
    return kind("stat /x", errno.EDOM) if issubclass(kind, errors.SyscallFailed) else kind("said")


class TestCodes:
    @pytest.mark.parametrize("kind", sorted(set(subclasses(errors.DriverError)), key=str))
    def test_every_error_has_one(self, kind: type[errors.DriverError]) -> None:
        assert code_of(example(kind)) not in (Code.OK, Code.UNKNOWN)

    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            (errors.InvalidArgument, Code.INVALID_ARGUMENT),
            (errors.NotFound, Code.NOT_FOUND),
            (errors.AlreadyExists, Code.ALREADY_EXISTS),
            (errors.OutOfRange, Code.OUT_OF_RANGE),
            (errors.ResourceExhausted, Code.RESOURCE_EXHAUSTED),
            (errors.FailedPrecondition, Code.FAILED_PRECONDITION),
            (errors.DamagedRecord, Code.FAILED_PRECONDITION),
            (errors.Unauthenticated, Code.UNAUTHENTICATED),
            (errors.Busy, Code.ABORTED),
            (errors.Unsupported, Code.UNIMPLEMENTED),
            (errors.Unavailable, Code.UNAVAILABLE),
            (errors.SyscallFailed, Code.INTERNAL),
            (errors.CommandFailed, Code.INTERNAL),
        ],
    )
    def test_as_the_specification_has_them(self, kind: type[errors.DriverError], code: Code) -> None:
        assert code_of(example(kind)) is code
        below = type("Below", (kind,), {})
        assert code_of(example(below)) is code, "a subclass has the code of its class"

    @pytest.mark.parametrize(
        ("number", "code"),
        [
            (errno.ENOSPC, Code.RESOURCE_EXHAUSTED),
            (errno.EDQUOT, Code.RESOURCE_EXHAUSTED),
            (errno.EFBIG, Code.OUT_OF_RANGE),
            (errno.EBUSY, Code.FAILED_PRECONDITION),
            (errno.ENOENT, Code.FAILED_PRECONDITION),
            (errno.ENOTDIR, Code.FAILED_PRECONDITION),
            (errno.ELOOP, Code.INVALID_ARGUMENT),
            (errno.ENAMETOOLONG, Code.INVALID_ARGUMENT),
            (errno.EROFS, Code.UNAVAILABLE),
            (errno.EIO, Code.UNAVAILABLE),
            (errno.ENODEV, Code.UNAVAILABLE),
            (errno.ENXIO, Code.UNAVAILABLE),
            (errno.EREMOTEIO, Code.UNAVAILABLE),
            (errno.ENOTCONN, Code.UNAVAILABLE),
            (errno.ESTALE, Code.UNAVAILABLE),
            (errno.EHOSTDOWN, Code.UNAVAILABLE),
            (errno.ETIMEDOUT, Code.UNAVAILABLE),
            (errno.EAGAIN, Code.UNAVAILABLE),
            (errno.ENOMEDIUM, Code.UNAVAILABLE),
            (errno.ENOMEM, Code.UNAVAILABLE),
            (errno.EMFILE, Code.UNAVAILABLE),
            (errno.ENFILE, Code.UNAVAILABLE),
            (errno.EXDEV, Code.FAILED_PRECONDITION),
            (errno.EPERM, Code.FAILED_PRECONDITION),
            (errno.EACCES, Code.FAILED_PRECONDITION),
            (errno.EEXIST, Code.ABORTED),
            (errno.EDOM, Code.INTERNAL),
        ],
    )
    def test_of_a_system_call(self, number: int, code: Code) -> None:
        assert code_of(errors.SyscallFailed("stat /x", number)) is code

    @pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OSError(5, "x"), AssertionError(), Exception()])
    def test_of_what_was_not_foreseen(self, error: Exception) -> None:
        assert code_of(error) is Code.INTERNAL

    def test_not_implemented(self) -> None:
        assert code_of(NotImplementedError()) is Code.UNIMPLEMENTED


class Aborted(Exception):
    pass


class Caller:
    """gRPC's context, as far as the border uses it."""

    def __init__(self, remaining: float | None = None) -> None:
        self.answer: tuple[Code, str] | None = None
        self._remaining = remaining

    def time_remaining(self) -> float | None:
        return self._remaining

    def abort(self, code: Code, details: str) -> NoReturn:
        self.answer = (code, details)
        raise Aborted


def refused(error: Exception) -> tuple[Code, str]:
    """Return what a caller hears of an error."""

    def handler(_request: object, _context: object) -> Message:
        raise error

    caller = Caller()
    with pytest.raises(Aborted):
        guarded("CreateVolume", handler)(csi_pb2.CreateVolumeRequest(name="v"), caller)
    assert caller.answer is not None
    return caller.answer


class TestGuarded:
    def test_an_answer_passes(self) -> None:
        answer = csi_pb2.CreateVolumeResponse()
        serve = guarded("CreateVolume", lambda _request, _context: answer)
        assert serve(csi_pb2.CreateVolumeRequest(name="v"), Caller()) is answer

    def test_a_foreseen_error_is_told(self) -> None:
        assert refused(errors.NotFound("there is no volume 'v'")) == (Code.NOT_FOUND, "there is no volume 'v'")

    def test_names_that_are_not_utf8_are_told_too(self) -> None:
        error = errors.SyscallFailed("stat " + os.fsdecode(b"/x/caf\xe9"), errno.EIO)
        code, text = refused(error)
        assert code is Code.UNAVAILABLE
        assert text.startswith("stat /x/caf\\udce9: ")
        condition = translate.condition(f"its files cannot be read: {error}")
        assert "caf" in csi_pb2.VolumeCondition.FromString(condition.SerializeToString()).message

    def test_an_unforeseen_error_is_not(self, caplog: pytest.LogCaptureFixture) -> None:
        code, text = refused(ValueError("inside information"))
        assert code is Code.INTERNAL
        assert "inside" not in text
        assert "inside information" in caplog.text, "the log has it"

    def test_not_implemented(self) -> None:
        code, text = refused(NotImplementedError("inside information"))
        assert (code, text) == (Code.UNIMPLEMENTED, "CreateVolume is not implemented")

    def test_undecodable(self) -> None:
        caller = Caller()
        request = decoder(csi_pb2.CreateVolumeRequest)(b"\xff\xff\xff")
        assert isinstance(request, Undecodable)
        with pytest.raises(Aborted):
            guarded("CreateVolume", lambda _request, _context: csi_pb2.CreateVolumeResponse())(request, caller)
        assert caller.answer is not None
        assert caller.answer[0] is Code.INVALID_ARGUMENT

    @pytest.mark.parametrize(("remaining", "most"), [(None, 30.0), (1000.0, 30.0), (10.0, 9.0), (0.0, 0.0)])
    def test_patience(self, remaining: float | None, most: float) -> None:
        assert patience(Caller(remaining)) == most


def messages(descriptor: Descriptor) -> Iterator[Descriptor]:
    """Yield a message type and those nested in it."""
    yield descriptor
    for nested in descriptor.nested_types:
        yield from messages(nested)


ALL = [nested for top in csi_pb2.DESCRIPTOR.message_types_by_name.values() for nested in messages(top)]
MARKED = [
    (descriptor, field)
    for descriptor in ALL
    for field in descriptor.fields
    if field.GetOptions().Extensions[csi_pb2.csi_secret]
]
REQUESTS = [method.input_type for service in csi_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods]


class TestSecrets:
    def test_there_are_some(self) -> None:
        names = {descriptor.name for descriptor, _ in MARKED}
        assert {"CreateVolumeRequest", "NodeStageVolumeRequest", "ControllerExpandVolumeRequest"} <= names
        assert all(field.name in secret_fields(GetMessageClass(kind)()) for kind, field in MARKED)

    def test_none_is_nested_where_it_would_be_missed(self) -> None:
        assert {descriptor.full_name for descriptor, _ in MARKED} <= {kind.full_name for kind in REQUESTS}

    @pytest.mark.parametrize(("descriptor", "field"), MARKED, ids=lambda value: value.name)
    def test_never_in_the_log(
        self, descriptor: Descriptor, field: FieldDescriptor, caplog: pytest.LogCaptureFixture
    ) -> None:
        request: Any = GetMessageClass(descriptor)()
        getattr(request, field.name)["unlock"] = VALUE
        if "volume_id" in descriptor.fields_by_name:
            request.volume_id = "the-volume"
        caplog.set_level(logging.DEBUG)

        def fails(_request: object, _context: object) -> Message:
            raise errors.FailedPrecondition("for some reason")

        with pytest.raises(Aborted):
            guarded("SomeMethod", fails)(request, Caller())
        assert f"{field.name}: ***" in caplog.text
        assert VALUE not in caplog.text
        assert "unlock" not in caplog.text
        assert getattr(request, field.name)["unlock"] == VALUE, "the handler needs it"

    def test_what_is_no_secret_is_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        request = csi_pb2.CreateVolumeRequest(name="the-name", parameters={"backend": "loopfile"})
        guarded("CreateVolume", lambda _request, _context: csi_pb2.CreateVolumeResponse())(request, Caller())
        assert "the-name" in caplog.text
        assert "loopfile" in caplog.text
        assert "***" not in caplog.text


class TestLimits:
    @pytest.mark.parametrize(
        "request_",
        [
            csi_pb2.CreateVolumeRequest(name="x" * 129),
            csi_pb2.CreateVolumeRequest(name="ü" * 65),
            csi_pb2.CreateVolumeRequest(parameters={"a": "x" * 4096}),
            csi_pb2.CreateVolumeRequest(parameters={str(number): "x" * 100 for number in range(50)}),
            csi_pb2.CreateVolumeRequest(secrets={"a": "x" * 4096}),
            csi_pb2.DeleteVolumeRequest(volume_id="x" * 129),
            csi_pb2.ListVolumesRequest(starting_token="x" * 129),
            csi_pb2.NodeStageVolumeRequest(staging_target_path="/" * 4096),
            csi_pb2.CreateVolumeRequest(
                volume_capabilities=[
                    csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume(fs_type="x" * 129))
                ]
            ),
            csi_pb2.CreateVolumeRequest(
                volume_capabilities=[
                    csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume(mount_flags=["x" * 100] * 41))
                ]
            ),
            csi_pb2.GetCapacityRequest(accessible_topology=csi_pb2.Topology(segments={"a": "x" * 4096})),
            csi_pb2.CreateVolumeGroupSnapshotRequest(source_volume_ids=["a", "x" * 129]),
        ],
        ids=lambda message: type(message).__name__,
    )
    def test_too_large(self, request_: Message) -> None:
        with pytest.raises(errors.InvalidArgument, match="longer than"):
            check_limits(request_)

    @pytest.mark.parametrize(
        "request_",
        [
            csi_pb2.CreateVolumeRequest(),
            csi_pb2.CreateVolumeRequest(name="x" * 128, parameters={"a": "x" * 4095}),
            csi_pb2.NodeStageVolumeRequest(staging_target_path="/" * 4095, volume_id="ü" * 64),
            csi_pb2.NodePublishVolumeRequest(target_path="/" + "x" * 1000),
            csi_pb2.NodeGetVolumeStatsRequest(volume_path="/" + "x" * 1000),
            csi_pb2.CreateVolumeGroupSnapshotRequest(source_volume_ids=["x" * 128] * 256),
            csi_pb2.DeleteVolumeGroupSnapshotRequest(snapshot_ids=[snapshot_id(f"g/{n}") for n in range(256)]),
        ],
        ids=lambda message: type(message).__name__,
    )
    def test_large_enough(self, request_: Message) -> None:
        check_limits(request_)

    def test_every_request_is_looked_through(self) -> None:
        """Each string field of each request, alone, is refused where it is too long."""
        for kind in REQUESTS:
            for field in kind.fields:
                if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                    request = GetMessageClass(kind)()
                    setattr(request, field.name, "x" * 5000)
                    with pytest.raises(errors.InvalidArgument, match=field.name):
                        check_limits(request)

    def test_paths_are_those_that_are_named_so(self) -> None:
        named = {field.name for kind in REQUESTS for field in kind.fields if field.name.endswith("_path")}
        assert named == boundary._PATHS
