//! What block devices and mounted file systems the host has, from the kernel's own tables.
//!
//! Only files under `/sys` and `/proc` are read. No device is opened and no file system is asked for anything, so a
//! server that is away, or a disk that is dead, holds nobody up; and what guests keep on their disks is not looked at.

use super::system::{entries, line};
use crate::dm::{DeviceNumber, SECTOR};
use crate::error::{Error, Result};
use crate::names::UUID_PREFIX;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A block device, as the kernel knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name, as `sda1`.
    pub name: String,
    /// Its node.
    pub path: PathBuf,
    /// Its number.
    pub number: Option<DeviceNumber>,
    /// Its size, in bytes.
    pub size: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// The disk that it is a partition of.
    pub partition_of: Option<String>,
    /// The devices that it is made of.
    pub slaves: Vec<String>,
    /// Its device-mapper name.
    pub dm_name: Option<String>,
    /// Its device-mapper UUID.
    pub dm_uuid: Option<String>,
    /// The file that a loop device shows.
    pub file: Option<PathBuf>,
    /// Whether its data is on another machine: iSCSI, fibre channel, NVMe over fabrics, NBD, Ceph, DRBD.
    pub network: bool,
}

/// A mounted file system that keeps files somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted: a device's node, or a server and a directory there.
    pub source: String,
    /// The kernel's word for the file system, as `ext4`.
    pub kind: String,
    /// The number of its device, which is no block device's for a network file system.
    pub number: DeviceNumber,
    /// Where it is mounted; more than one place for one that is mounted again or in part.
    pub places: Vec<PathBuf>,
}

/// Everything that the kernel tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// BlockDevice devices that have a size, by name.
    pub blocks: Vec<BlockDevice>,
    /// Mounted file systems, except those that keep nothing.
    pub mounts: Vec<Mount>,
}

/// File systems whose files are on another machine.
const NETWORK: [&str; 14] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ceph",
    "9p",
    "afs",
    "lustre",
    "beegfs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "fuse.ceph",
    "fuse.s3fs",
];

/// File systems that several machines mount from one block device at once.
const CLUSTER: [&str; 3] = ["gfs2", "ocfs2", "vmfs"];

impl BlockDevice {
    /// Whether LVM made it.
    pub fn is_lvm(&self) -> bool {
        self.dm_uuid.as_ref().is_some_and(|uuid| uuid.starts_with("LVM-"))
    }
}

impl Mount {
    /// Whether its files are on another machine.
    pub fn is_network(&self) -> bool {
        NETWORK.contains(&self.kind.as_str())
    }

    /// Whether other machines may use it at the same time.
    pub fn is_shared(&self) -> bool {
        self.is_network() || CLUSTER.contains(&self.kind.as_str())
    }
}

impl Survey {
    /// What the kernel tells under `root`, which is `/` but in tests.
    ///
    /// # Errors
    /// Its tables cannot be read.
    pub fn read(root: &Path) -> Result<Self> {
        let class = root.join("sys/class/block");
        let mut blocks = Vec::new();
        for name in entries(&class)? {
            // A device may go while we look: then it has no size, like an NBD device that is not connected.
            let block = read_block(&class, &name)?;
            if block.size > 0 && !name.starts_with("ram") {
                blocks.push(block);
            }
        }
        let path = root.join("proc/self/mountinfo");
        let text = fs::read(&path)
            .map_err(|e| Error::failed(format!("cannot read {}", path.display())).because(e))?;
        let mounts = read_mounts(&String::from_utf8_lossy(&text), &blocks);
        Ok(Self { blocks, mounts })
    }

    /// The block device called `name`.
    pub fn block(&self, name: &str) -> Option<&BlockDevice> {
        self.blocks.iter().find(|block| block.name == name)
    }

    /// Whether the device is one that must not be opened by anyone who only looks around: a template, a VDI or
    /// another NBD device, or anything that stands on one.
    pub fn is_guests(&self, block: &BlockDevice) -> bool {
        self.stands_on_guests(block, 0)
    }

