"""What tests of storage repositories share: running smctl, killing it, and looking at the world behind its back.

Used inside a kernel of its own, as root. Everything is looked up without smctl where that is possible: devices in /sys,
links in /dev, thin device ids and volumes with the tools of dm-thin and LVM.
"""

import collections
import fcntl
import hashlib
import json
import mmap
import os
import signal
import struct
import subprocess

NAME = "lane"


class Wrong(Exception):
    """Something that must hold does not."""


def run(*words):
    """What a command printed that must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Wrong(f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def smctl(*words):
    """The JSON document that a verb prints."""
    return json.loads(run("smctl", *words, "--json"))


def watched(words, name="", number=0, later=0):
    """Runs a verb, killed at point `number` of those of this name (see kill.c) if it has so many, `later` milliseconds after
    it came there: whether it was, and the names of its points up to there."""
    log = f"/tmp/points.{os.getpid()}"
    kill = {"LD_PRELOAD": os.environ["KILL_LIBRARY"], "KILL_LOG": log}
    kill |= {"KILL_NAME": name, "KILL_AT": str(number), "KILL_LATER": str(later)}
    done = subprocess.run(words, env={**os.environ, **kill}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    with open(log) as file:
        points = file.read().splitlines()
    os.remove(log)
    if done.returncode not in (0, -signal.SIGKILL):
        raise Wrong(f"{words}, not killed, ended with {done.returncode}: {done.stderr}")
    return done.returncode != 0, points


def points_of(verb):
    """Runs a verb to its end. Where it can be killed: by the names of its points, each with a number. How many syncs there are
    depends on what was synced before, and the records do not change with each: every third one is enough."""
    counts = collections.Counter(watched(["smctl", *verb.split()])[1])
    return [(name, number) for name in counts for number in range(1, counts[name] + 1, 3 if name == "sync" else 1)]


def killed_at(verb, name, number, later=0):
    """Runs a verb, which is killed if it comes to this point; whether it was."""
    return watched(["smctl", *verb.split()], name, number, later)[0]


def processes(name):
    """The ids of the processes that are called so and have not ended."""
    ids = [entry for entry in os.listdir("/proc") if entry.isdigit() and line(f"/proc/{entry}/comm") == name]
    return [int(entry) for entry in ids if line(f"/proc/{entry}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])]


def line(path):
    """A file of /sys; empty if there is none."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def dm_devices():
    """The names of all device-mapper devices, each with whether it is suspended."""
    directories = [f"/sys/block/{name}/dm" for name in os.listdir("/sys/block") if name.startswith("dm-")]
    return {line(f"{directory}/name"): line(f"{directory}/suspended") == "1" for directory in directories}


def nbd_devices():
    """The NBD devices that are connected."""
    names = [name for name in os.listdir("/sys/block") if name.startswith("nbd")]
    return [name for name in names if line(f"/sys/block/{name}/size") != "0" or line(f"/sys/block/{name}/pid")]


def message(device, words):
    """Sends a device of device-mapper a message, as `dmsetup message` does (Linux, include/uapi/linux/dm-ioctl.h)."""
    payload = struct.pack("=Q", 0) + words.encode() + b"\0"
    head = struct.pack("=10IQ128s129s7x", 4, 0, 0, 312 + len(payload), 312, 0, 0, 0, 0, 0, 0, device.encode(), b"")
    with open("/dev/mapper/control") as control:
        fcntl.ioctl(control, 3 << 30 | 312 << 16 | 0xFD << 8 | 14, bytearray(head + payload))


def volumes(vg):
    return set(run("lvs", "--noheadings", "-o", "lv_name", vg).split())


class Disk:
    """A device, read and written past the page cache."""

    def __init__(self, path, write=False):
        self.fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_DIRECT)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def read(self, at, size):
        buffer = mmap.mmap(-1, size)
        if os.preadv(self.fd, [buffer], at) != size:
            raise Wrong(f"fewer than {size} bytes are read at {at}")
        return buffer[:]

    def write(self, at, data):
        buffer = mmap.mmap(-1, len(data))
        buffer[:] = data
        if os.pwritev(self.fd, [buffer], at) != len(data):
            raise Wrong(f"fewer than {len(data)} bytes are written at {at}")


def content(path, size=1 << 20):
    with Disk(path) as disk:
        return disk.read(0, size)


def digest(path):
    with Disk(path) as disk:
        whole = hashlib.sha256()
        for at in range(0, disk.size, 1 << 20):
            whole.update(disk.read(at, min(1 << 20, disk.size - at)))
    return whole.hexdigest()


