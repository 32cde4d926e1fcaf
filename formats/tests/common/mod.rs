//! What the oracle tests share: test data, qemu-img, and comparing our reading with its.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod counting;
pub(crate) mod images;
pub(crate) mod vhdx;

use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use thinorigin_formats::memory::{Directory, Disk, ReadAt};
use thinorigin_formats::{Extent, Kind, Options};

/// Whether `tool` can be run. If not: fails where THINORIGIN_REQUIRE=1, else says that `test` is skipped.
pub(crate) fn has(test: &str, tool: &str) -> bool {
    let runs = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !runs {
        assert!(
            std::env::var_os("THINORIGIN_REQUIRE").is_none_or(|value| value != "1"),
            "{test} needs {tool}"
        );
        eprintln!("SKIPPED: {test}: needs {tool}");
    }
    runs
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn run(directory: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let output =
        Command::new(program).args(args).current_dir(directory).output().expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    output.stdout
}

/// A deterministic sequence of numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// `size` bytes of disk: stretches of zeros, of text that compresses, and of noise, from 512 bytes to 400 KiB long.
pub(crate) fn disk_content(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut disk = vec![0; size];
    let mut at = 0;
    while at < size {
        let scale = 1 << random.below(11);
        let len = (512 * (1 + random.below(scale)) as usize).min(size - at);
        let part = &mut disk[at..at + len];
        match random.below(5) {
            0 | 1 => {}
            2 => part.chunks_mut(8).for_each(|chunk| {
                let bytes = random.next().to_le_bytes();
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }),
            _ => {
                let word = format!("sector {at:#x} of the disk; ");
                part.iter_mut().zip(word.bytes().cycle()).for_each(|(byte, letter)| *byte = letter);
            }
        }
        at += len;
    }
    disk
}

struct OnDisk {
    file: File,
    len: u64,
}

impl ReadAt for OnDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
}

/// The files below `directory`, by their names relative to it.
pub(crate) fn files(directory: &Path) -> Directory {
    let mut found = Directory::new();
    add_files(&mut found, directory, "");
    found
}

fn add_files(found: &mut Directory, directory: &Path, prefix: &str) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            add_files(found, &entry.path(), &format!("{name}/"));
        } else if entry.file_type().unwrap().is_file() {
            let len = entry.metadata().unwrap().len();
            found.add(&name, OnDisk { file: File::open(entry.path()).unwrap(), len });
        }
    }
}