    fn stands_on_guests(&self, block: &BlockDevice, depth: u32) -> bool {
        // The kernel allows no loops, but what was read bit by bit may show one.
        const DEEPEST: u32 = 32;
        let ours = block.dm_uuid.as_ref().is_some_and(|uuid| uuid.starts_with(UUID_PREFIX));
        if ours || block.name.starts_with("nbd") || depth > DEEPEST {
            return true;
        }
        self.below(block).any(|below| self.stands_on_guests(below, depth + 1))
    }

    /// The devices that a device stands on.
    fn below<'a>(&'a self, block: &'a BlockDevice) -> impl Iterator<Item = &'a BlockDevice> {
        let file = block.file.as_ref().and_then(|file| file.strip_prefix("/dev").ok()).and_then(Path::to_str);
        let named = move |name: &&str| file == Some(*name);
        let names = block.slaves.iter().chain(&block.partition_of).map(String::as_str);
        let linked = self.blocks.iter().map(|block| block.name.as_str()).filter(named);
        // A loop device on one of our links is on our device, whatever that is called.
        let link = file.is_some_and(|file| file.starts_with("thinorigin/"));
        let ours = self.blocks.iter().filter(move |block| {
            link && block.dm_uuid.as_ref().is_some_and(|uuid| uuid.starts_with(UUID_PREFIX))
        });
        names.chain(linked).filter_map(|name| self.block(name)).chain(ours)
    }
}

fn read_block(class: &Path, name: &str) -> Result<BlockDevice> {
    let sys = class.join(name);
    let text = |file: &str| -> Result<Option<String>> {
        Ok(Some(line(&sys.join(file))?).filter(|text| !text.is_empty()))
    };
    // The link leads to the device's place among the buses.
    let place = fs::canonicalize(&sys).unwrap_or_else(|_| sys.clone());
    let partition_of = match text("partition")? {
        Some(_) => place.parent().and_then(Path::file_name).map(|disk| disk.to_string_lossy().into_owned()),
        None => None,
    };
    let bus = place.to_string_lossy();
    let fabric = line(&place.join("device/transport"))?;
    let network = ["nbd", "rbd", "drbd"].iter().any(|kind| name.starts_with(kind))
        || bus.contains("/session")
        || bus.contains("/rport-")
        || ["tcp", "rdma", "fc"].contains(&fabric.as_str());
    Ok(BlockDevice {
        // A name with a slash in it has an exclamation mark here (as cciss!c0d0).
        path: Path::new("/dev").join(name.replace('!', "/")),
        number: text("dev")?.and_then(|dev| dev.parse().ok()),
        size: text("size")?.and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or_default() * SECTOR,
        read_only: text("ro")?.as_deref() == Some("1"),
        slaves: entries(&sys.join("slaves"))?,
        dm_name: text("dm/name")?,
        dm_uuid: text("dm/uuid")?,
        file: text("loop/backing_file")?.map(PathBuf::from),
        name: name.to_owned(),
        partition_of,
        network,
    })
}

/// Reads mount tables (proc_pid_mountinfo(5)): the third field is the device, the fifth the place; after a hyphen
/// come the kind and the source.
fn read_mounts(text: &str, blocks: &[BlockDevice]) -> Vec<Mount> {
    let mut mounts: BTreeMap<(DeviceNumber, String), Mount> = BTreeMap::new();
    for row in text.lines() {
        let Some((before, after)) = row.split_once(" - ") else { continue };
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        let (Some(number), Some(place), [kind, source, ..]) =
            (before.get(2).and_then(|number| number.parse().ok()), before.get(4), after.as_slice())
        else {
            continue;
        };
        let mount = Mount {
            source: unescape(source),
            kind: (*kind).to_owned(),
            number,
            places: vec![unescape(place).into()],
        };
        // btrfs and others with several devices have a number of their own, and name one of the devices.
        let on_block = blocks.iter().any(|block| block.number == Some(number))
            || blocks.iter().any(|block| block.path == Path::new(&mount.source));
        if on_block || mount.is_network() {
            let key = (number, mount.source.clone());
            let places = mount.places.clone();
            let known = mounts.entry(key).or_insert_with(|| Mount { places: Vec::new(), ..mount });
            known.places.extend(places);
        }
    }
    mounts.into_values().collect()
}