class Sr:
    """The attached SR."""

    def __init__(self):
        info = smctl("sr", "info", NAME)
        self.uuid, self.vg, self.pool_lv = info["uuid"], info["vg"], info["pool"]
        self.pool = self.lv_device(self.pool_lv)

    def thin_ids(self):
        """The device ids that are in the pool."""
        message(self.pool, "reserve_metadata_snap")
        try:
            return run("thin_ls", "-m", "--no-headers", "-o", "DEV", f"/dev/mapper/{self.pool}_tmeta").split()
        finally:
            message(self.pool, "release_metadata_snap")

    def check(self, with_volumes=False):
        """Nothing is half made and nothing is left over: the kernel, the pool and, if wanted, the volume group have what
        the records say, and no more. What a user can tell of every VDI, by name."""
        vdis = smctl("vdi", "list", NAME)
        names = {vdi["uuid"]: vdi["name"] for vdi in vdis}
        attached = [vdi for vdi in vdis if vdi["attached"]]
        local = {vdi["uuid"] for vdi in vdis if vdi["local_copy"]}
        used = {vdi["uuid"] if vdi["type"] == "template" else vdi["origin"] for vdi in attached} - {None}
        wanted = {self.device(vdi["uuid"]) for vdi in attached} | {self.device(uuid) + "-origin" for uuid in used}
        devices = dm_devices()
        equal("devices", {name for name in devices if name.startswith("smctl-")}, wanted)
        lent = {f"smctl-{self.uuid}-local-{uuid}" for uuid in used & local}
        lent |= {f"smctl-{self.uuid}-thick-{vdi['uuid']}" for vdi in attached if vdi["preallocated"]}
        active = {name for name in devices if "-thick-" in name.replace("--", "-") or "-local-" in name.replace("--", "-")}
        equal("active volumes", active, {self.lv_device(lv) for lv in lent})
        equal("suspended devices", [name for name, suspended in devices.items() if suspended], [])
        equal("connected NBD devices", len(nbd_devices()), len(used - local))
        directory = f"/dev/thinorigin/{self.uuid}"
        links = os.listdir(directory) if os.path.isdir(directory) else []
        equal("links", set(links), {vdi["uuid"] for vdi in attached})
        for vdi in attached:
            device = os.path.basename(os.path.realpath(vdi["device"]))
            equal("the device behind a link", line(f"/sys/block/{device}/dm/name"), self.device(vdi["uuid"]))
            equal("the size of a device", int(line(f"/sys/block/{device}/size")) * 512, vdi["virtual_size"])
        thin = [vdi for vdi in vdis if vdi["type"] == "disk" and not vdi["preallocated"]]
        equal("the number of thin device ids", len(self.thin_ids()), len(thin))
        if with_volumes:
            ours = {name for name in volumes(self.vg) if name.startswith("smctl-")} - {self.pool_lv}
            thick = {f"smctl-{self.uuid}-thick-{vdi['uuid']}" for vdi in vdis if vdi["preallocated"]}
            copies = {f"smctl-{self.uuid}-local-{uuid}" for uuid in local}
            equal("volumes", ours, {f"smctl-{self.uuid}-meta"} | thick | copies)
        face = {}
        for vdi in vdis:
            known = {key: vdi[key] for key in ("type", "read_only", "virtual_size", "attached", "preallocated", "local_copy")}
            known |= {key: names.get(vdi[key]) for key in ("origin", "snapshot_of")}
            face[vdi["name"]] = known
        equal("the number of names", len(face), len(vdis))
        return face

    def lv_device(self, lv):
        return f"{self.vg.replace('-', '--')}-{lv.replace('-', '--')}"

    def device(self, vdi):
        return f"smctl-{self.uuid.replace('-', '')}-{vdi.replace('-', '')}"

    def thin_check(self):
        """The pool's metadata is whole: the SR is detached, looked at, and attached again."""
        smctl("sr", "detach", NAME)
        part = f"{self.vg}/{self.pool_lv}_tmeta"
        run("lvchange", "-q", "-y", "-a", "y", part)
        run("thin_check", "-q", f"/dev/{part}")
        run("lvchange", "-q", "-a", "n", part)
        smctl("sr", "attach", NAME)


def equal(what, found, wanted):
    if found != wanted:
        raise Wrong(f"{what}: {found}, wanted {wanted}")