/// Opens `name` in `directory`.
pub(crate) fn open(directory: &Path, name: &str, options: Options) -> Disk {
    Disk::open(&files(directory), name, options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All of a disk's bytes.
pub(crate) fn content(disk: &mut Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.chain().virtual_size() as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Checks that `disk` holds `expect`: read in one go, and in 200 pieces of any place and length.
pub(crate) fn assert_reads(disk: &mut Disk, expect: &[u8], name: &str) {
    assert_eq!(disk.chain().virtual_size(), expect.len() as u64, "{name}: virtual size");
    let all = content(disk);
    if let Some(at) = all.iter().zip(expect).position(|(ours, theirs)| ours != theirs) {
        panic!("{name}: first difference at {at:#x}");
    }
    if expect.is_empty() {
        return;
    }
    let mut random = Random(7);
    for _ in 0..200 {
        let at = random.below(expect.len() as u64);
        let scale = 1 << random.below(18);
        let len = (1 + random.below(scale)).min(expect.len() as u64 - at) as usize;
        let mut part = vec![0xa5; len];
        disk.read(at, &mut part).unwrap();
        assert!(part == expect[at as usize..at as usize + len], "{name}: {len} bytes at {at:#x}");
    }
}

/// One entry of a map, with the meaning of `qemu-img map --output=json`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) length: u64,
    depth: u64,
    present: bool,
    zero: bool,
    pub(crate) data: bool,
    compressed: bool,
}

/// What we say is where.
pub(crate) fn our_map(disk: &mut Disk) -> Vec<Entry> {
    let mut map: Vec<Entry> = Vec::new();
    let (mut at, size) = (0, disk.chain().virtual_size());
    while at < size {
        let extent = disk.extent(at, size - at).unwrap();
        assert!(extent.start == at && extent.len > 0 && extent.len <= size - at, "{extent:?} at {at:#x}");
        at += extent.len;
        assert_aligned(disk, &extent);
        let data = matches!(extent.kind, Kind::Data { .. } | Kind::Compressed(_));
        push(
            &mut map,
            Entry {
                start: extent.start,
                length: extent.len,
                depth: extent.layer as u64,
                present: !matches!(extent.kind, Kind::Unallocated),
                zero: !data,
                data,
                compressed: matches!(extent.kind, Kind::Compressed(_)) && qemu_tells_compressed(),
            },
        );
    }
    map
}

/// What layers promise by `Info::aligned_units` and `Info::whole_clusters`.
fn assert_aligned(disk: &Disk, extent: &Extent) {
    let layer = &disk.chain().layers()[extent.layer];
    // In a chain, children may cut clusters.
    if let [only] = disk.chain().layers()
        && only.info().whole_clusters
        && matches!(extent.kind, Kind::Data { .. })
    {
        let cluster = only.info().cluster_size.unwrap();
        let end = extent.start + extent.len;
        assert!(extent.start.is_multiple_of(cluster), "{extent:?} in clusters of {cluster}");
        assert!(
            end.is_multiple_of(cluster) || end == only.virtual_size(),
            "{extent:?} in clusters of {cluster}"
        );
    }
    if let Kind::Compressed(unit) = extent.kind
        && layer.info().aligned_units
    {
        let cluster = layer.info().cluster_size.unwrap();
        assert!(unit.guest.is_multiple_of(cluster), "{unit:?} in clusters of {cluster}");
        let inside = cluster.min(layer.virtual_size() - unit.guest);
        assert!((inside..=cluster).contains(&unit.decoded.into()), "{unit:?} in clusters of {cluster}");
    }
}

/// Whether qemu-img's map says what is compressed: from version 8.2 on. If not, ours does not say it either, so that the
/// two can be compared.
fn qemu_tells_compressed() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let directory = tempfile::TempDir::new().unwrap();
        fs::write(directory.path().join("a"), [0; 512]).unwrap();
        let printed = run(directory.path(), "qemu-img", &["map", "--output=json", "-f", "raw", "a"]);
        String::from_utf8_lossy(&printed).contains("compressed")
    })
}

/// What qemu-img says is where.
pub(crate) fn qemu_map(directory: &Path, name: &str, format: &str) -> Vec<Entry> {
    let printed = run(directory, "qemu-img", &["map", "--output=json", "-f", format, name]);
    let entries: Vec<Value> = serde_json::from_slice(&printed).unwrap();
    let mut map = Vec::new();
    for entry in entries {
        let (number, flag) = (|key| entry[key].as_u64().unwrap(), |key| entry[key].as_bool().unwrap());
        push(
            &mut map,
            Entry {
                start: number("start"),
                length: number("length"),
                depth: number("depth"),
                present: flag("present"),
                zero: flag("zero"),
                data: flag("data"),
                compressed: entry["compressed"].as_bool().unwrap_or_default(),
            },
        );
    }
    map
}

/// Appends an entry, merged with the one before if they say the same.
fn push(map: &mut Vec<Entry>, entry: Entry) {
    if let Some(last) = map.last_mut()
        && (last.depth, last.present, last.zero, last.data, last.compressed)
            == (entry.depth, entry.present, entry.zero, entry.data, entry.compressed)
    {
        last.length += entry.length;
        return;
    }
    map.push(entry);
}

/// Writes `content` as a raw file and converts it with qemu-img.
pub(crate) fn convert(directory: &Path, content: &[u8], name: &str, format: &str, more: &[&str]) {
    fs::write(directory.join("content.raw"), content).unwrap();
    let mut args = vec!["convert", "-f", "raw", "-O", format];
    args.extend(more);
    args.extend(["content.raw", name]);
    run(directory, "qemu-img", &args);
}

/// What qemu-img reads from an image.
pub(crate) fn qemu_content(directory: &Path, name: &str, format: &str) -> Vec<u8> {
    run(directory, "qemu-img", &["convert", "-f", format, "-O", "raw", name, "back.raw"]);
    fs::read(directory.join("back.raw")).unwrap()
}
