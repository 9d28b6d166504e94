"""Quantities, parameters, mount options, pools and ids: what is let in, and what it means."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from csi_local.model.errors import InvalidArgument
from csi_local.model.mount_options import FILESYSTEM_KEYS, PER_FILESYSTEM, PER_MOUNT, MountOptions, parse_mount_options
from csi_local.model.parameters import FS_TYPE, LABELS, NAMES, check_mkfs_options, parse_parameters
from csi_local.model.pool import DEFAULT_RESERVE, Media, PoolKind, PoolSpec, Share, parse_pool
from csi_local.model.quantity import GIB, MIB, Bytes, format_bytes, parse_bytes, round_up
from csi_local.model.volume import (
    Allocation,
    BackendKind,
    Cipher,
    Encryption,
    Filesystem,
    KeyProvider,
    QuotaMode,
    check_name,
    known_id,
    volume_id,
)

FOREIGN = (
    "bind",
    "remount",
    "loop",
    "loop=/dev/loop0",
    "subvol=/",
    "subvolid=5",
    "device=/dev/sda",
    "logdev=/dev/sda",
    "x-mount.mkdir",
    "_netdev",
    "user",
    "nofail",
    "context=x",
    "commit=",
    "commit=/x",
    "uid=0",
    "shared",
    "rshared",
    "move",
    "rbind",
    "usrjquota=x",
    "journal_path=/x",
    "sb=1",
    "RO",
    "",
    "ro rw",
    "commit=a b",
)
"""Mount options that do more than tune, or are none."""
NAMES_GIVEN = st.one_of(st.text(max_size=80), st.from_regex(r"[A-Za-z0-9._/-]{1,80}", fullmatch=True))


class TestQuantity:
    @pytest.mark.parametrize(
        ("text", "amount"),
        [
            ("0", 0),
            ("1048576", MIB),
            ("20Gi", 20 * GIB),
            ("1.5Gi", 3 * GIB // 2),
            ("0.5Ki", 512),
            ("1k", 1000),
            ("1.5G", 1_500_000_000),
            ("1Ti", 1024 * GIB),
            (" 1Mi ", MIB),
        ],
    )
    def test_read(self, text: str, amount: int) -> None:
        assert parse_bytes(text) == amount

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "-1",
            "+1",
            "1 Gi",
            "1gi",
            "1K",
            "1e3",
            "1Gib",
            "0.0001Ki",
            "1.",
            ".5Gi",
            "1Ei",
            "1" * 20,
            "\u0661Gi",
        ],
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(InvalidArgument, match=r"amount of bytes|whole number"):
            parse_bytes(text)

    @given(st.integers(min_value=0, max_value=10**18))
    def test_whole_numbers(self, amount: int) -> None:
        assert parse_bytes(str(amount)) == amount

    @given(st.integers(min_value=0, max_value=1023), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "Pi"]))
    def test_written_and_read_again(self, number: int, suffix: str) -> None:
        amount = parse_bytes(f"{number}{suffix}")
        assert parse_bytes(format_bytes(amount)) == amount

    @given(st.integers(min_value=0, max_value=1 << 59))
    def test_written_for_people_it_is_near(self, amount: int) -> None:
        number, suffix = re.fullmatch(r"([0-9.]+)([KMGTP]i|)", format_bytes(amount)).groups()  # type: ignore[union-attr]
        scale = parse_bytes(f"1{suffix}")
        assert abs(float(number) * scale - amount) <= 0.051 * scale

    @given(st.integers(min_value=0, max_value=1 << 60), st.integers(min_value=1, max_value=1 << 30))
    def test_round_up(self, amount: int, step: int) -> None:
        result = round_up(amount, step)
        assert result % step == 0
        assert amount <= result < amount + step


class TestVolumeId:
    @pytest.mark.parametrize("name", ["pvc-1", "a", "A.b_c-d", "0", "x" * 63])
    def test_a_safe_name_is_its_own_id(self, name: str) -> None:
        assert volume_id(name) == name

    @pytest.mark.parametrize(
        "name", ["../x", "x;id>f;", ".hidden", "-rf", "a/b", "a b", "x" * 64, "", "ü", "a\n", "sha256-" + "0" * 40]
    )
    def test_any_other_becomes_a_digest(self, name: str) -> None:
        assert re.fullmatch(r"sha256-[0-9a-f]{40}", volume_id(name))
        assert volume_id(name) != name

    @given(NAMES_GIVEN)
    def test_it_is_safe_and_known(self, name: str) -> None:
        found = volume_id(name)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", found)
        assert known_id(found) == found
        assert volume_id(name) == found

    @given(NAMES_GIVEN, NAMES_GIVEN)
    def test_no_two_names_share_one(self, first: str, second: str) -> None:
        assume(first != second)
        assert volume_id(first) != volume_id(second)
        assert volume_id(volume_id(first)) != volume_id(first) or volume_id(first) == first

    @pytest.mark.parametrize("text", ["", ".", "..", "a/b", "../x", ".new-x", "a\0", "x" * 64, "a\n", "-x"])
    def test_what_no_volume_can_have(self, text: str) -> None:
        assert known_id(text) is None

    @pytest.mark.parametrize("name", ["", "x" * 129, "ü" * 65, "a\0b", "a\x1fb", "a\x7fb"])
    def test_names_that_are_refused(self, name: str) -> None:
        with pytest.raises(InvalidArgument):
            check_name(name)

    @pytest.mark.parametrize("name", ["x" * 128, "ü" * 64, "a b", "../x", "日本"])
    def test_names_that_are_not(self, name: str) -> None:
        assert check_name(name) == name


class TestParameters:
    def test_nothing(self) -> None:
        found = parse_parameters({})
        assert (found.backend, found.fs_type, found.media, found.pool) == (None, None, None, "")
        assert (found.allocation, found.quota, found.placement) == (Allocation.THICK, QuotaMode.HARD, "spread")

    def test_all(self) -> None:
        given_ = {
            "backend": "loopfile",
            "pool": "fast",
            "media": "nvme",
            "placement": "pack",
            "allocation": "thin",
            "quota": "advisory",
            "encryption": "luks2",
            "keyProvider": "file",
            "keyName": "fast.key",
            "cipher": "aes-xts-plain64",
            "keySize": "256",
            "encryptionSectorSize": "512",
            "kdfMemory": "64Mi",
            "kdfPasses": "5",
            "encryptionDiscard": "yes",
            "mkfsOptions": "-m 1 -E 'stride=2'",
            FS_TYPE: "xfs",
        }
        found = parse_parameters(given_)
        assert set(given_) == set(NAMES)
        assert (found.backend, found.media, found.fs_type) == (BackendKind.LOOPFILE, Media.NVME, Filesystem.XFS)
        assert (found.allocation, found.quota, found.placement) == (Allocation.THIN, QuotaMode.ADVISORY, "pack")
        assert found.mkfs_options == ("-m", "1", "-E", "stride=2")
        assert found.encryption == Encryption(
            key_bits=256,
            sector_size=512,
            kdf_memory=Bytes(64 * MIB),
            kdf_passes=5,
            discard=True,
            provider=KeyProvider.FILE,
            key_name="fast.key",
        )
        assert found.given == given_

    def test_labels_are_kept_apart(self) -> None:
        found = parse_parameters(dict.fromkeys(LABELS, "x") | {"pool": "fast"})
        assert found.given == {"pool": "fast"}
        assert found.labels == dict.fromkeys(LABELS, "x")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("backend", "lvm"),
            ("backend", ""),
            ("media", "floppy"),
            ("placement", "random"),
            ("allocation", "Thick"),
            ("quota", "soft"),
            ("encryption", "luks1"),
            (FS_TYPE, "ntfs"),
            ("mkfsOptions", "'"),
        ],
    )
    def test_values_that_do_not_exist(self, name: str, value: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            parse_parameters({name: value})
        assert repr(value) in str(caught.value)

    def test_encryption_has_safe_defaults(self) -> None:
        assert parse_parameters({}).encryption is None
        assert parse_parameters({"encryption": "none"}).encryption is None
        assert parse_parameters({"encryption": "luks2"}).encryption == Encryption()
        assert parse_parameters({"encryption": "luks2", "cipher": Cipher.ADIANTUM}).encryption == Encryption(
            cipher=Cipher.ADIANTUM, key_bits=256
        )

    @pytest.mark.parametrize(
        "given_",
        [
            {"keyProvider": "paper"},
            {"keyProvider": "file"},
            {"keyName": "../key"},
            {"keyName": ""} | {"keyProvider": "file"},
            {"cipher": "aes-cbc-plain"},
            {"keySize": "128"},
            {"keySize": "512", "cipher": Cipher.ADIANTUM},
            {"encryptionSectorSize": "1024"},
            {"kdfMemory": "1Mi"},
            {"kdfMemory": "2Gi"},
            {"kdfPasses": "3"},
            {"kdfPasses": "1000"},
            {"kdfPasses": "many"},
            {"encryptionDiscard": "true"},
        ],
        ids=repr,
    )
    def test_encryption_that_makes_no_sense(self, given_: dict[str, str]) -> None:
        with pytest.raises(InvalidArgument):
            parse_parameters({"encryption": "luks2", **given_})

    def test_encryption_must_be_asked_for(self) -> None:
        """Who sets a cipher and forgets the rest must not believe that anything is encrypted."""
        with pytest.raises(InvalidArgument, match="cipher makes no sense without encryption: luks2"):
            parse_parameters({"cipher": "aes-xts-plain64"})

    @given(st.text(max_size=20))
    def test_names_that_do_not_exist(self, name: str) -> None:
        assume(name not in NAMES and name not in LABELS)
        with pytest.raises(InvalidArgument) as caught:
            parse_parameters({name: "x"})
        assert all(known in str(caught.value) for known in NAMES)

    @pytest.mark.parametrize(
        ("filesystem", "options"),
        [
            ("ext4", "-m 1"),
            ("ext4", "-O ^has_journal -i 65536"),
            ("ext4", "-E stride=16,stripe_width=32"),
            ("ext4", "-j"),
            ("ext4", "-T largefile"),
            ("xfs", "-m crc=1,reflink=0 -i maxpct=5"),
            ("xfs", "-dsu=64k,sw=4"),
            ("btrfs", "--csum xxhash"),
            ("btrfs", "--nodesize=16384 -m single"),
        ],
    )
    def test_mkfs_options_that_tune(self, filesystem: str, options: str) -> None:
        words = tuple(options.split())
        assert check_mkfs_options(Filesystem(filesystem), words) == words

    @pytest.mark.parametrize(
        ("filesystem", "options"),
        [
            ("ext4", "/dev/sda"),
            ("ext4", "-d /etc"),
            ("ext4", "-E discard"),
            ("ext4", "-E offset=4096"),
            ("ext4", "-E root_owner=1:1"),
            ("ext4", "-E root_perms=0777"),
            ("ext4", "-E test_fs"),
            ("ext4", "-E stride=16,test_fs"),
            ("ext4", "-E revision=0"),
            ("ext4", "-O journal_dev"),
            ("ext4", "-O bigalloc"),
            ("ext4", "-O ^flex_bg,bigalloc"),
            ("ext4", "-C 65536"),
            ("ext4", "-U 0"),
            ("ext4", "-L x"),
            ("ext4", "-m"),
            ("ext4", "-J device=/dev/sda"),
            ("ext4", "-m /etc/passwd"),
            ("ext4", "-m -F"),
            ("ext4", "--help"),
            ("ext4", "1G"),
            ("ext4", "-F"),
            ("xfs", "-d file=1,name=x"),
            ("xfs", "-d name=x"),
            ("xfs", "-d size=1g"),
            ("xfs", "-l logdev=sda"),
            ("xfs", "-p proto"),
            ("xfs", "-K"),
            ("xfs", "-m uuid=1"),
            ("xfs", "-c options=x"),
            ("btrfs", "-r dir"),
            ("btrfs", "--rootdir=dir"),
            ("btrfs", "--rootdir dir"),
            ("btrfs", "--csum"),
            ("btrfs", "-U x"),
        ],
    )
    def test_mkfs_options_that_do_more(self, filesystem: str, options: str) -> None:
        with pytest.raises(InvalidArgument, match="not allowed"):
            check_mkfs_options(Filesystem(filesystem), tuple(options.split()))


class TestMountOptions:
    def test_sorted(self) -> None:
        found = parse_mount_options(["ro,noatime", "commit=30", "sync", "defaults"], "ext4")
        assert found == MountOptions(flags=frozenset({"ro", "noatime", "sync"}), data=("commit=30",))
        assert found.read_only
        assert found.per_mount(read_only=False) == {"ro", "noatime"}

    def test_of_a_bind_mount(self) -> None:
        options = parse_mount_options(["rw", "nosuid"], None)
        assert options.per_mount(read_only=True) == {"ro", "nosuid"}
        assert options.per_mount(read_only=False) == {"rw", "nosuid"}

    @pytest.mark.parametrize("word", FOREIGN)
    @pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs", None])
    def test_refused(self, word: str, filesystem: str | None) -> None:
        with pytest.raises(InvalidArgument):
            parse_mount_options([word], filesystem)

    @pytest.mark.parametrize(
        "words",
        [
            "ro,rw",
            "noatime,strictatime",
            "relatime,noatime",
            "noatime,norelatime",
            "relatime,norelatime",
            "relatime,strictatime",
            "atime,noatime",
            "nodiratime,diratime",
            "suid,nosuid",
            "exec,noexec",
            "sync,async",
            "nolazytime,lazytime",
            "discard,nodiscard",
            "noacl,acl",
            "commit=5,commit=10",
            "barrier=1,nobarrier",
        ],
    )
    def test_contradiction(self, words: str) -> None:
        with pytest.raises(InvalidArgument, match="both"):
            parse_mount_options(words.split(","), "ext4")

    @pytest.mark.parametrize("words", ["ro,ro", "atime,relatime", "norelatime,strictatime", "noatime,nodiratime"])
    def test_what_only_looks_like_one(self, words: str) -> None:
        assert parse_mount_options(words.split(","), "xfs").flags == set(words.split(","))

    @pytest.mark.parametrize("filesystem", sorted(FILESYSTEM_KEYS))
    def test_each_filesystem_has_its_own(self, filesystem: str) -> None:
        for other, keys in FILESYSTEM_KEYS.items():
            for key in keys - FILESYSTEM_KEYS[filesystem] if other != filesystem else ():
                with pytest.raises(InvalidArgument):
                    parse_mount_options([key], filesystem)

    @given(st.lists(st.text(max_size=12), max_size=3), st.sampled_from(["ext4", "xfs", "btrfs", None]))
    def test_what_passes_is_on_a_list(self, words: list[str], filesystem: str | None) -> None:
        try:
            found = parse_mount_options(words, filesystem)
        except InvalidArgument:
            return
        assert found.flags <= PER_MOUNT | PER_FILESYSTEM
        assert all(word.partition("=")[0] in FILESYSTEM_KEYS[filesystem or ""] for word in found.data)


class TestPools:
    def test_smallest(self) -> None:
        assert parse_pool("fast=path:/mnt") == PoolSpec(name="fast", kind=PoolKind.PATH, target="/mnt")

    def test_everything(self) -> None:
        text = "p-1=image:/x.img,size=20Gi,fs=btrfs,allocation=thin,media=ssd,reserve=5%,overcommit=1.5"
        assert parse_pool(text) == PoolSpec(
            name="p-1",
            kind=PoolKind.IMAGE,
            target="/x.img",
            size=Bytes(20 * GIB),
            filesystem=Filesystem.BTRFS,
            allocation=Allocation.THIN,
            media=Media.SSD,
            reserve=Share(percent=5.0),
            overcommit=1.5,
        )

    def test_reserve(self) -> None:
        assert parse_pool("a=path:/x,reserve=1Gi").reserve.of(10 * GIB) == GIB
        assert parse_pool("a=path:/x,reserve=0").reserve.of(10 * GIB) == 0
        assert parse_pool("a=path:/x").reserve == DEFAULT_RESERVE
        assert parse_pool("a=path:/x,reserve=12.5%").reserve.of(8000) == 1000

    def test_ephemeral(self) -> None:
        assert parse_pool("a=path:/x").ephemeral.of(8000) == 8000
        assert parse_pool("a=path:/x,ephemeral=0").ephemeral.of(8000) == 0
        assert parse_pool("a=path:/x,ephemeral=12.5%").ephemeral.of(8000) == 1000
        assert parse_pool("a=path:/x,ephemeral=1Gi").ephemeral.of(8000) == GIB
        for text in ("101%", "no", "-1", "%"):
            with pytest.raises(InvalidArgument):
                parse_pool(f"a=path:/x,ephemeral={text}")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "fast",
            "fast=path",
            "=path:/x",
            "Fast=path:/x",
            "a_b=path:/x",
            "-a=path:/x",
            "x" * 64 + "=path:/x",
            "a=tape:/x",
            "a=path:x",
            "a=path:",
            "a=path:/x/../y",
            "a=path:/x\n",
            "a=path:/x,size=1Gi",
            "a=path:/x,color=red",
            "a=path:/x,media",
            "a=path:/x,media=ssd,media=ssd",
            "a=path:/x,media=tape",
            "a=image:/x",
            "a=image:/x,size=511Mi",
            "a=image:/x,size=many",
            "a=image:/x,size=1Gi,fs=ntfs",
            "a=image:/x,size=1Gi,allocation=fat",
            "a=device:/dev/sda,size=1Gi",
            "a=path:/x,reserve=100%",
            "a=path:/x,reserve=-1%",
            "a=path:/x,reserve=%",
            "a=path:/x,mounted=maybe",
            "a=image:/x,size=1Gi,mounted=yes",
            "a=path:/x,overcommit=0.5",
            "a=path:/x,overcommit=1001",
            "a=path:/x,overcommit=nan",
            "a=path:/x,overcommit=inf",
        ],
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(InvalidArgument):
            parse_pool(text)
