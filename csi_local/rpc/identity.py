"""CSI Identity."""

from typing import Protocol

from google.protobuf.wrappers_pb2 import BoolValue

from csi_local import __version__
from csi_local._proto import csi_pb2
from csi_local.rpc.boundary import Context

DRIVER_NAME = "csi-local.io"
_Service = csi_pb2.PluginCapability.Service
_Expansion = csi_pb2.PluginCapability.VolumeExpansion


class Readiness(Protocol):
    """Knows whether the driver can do its work."""

    @property
    def ready(self) -> bool:
        """Whether it can."""


class Identity:
    """Who this is, what it can do, and whether it is ready."""

    def __init__(self, readiness: Readiness, *, groups: bool = False) -> None:
        """*groups* says that there is a group controller service."""
        self._readiness = readiness
        self._groups = groups

    def GetPluginInfo(  # noqa: N802 (the protocol's name; likewise below)
        self, _request: csi_pb2.GetPluginInfoRequest, _context: Context
    ) -> csi_pb2.GetPluginInfoResponse:
        """Name and version."""
        return csi_pb2.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=__version__)

    def GetPluginCapabilities(  # noqa: N802
        self, _request: csi_pb2.GetPluginCapabilitiesRequest, _context: Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """Controller services, volumes that are on one node, growth online."""
        services = [_Service.CONTROLLER_SERVICE, _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS]
        services += [_Service.GROUP_CONTROLLER_SERVICE] if self._groups else []
        online = csi_pb2.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE))
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[
                *(csi_pb2.PluginCapability(service=_Service(type=kind)) for kind in services),
                online,
            ]
        )

    def Probe(self, _request: csi_pb2.ProbeRequest, _context: Context) -> csi_pb2.ProbeResponse:  # noqa: N802
        """Ready when every pool, or every cache, is."""
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._readiness.ready))