/// Blanks and backslashes are three octal digits in mount tables.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of `/sys/class/block` in a directory: names, and files with their content.
    fn host(blocks: &[(&str, &[(&str, &str)])], mounts: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, files) in blocks {
            for (file, content) in *files {
                let path = root.path().join("sys/class/block").join(name).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{content}\n")).unwrap();
            }
        }
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(root.path().join("proc/self/mountinfo"), mounts).unwrap();
        root
    }

    #[test]
    fn devices_and_mounts_as_the_kernel_tells() {
        let root = host(
            &[
                ("sda", &[("size", "2048"), ("dev", "8:0"), ("ro", "0")]),
                ("nbd0", &[("size", "8"), ("dev", "43:0"), ("ro", "1")]),
                ("nbd1", &[("size", "0"), ("dev", "43:1")]),
                ("ram0", &[("size", "8192"), ("dev", "1:0")]),
                ("dm-0", &[("size", "8"), ("dev", "253:0"), ("dm/uuid", "SMCTL-x"), ("slaves/nbd0", "")]),
                ("dm-1", &[("size", "8"), ("dev", "253:1"), ("dm/uuid", "part1-x"), ("slaves/dm-0", "")]),
                ("dm-2", &[("size", "8"), ("dev", "253:2"), ("dm/uuid", "CRYPT-x"), ("slaves/sda", "")]),
                ("loop0", &[("size", "8"), ("dev", "7:0"), ("loop/backing_file", "/dev/dm-1")]),
                ("loop1", &[("size", "8"), ("dev", "7:1"), ("loop/backing_file", "/dev/thinorigin/a/b")]),
                ("loop2", &[("size", "8"), ("dev", "7:2"), ("loop/backing_file", "/srv/dm-1")]),
            ],
            "22 1 8:0 / / rw - ext4 /dev/sda rw\n\
             23 22 8:0 /srv /mnt/a\\040b rw shared:1 - ext4 /dev/sda rw\n\
             24 22 0:5 / /proc rw - proc proc rw\n\
             25 22 0:44 / /nfs rw - nfs4 server:/export rw\n\
             26 22 0:45 / /tmp rw - tmpfs tmpfs rw\n\
             not a mount\n",
        );
        let survey = Survey::read(root.path()).unwrap();
        let names: Vec<_> = survey.blocks.iter().map(|block| block.name.as_str()).collect();
        assert_eq!(names, ["dm-0", "dm-1", "dm-2", "loop0", "loop1", "loop2", "nbd0", "sda"]);
        let guests: Vec<_> =
            survey.blocks.iter().filter(|it| survey.is_guests(it)).map(|it| it.name.as_str()).collect();
        assert_eq!(guests, ["dm-0", "dm-1", "loop0", "loop1", "nbd0"]);
        let sda = survey.block("sda").unwrap();
        assert_eq!((sda.size, sda.network, sda.read_only), (1 << 20, false, false));
        assert!(survey.block("nbd0").unwrap().network);
        let [nfs, ext4] = survey.mounts.as_slice() else { panic!("{:?}", survey.mounts) };
        assert_eq!((ext4.kind.as_str(), ext4.places.len(), ext4.is_shared()), ("ext4", 2, false));
        assert_eq!(ext4.places[1], Path::new("/mnt/a b"));
        assert!(nfs.is_network() && nfs.is_shared() && nfs.source == "server:/export");
    }

    #[test]
    fn escapes_in_mount_tables() {
        for (text, plain) in [("a\\040b", "a b"), ("\\134", "\\"), ("\\0", "\\0"), ("\\999", "\\999")] {
            assert_eq!(unescape(text), plain, "{text}");
        }
    }
}
