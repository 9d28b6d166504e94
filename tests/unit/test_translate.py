"""Paths, capabilities and tokens on their way in and out."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_local._proto import csi_pb2
from csi_local.engine.api import VolumeView
from csi_local.model.accessibility import ANYWHERE, Accessibility
from csi_local.model.errors import Busy, InvalidArgument, NotFound
from csi_local.model.quantity import GIB, Bytes
from csi_local.model.volume import (
    AccessMode,
    BackendKind,
    BlockAccess,
    Capability,
    CapacityRange,
    MountAccess,
    VolumeId,
    VolumeRecord,
)
from csi_local.rpc import translate

Mode = csi_pb2.VolumeCapability.AccessMode
BAD_PATHS = ["relative", "./x", "../x", "/a/../b", "/..", "/a/..", "/", "//", "/.", "/a\0b"]


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b"),
            ("//a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a b", "/a b"),
            ("/...", "/..."),
            ("/a..b", "/a..b"),
        ],
    )
    def test_good(self, text: str, path: str) -> None:
        assert translate.path(text, "target_path") == path
        assert translate.volume_path(text) == path

    @pytest.mark.parametrize("text", BAD_PATHS)
    def test_bad(self, text: str) -> None:
        with pytest.raises(InvalidArgument, match="target_path"):
            translate.path(text, "target_path")
        with pytest.raises(NotFound):
            translate.volume_path(text)

    def test_missing(self) -> None:
        with pytest.raises(InvalidArgument, match="missing"):
            translate.path("", "target_path")
        with pytest.raises(InvalidArgument, match="missing"):
            translate.volume_path("")

    @given(st.text(alphabet="/.ab\0 ", max_size=20))
    def test_whatever_passes_is_plain(self, text: str) -> None:
        try:
            found = translate.path(text, "x")
        except InvalidArgument:
            return
        parts = found.split("/")
        assert parts[0] == ""
        assert len(parts) > 1
        assert not {"", ".", ".."} & set(parts[1:])
        assert translate.path(found, "x") == found


class TestTokens:
    @given(st.text(min_size=1, max_size=63))
    def test_there_and_back(self, after: str) -> None:
        given_out = translate.token(after)
        assert translate.after_token(given_out) == after
        assert given_out.isascii()

    def test_the_end(self) -> None:
        assert translate.token("") == ""
        assert translate.after_token("") == ""

    def test_short_enough_for_the_specification(self) -> None:
        assert len(translate.token("x" * 63)) <= 128

    @pytest.mark.parametrize(
        "text", ["x", "5", "invalid-token", "====", "é", base64.b64encode(b"pvc-1").decode(), "\ud800"]
    )
    def test_foreign(self, text: str) -> None:
        with pytest.raises(Busy):
            translate.after_token(text)

    @given(st.text(min_size=1, max_size=100))
    def test_anything(self, text: str) -> None:
        try:
            after = translate.after_token(text)
        except Busy:
            return
        assert translate.after_token(translate.token(after)) == after


def mount(mode: int = Mode.SINGLE_NODE_WRITER, **access: object) -> csi_pb2.VolumeCapability:
    """Return a capability to mount."""
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(**access),  # type: ignore[arg-type]
        access_mode=Mode(mode=mode),  # type: ignore[arg-type]
    )


class TestCapabilities:
    def test_every_mode_has_its_name(self) -> None:
        for name, number in Mode.Mode.items():
            if number != Mode.UNKNOWN:
                assert translate.capability(mount(number)).mode == AccessMode(name)

    def test_access(self) -> None:
        found = translate.capability(mount(fs_type="xfs", mount_flags=["ro", "noatime"], volume_mount_group="4242"))
        assert found.access == MountAccess(fs_type="xfs", flags=("ro", "noatime"), group=4242)
        block = csi_pb2.VolumeCapability(
            block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER)
        )
        assert translate.capability(block) == Capability(access=BlockAccess(), mode=AccessMode.SINGLE_NODE_WRITER)

    @pytest.mark.parametrize(
        "message",
        [
            csi_pb2.VolumeCapability(),
            csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume()),
            csi_pb2.VolumeCapability(access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER)),
            mount(Mode.UNKNOWN),
            mount(99),
            *(
                mount(volume_mount_group=group)
                for group in ("root", "-1", "1.5", " 1", "4294967295", "12345678901", "\u0661")
            ),
        ],
    )
    def test_refused(self, message: csi_pb2.VolumeCapability) -> None:
        with pytest.raises(InvalidArgument):
            translate.capability(message)

    def test_missing(self) -> None:
        with pytest.raises(InvalidArgument, match="missing"):
            translate.capabilities([])
        with pytest.raises(InvalidArgument, match="missing"):
            translate.required_capability(csi_pb2.VolumeCapability(), present=False)


class TestCreate:
    def test_whole(self) -> None:
        message = csi_pb2.CreateVolumeRequest(
            name="v",
            capacity_range=csi_pb2.CapacityRange(required_bytes=5, limit_bytes=9),
            volume_capabilities=[mount()],
            parameters={"backend": "directory"},
            secrets={"a": "hunter2"},
        )
        found = translate.create_request(message)
        assert (found.name, found.capacity) == ("v", CapacityRange(required=5, limit=9))
        assert found.parameters.backend is BackendKind.DIRECTORY
        assert "hunter2" not in repr(found)

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": ""},
            {"volume_capabilities": []},
            {"mutable_parameters": {"a": "b"}},
            {"volume_content_source": csi_pb2.VolumeContentSource()},
            {"parameters": {"colour": "red"}},
            {"capacity_range": csi_pb2.CapacityRange(required_bytes=-1)},
            {"capacity_range": csi_pb2.CapacityRange(required_bytes=1, limit_bytes=-(2**63))},
        ],
    )
    def test_refused(self, changes: dict[str, object]) -> None:
        fields: dict[str, object] = {"name": "v", "volume_capabilities": [mount()]}
        with pytest.raises(InvalidArgument):
            translate.create_request(csi_pb2.CreateVolumeRequest(**(fields | changes)))  # type: ignore[arg-type]


def topology(**segments: str) -> csi_pb2.Topology:
    """Return a topology."""
    return csi_pb2.Topology(segments={key.replace("_", "."): value for key, value in segments.items()})


class TestTopology:
    @pytest.mark.parametrize(
        ("requisite", "preferred", "expected"),
        [
            ([], [], ANYWHERE),
            (["node-2", "node-1"], [], Accessibility(nodes=("node-2", "node-1"))),
            (["node-2", "node-1"], ["node-1"], Accessibility(nodes=("node-1", "node-2"))),
            ([], ["node-2"], Accessibility(nodes=("node-2",), anywhere=True)),
        ],
    )
    def test_where(self, requisite: list[str], preferred: list[str], expected: Accessibility) -> None:
        requirement = csi_pb2.TopologyRequirement(
            requisite=[translate.topology(node) for node in requisite],
            preferred=[translate.topology(node) for node in preferred],
        )
        assert translate.accessibility(requirement) == expected

    def test_of_others(self) -> None:
        assert translate.accessibility_of(csi_pb2.Topology()) == ANYWHERE
        nowhere = translate.accessibility_of(topology(zone="a"))
        assert nowhere == Accessibility()
        assert not nowhere.allows("node-1")
        assert translate.accessibility_of(translate.topology("node-1")).allows("node-1")


class TestVolume:
    def test_shown(self) -> None:
        record = VolumeRecord(id=VolumeId("v"), name="v", size=Bytes(GIB), backend=BackendKind.DIRECTORY)
        shown = translate.volume(VolumeView(id=record.id, node="node-1", pool="fast", record=record))
        assert (shown.volume_id, shown.capacity_bytes) == ("v", GIB)
        assert dict(shown.volume_context) == {"backend": "directory", "pool": "fast"}
        assert [dict(one.segments) for one in shown.accessible_topology] == [{translate.TOPOLOGY_KEY: "node-1"}]

    def test_damaged(self) -> None:
        view = VolumeView(id=VolumeId("v"), node="node-1", pool="fast", record=None, problem="its record is empty")
        assert translate.volume(view).capacity_bytes == 0
        assert translate.condition(view.problem).abnormal
        assert not translate.condition("").abnormal
        assert translate.condition("").message
