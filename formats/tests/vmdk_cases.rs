//! vmdk images that no writer makes: damaged, hostile and odd ones, built in memory.

mod common;

use common::images::{
    VMDK_DIRECTORY, VMDK_GRAIN, VMDK_TABLE, descriptor, open_among, open_as, put, read, refusal, vmdk,
    vmdk_stream, zlib,
};
use std::sync::Arc;
use thinorigin_formats::Options;
use thinorigin_formats::memory::{Directory, Disk, ReadAt};

/// The good image with `bytes` at `at`.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = vmdk();
    put(&mut image, at, bytes);
    image
}

/// Checks that `image` is refused with a message that contains `expect`.
fn refuse(name: &str, image: &[u8], expect: &str) {
    let message = refusal(name, open_as(image, None));
    assert!(message.contains(expect), "{name}: {message}");
}

/// Checks that `image` opens and that reading guest offset 0 fails with `expect`.
fn damaged(name: &str, image: &[u8], expect: &str) {
    let mut disk = open_as(image, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    let message = read(&mut disk, 0, 512).expect_err(name);
    assert!(message.contains(expect), "{name}: {message}");
}

/// Checks that `image` opens and begins with `expect`.
fn reads(name: &str, image: &[u8], expect: u8) {
    let mut disk = open_as(image, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(read(&mut disk, 0, 4096), Ok(vec![expect; 4096]), "{name}");
}

#[test]
fn header_fields_out_of_range() {
    reads("good", &vmdk(), 0x33);
    let le32 = |at, value: u32| with(at, &value.to_le_bytes());
    let le64 = |at, value: u64| with(at, &value.to_le_bytes());
    refuse("version-4", &le32(4, 4), "vmdk version");
    refuse("version-huge", &le32(4, 0x7fff_ffff), "vmdk version");
    reads("sparse-v2", &le32(4, 2), 0x33);
    reads("sparse-v3", &le32(4, 3), 0x33);
    refuse("grain-0", &le64(20, 0), "grainSize");
    refuse("grain-3", &le64(20, 3), "grainSize");
    refuse("grain-huge", &le64(20, 1 << 40), "grainSize");
    refuse("gtes-0", &le32(44, 0), "numGTEsPerGT");
    refuse("gtes-huge", &le32(44, 0x7fff_ffff), "numGTEsPerGT");
    refuse("cap-huge", &le64(12, 1 << 60), "capacity");
    refuse("cap-max", &le64(12, u64::MAX), "capacity");
    refuse("cap with a directory that is too large", &le64(12, 1 << 50), "grain directory");
    refuse("gd-eof", &le64(56, 1 << 30), "its file ends");
    refuse("gd-neg", &le64(56, 1 << 63), "gdOffset");
    refuse("desc-huge", &le64(36, 1 << 40), "descriptor");
    refuse("desc-eof", &le64(28, 1 << 20), "its file ends");
    refuse("comp-alg", &with(77, &[2]), "compressAlgorithm");
    refuse("nl", &with(73, b"\n \n\n"), "transferred as text");
    refuse("footer-bad", &le64(56, u64::MAX), "no footer");
    refuse("overhead-eof", &le64(64, 1 << 40), "its file ends");
    refuse("trunc-hdr", &vmdk()[..40], "its file ends");
    refuse("trunc-gt", &vmdk()[..VMDK_TABLE], "its file ends");
    let dirty = with(72, &[1]);
    reads("sparse-dirty", &dirty, 0x33);
    assert_eq!(open_as(&dirty, None).unwrap().chain().layers()[0].info().warnings.len(), 1);
    let mut bare = vmdk();
    bare[512..0x2000].fill(0);
    refuse("sparse-noembed", &bare, "open the descriptor");
    for grain_sectors in [1u64, 8, 16, 512, 1024] {
        let mut image = le64(20, grain_sectors);
        put(&mut image, 12, &(grain_sectors * 4).to_le_bytes());
        image.resize(VMDK_GRAIN + grain_sectors as usize * 512, 0x33);
        let mut disk = open_as(&image, None).unwrap();
        let grain = grain_sectors as usize * 512;
        let border = read(&mut disk, grain as u64 - 512, 1024);
        assert_eq!(border, Ok([[0x33; 512], [0; 512]].concat()), "sparse-grain{grain_sectors}");
    }
    // The last grain is not whole.
    let odd = open_as(&le64(12, 2047), None).unwrap();
    assert_eq!(odd.chain().virtual_size(), 2047 * 512, "sparse-std");
}

#[test]
fn grain_directories_and_tables() {
    damaged("gte-eof", &with(VMDK_TABLE, &0x10_0000u32.to_le_bytes()), "past the end");
    damaged("gte cut", &vmdk()[..VMDK_GRAIN + 512], "past the end");
    let mut image = vmdk();
    put(&mut image, 64, &0u64.to_le_bytes());
    put(&mut image, VMDK_DIRECTORY, &0x10_0000u32.to_le_bytes());
    damaged("gt-eof", &image, "leaf table");
    damaged("gte 1 without the flag", &with(VMDK_TABLE, &1u32.to_le_bytes()), "metadata");
    let mut zeroed = with(VMDK_TABLE, &1u32.to_le_bytes());
    put(&mut zeroed, 8, &5u32.to_le_bytes());
    reads("zeroed-gte", &zeroed, 0);
    // The redundant directory, at 0x3e00, stands in for one that is lost.
    let mut image = vmdk();
    put(&mut image, 8, &3u32.to_le_bytes());
    put(&mut image, 48, &(0x3e00u64 / 512).to_le_bytes());
    put(&mut image, 0x3e00, &(VMDK_TABLE as u32 / 512).to_le_bytes());
    for bad in [[0; 4], [0xff; 4]] {
        put(&mut image, VMDK_DIRECTORY, &bad);
        reads("primary-gd-bad", &image, 0x33);
        assert_eq!(open_as(&image, None).unwrap().chain().layers()[0].info().warnings.len(), 1);
    }
    for gtes in [1, 128, 511] {
        let mut image = with(44, &u32::to_le_bytes(gtes));
        put(&mut image, VMDK_DIRECTORY, &[0; 64]);
        put(&mut image, VMDK_DIRECTORY, &(VMDK_TABLE as u32 / 512).to_le_bytes());
        reads("sparse-gtes", &image, 0x33);
    }
}

#[test]
fn compressed_grains() {
    let stored = zlib(&[0x44; 0x10000], 6);
    let len = stored.len() as u32;
    reads("stream", &vmdk_stream(Some((0, len)), &stored), 0x44);
    reads("stream-nomarkers", &vmdk_stream(None, &stored), 0x44);
    let noise: Vec<u8> =
        (0..0x10000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let larger = zlib(&noise, 0);
    assert!(larger.len() > noise.len());
    let mut disk = open_as(&vmdk_stream(Some((0, larger.len() as u32)), &larger), None).unwrap();
    assert_eq!(read(&mut disk, 0, 0x10000), Ok(noise), "stream-stored");
    damaged("stream-size-huge", &vmdk_stream(Some((0, u32::MAX)), &stored), "more bytes than there are");
    damaged("stream-size-0", &vmdk_stream(Some((0, 0)), &stored), "empty");
    damaged("stream-lba", &vmdk_stream(Some((128, len)), &stored), "another sector");
    damaged("stream-garbage", &vmdk_stream(Some((0, 512)), &[0xee; 512]), "damaged");
    let mut wrong = stored.clone();
    *wrong.last_mut().unwrap() ^= 1;
    damaged("a wrong checksum", &vmdk_stream(Some((0, len)), &wrong), "checksum");
    let short = zlib(&[0x44; 0x8000], 6);
    damaged("a short grain in the middle", &vmdk_stream(Some((0, short.len() as u32)), &short), "too soon");
    let bomb = zlib(&vec![0x55; 50 << 20], 9);
    reads("stream-bomb: only a grain of it", &vmdk_stream(Some((0, bomb.len() as u32)), &bomb), 0x55);
    let stored = zlib(&[0x44; 8192], 6);
    let mut image = vmdk_stream(Some((0, stored.len() as u32)), &stored);
    put(&mut image, 20, &16u64.to_le_bytes());
    let mut disk = open_as(&image, None).unwrap();
    assert_eq!(read(&mut disk, 8191, 2), Ok(vec![0x44, 0]), "stream-grain16");
    for version in [1u32, 2, 3] {
        put(&mut image, 4, &version.to_le_bytes());
        assert_eq!(read(&mut open_as(&image, None).unwrap(), 0, 1), Ok(vec![0x44]), "stream-v{version}");
    }
    put(&mut image, VMDK_TABLE, &[0; 4]);
    reads("stream without grains", &image, 0);
    put(&mut image, VMDK_DIRECTORY, &[0; 4]);
    reads("stream-empty", &image, 0);
    // A disk that ends inside its only grain, which holds no more than the disk.
    let tail = zlib(&[0x66; 0x3000], 6);
    let mut image = vmdk_stream(Some((0, tail.len() as u32)), &tail);
    put(&mut image, 12, &(0x3000u64 / 512).to_le_bytes());
    let mut disk = open_as(&image, None).unwrap();
    assert_eq!(disk.chain().virtual_size(), 0x3000);
    assert_eq!(read(&mut disk, 0, 0x3000), Ok(vec![0x66; 0x3000]), "stream-shorttail");
}

#[test]
fn footers_at_the_end() {
    let stored = zlib(&[0x44; 0x10000], 6);
    let mut image = vmdk_stream(Some((0, stored.len() as u32)), &stored);
    let footer = image[..512].to_vec();
    put(&mut image, 56, &u64::MAX.to_le_bytes());
    let mut marker = vec![0; 512];
    marker[..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
    image.extend(&marker);
    let at = image.len();
    image.extend(&footer);
    image.extend([0; 512]);
    reads("stream-footer", &image, 0x44);
    let mut padded = image.clone();
    padded.resize(padded.len() + 9 * 512, 0);
    reads("stream-trailing-padding", &padded, 0x44);
    let mut other = image.clone();
    put(&mut other, at + 12, &4096u64.to_le_bytes());
    refuse("a footer of another disk", &other, "contradicts the header");
    let mut other = image.clone();
    put(&mut other, at + 56, &u64::MAX.to_le_bytes());
    refuse("a footer that points at a footer", &other, "contradicts the header");
    image[at - 512] = 0;
    refuse("a footer without its marker", &image, "no footer marker");
}

#[test]
fn descriptors_as_people_and_programs_write_them() {
    let flat: Vec<u8> = (0..8u8).flat_map(|number| [number; 512]).collect();
    let open =
        |text: &[u8]| open_among(&[("d.vmdk", text), ("a.vmdk", &flat), ("l\u{e4}.vmdk", &flat)], None);
    let good = |name: &str, text: &[u8]| {
        let mut disk = open(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read(&mut disk, 512, 2), Ok(vec![1; 2]), "{name}");
        disk
    };
    let line = "RW 8 FLAT \"a.vmdk\" 0";
    let plain = descriptor("ffffffff", line);
    let front = format!("\r\n  \r\n# made by hand\r\n{}", plain.replace('\n', "\r\n"));
    good("comments and blanks in front, desc-crlf", front.as_bytes());
    let disk = good(
        "desc-case, blanks around the signs",
        format!("# disk descriptorfile\nVERSION = 1\ncid\t=\t1\nParentCID = FFFFFFFF\n CREATETYPE = \"vmfs\"\n{line}").as_bytes(),
    );
    assert_eq!(disk.chain().layers()[0].info().features, ["vmfs"]);
    let more = "version=3\nCID=fffffffe\nlongContentID=0123456789abcdef0123456789abcdef\nisNativeSnapshot=\"no\"\n\
                changeTrackPath=\"/etc/passwd\"\nddb.encoding = \"UTF-8\"\n";
    let version3 = plain.replace("version=1\nCID=00000001\n", more);
    good("desc-v4extras: the path of a change list is followed by nothing", version3.as_bytes());
    let named = |encoding: &str, name: &[u8]| {
        let head = format!("# Disk DescriptorFile\nversion=1\nencoding=\"{encoding}\"\nCID=1\nRW 8 FLAT \"");
        [head.as_bytes(), name, b"\" 0\n"].concat()
    };
    good("desc-utf8name", &named("UTF-8", "l\u{e4}.vmdk".as_bytes()));
    good("windows-1252", &named("windows-1252", b"l\xe4.vmdk"));
    for (encoding, name) in
        [("GBK", &b"\xb0\xa1.vmdk"[..]), ("UTF-8", b"l\xe4.vmdk"), ("windows-1252", b"\x80.vmdk")]
    {
        let message = refusal(encoding, open(&named(encoding, name)));
        assert!(message.contains("neither UTF-8 nor windows-1252"), "{message}");
    }
    // What comes behind a NUL is padding.
    good("padding", &[plain.as_bytes(), &[0, 0xff, 0xfe]].concat());
    let message = refusal("cid", open(plain.replace("00000001", "12345678f").as_bytes()));
    assert!(message.contains("a CID is not"), "{message}");
}

/// Opens a descriptor with these extent lines beside a flat file of 64 sectors, each of which holds its number.
fn described(extents: &str) -> Result<thinorigin_formats::memory::Disk, thinorigin_formats::memory::Error> {
    let flat: Vec<u8> = (0..64u8).flat_map(|number| [number; 512]).collect();
    let text = descriptor("ffffffff", extents);
    open_among(
        &[
            ("d.vmdk", text.as_bytes()),
            ("a-flat.vmdk", &flat),
            ("sub/b.vmdk", &flat),
            ("f l\u{e4}t.vmdk", &flat),
        ],
        None,
    )
}

/// The first byte of each sector.
fn sectors(extents: &str) -> Vec<u8> {
    let mut disk = described(extents).unwrap_or_else(|error| panic!("{extents}: {error}"));
    let size = disk.chain().virtual_size();
    let bytes = read(&mut disk, 0, size as usize).unwrap();
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn extents_of_all_kinds() {
    assert_eq!(sectors("RW 3 FLAT \"a-flat.vmdk\" 0"), [0, 1, 2], "desc-flat");
    assert_eq!(sectors("RW 3 VMFS \"a-flat.vmdk\""), [0, 1, 2], "desc-vmfs");
    assert_eq!(sectors("RDONLY 2 FLAT \"a-flat.vmdk\" 7"), [7, 8], "desc-rdonly, desc-offset");
    assert_eq!(sectors("rw 2 flat \"sub/b.vmdk\" 1"), [1, 2], "desc-case, desc-subdir");
    assert_eq!(sectors("\t RW  2\tFLAT   \"f l\u{e4}t.vmdk\"  3 "), [3, 4], "desc-indent, desc-utf8name");
    let rows = "RW 2 FLAT \"a-flat.vmdk\" 5\r\nRW 2 ZERO\r\nRW 1 FLAT \"a-flat.vmdk\" 9\r\n";
    assert_eq!(sectors(rows), [5, 6, 0, 0, 9], "desc-multi-flat, desc-zero, desc-same-file, desc-crlf");
    let mut disk =
        described("RW 1 FLAT \"a-flat.vmdk\" 5\nNOACCESS 2 FLAT \"gone\" 0\nRW 1 FLAT \"a-flat.vmdk\" 6")
            .unwrap();
    assert_eq!(read(&mut disk, 3 * 512, 512), Ok(vec![6; 512]), "desc-noaccess keeps the address space");
    assert!(read(&mut disk, 512, 512).unwrap_err().contains("not accessible"));
    let text = descriptor("ffffffff", "RW 2048 SPARSE \"a.vmdk\"");
    let mut disk = open_among(&[("d.vmdk", text.as_bytes()), ("a.vmdk", &vmdk())], None).unwrap();
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![0x33; 512]), "desc-sparse-extent");
    let long = format!("{text}{}", "ddb.comment = \"x\"\n".repeat(3500));
    assert!(open_among(&[("d.vmdk", long.as_bytes()), ("a.vmdk", &vmdk())], None).is_ok(), "desc-long-ddb");
}

/// A file that stands under many names.
#[derive(Clone)]
struct Shared(Arc<Vec<u8>>);

impl ReadAt for Shared {
    fn len(&self) -> u64 {
        self.0.as_ref().len() as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.as_ref().read_at(at, buf)
    }
}

#[test]
fn as_many_sparse_extents_as_are_read() {
    let lines: String = (0..1024).map(|number| format!("RW 2048 SPARSE \"e{number}.vmdk\"\n")).collect();
    let mut directory = Directory::new();
    directory.add("d.vmdk", descriptor("ffffffff", &lines).into_bytes());
    let extent = Shared(Arc::new(vmdk()));
    (0..1024).for_each(|number| directory.add(&format!("e{number}.vmdk"), extent.clone()));
    let mut disk = Disk::open(&directory, "d.vmdk", Options::default()).unwrap();
    assert_eq!(disk.chain().virtual_size(), 1024 << 20);
    assert_eq!(read(&mut disk, (1023 << 20) + 0xffff, 2), Ok(vec![0x33, 0]));
}

#[test]
fn extents_that_are_refused() {
    let refused = |extents: &str, expect: &str| {
        let message = refusal(extents, described(extents));
        assert!(message.contains(expect), "{extents}: {message}");
    };
    for name in ["/etc/passwd", "../../../../../../../etc/passwd", "/dev/sda", "http://169.254.169.254/"] {
        refused(&format!("RW 8 FLAT \"{name}\" 0"), name);
    }
    refused("RW 8 FLAT \"json:{'driver':'file','filename':'/etc/passwd'}\" 0", "json:");
    refused("RW 8 VMFS \"/etc/shadow\"", "/etc/shadow");
    refused("RW 8 FLAT \"\\\\\\\\.\\\\PhysicalDrive0\" 0 partitionUUID x", "PhysicalDrive0");
    refused("RW 8 VMFSRDM \"/vmfs/devices/disks/x\"", "raw device");
    refused("RW 8 FLAT \"d.vmdk\" 0", "refers to itself");
    refused("RW 8 SPARSE \"d.vmdk\"", "refers to itself");
    refused("RW 8 SPARSE \"a-flat.vmdk\"", "no vmdk signature");
    refused("RW 65 FLAT \"a-flat.vmdk\" 0", "its file ends");
    refused("RW 8 FLAT \"a-flat.vmdk\" 60", "its file ends");
    refused("RW 8 FLAT \"\" 0", "no name");
    refused("RW x FLAT \"a\" 0", "malformed");
    refused("RW 8 FLAT a 0", "malformed");
    refused("RW 8 SPLAT \"a\" 0", "not known");
    refused("RW 0 ZERO", "sectors");
    refused("", "no extents");
    refused(&"RW 9223372036854775807 ZERO\n".repeat(3), "sectors of a vmdk extent");
    refused(&"RW 13835058055282163 ZERO\n".repeat(3), "sectors of a vmdk extent");
    refused(&"RW 1 ZERO\n".repeat(200_000), "descriptor");
    refused(&"RW 1 ZERO\n".repeat(2000), "more than 1024 extents");
    refused(&format!("RW 8 FLAT \"{}\" 0", "a".repeat(5000)), "1024 bytes");
}

#[test]
fn parents() {
    let child = |extra: &str, parent: &str| {
        let mut image = vmdk();
        image[512..0x2000].fill(0);
        let text = format!("{}{extra}", descriptor(parent, "RW 2048 SPARSE \"child.vmdk\""));
        put(&mut image, 512, text.as_bytes());
        put(&mut image, VMDK_TABLE, &[0; 4]);
        image
    };
    let hinted = child("parentFileNameHint=\"C:\\vm\\a.vmdk\"\n", "00000001");
    let mut disk = open_among(&[("child.vmdk", &hinted), ("a.vmdk", &vmdk())], None).unwrap();
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![0x33; 512]), "an absent grain is the parent's");
    let message = refusal("missing", open_among(&[("child.vmdk", &hinted)], None));
    assert!(message.contains("a.vmdk"), "{message}");
    let other = child("parentFileNameHint=\"a.vmdk\"\n", "00000002");
    let message = refusal("cid-mismatch", open_among(&[("child.vmdk", &other), ("a.vmdk", &vmdk())], None));
    assert!(message.contains("not the parent"), "{message}");
    refuse("parentcid-nohint", &child("", "00000001"), "parentFileNameHint");
    let uuid = "ddb.uuid.parent=\"dc18b26a-62d6-4379-a78b-f590458880ce\"\n";
    refuse("VirtualBox names no file", &child(uuid, "ffffffff"), "parentFileNameHint");
    let none = "ddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\n";
    reads("VirtualBox without a parent", &child(none, "ffffffff"), 0);
    let own = child("parentFileNameHint=\"child.vmdk\"\n", "00000001");
    let message = refusal("self", open_among(&[("child.vmdk", &own)], None));
    assert!(message.contains("refers to itself"), "{message}");
    let etc = child("parentFileNameHint=\"/etc/passwd\"\n", "00000001");
    let message = refusal("etc", open_among(&[("child.vmdk", &etc)], None));
    assert!(message.contains("/etc/passwd"), "{message}");
    // A zeroed grain hides the parent, an absent one shows it.
    let mut zeroed = hinted;
    put(&mut zeroed, 8, &5u32.to_le_bytes());
    put(&mut zeroed, VMDK_TABLE, &1u32.to_le_bytes());
    let mut disk = open_among(&[("child.vmdk", &zeroed), ("a.vmdk", &vmdk())], None).unwrap();
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![0; 512]), "chain-zeroed-grain");
}

#[test]
fn cowd_extents() {
    for grain_sectors in [1u32, 16] {
        let mut image = vec![0; 512 * 4];
        put(&mut image, 0, b"COWD\x01\0\0\0\x03\0\0\0");
        for (at, value) in [(12, 2048), (16, grain_sectors), (20, 4), (24, 1)] {
            put(&mut image, at, &u32::to_le_bytes(value));
        }
        put(&mut image, 4 * 512, &8u32.to_le_bytes());
        put(&mut image, 8 * 512, &[0; 16384]);
        put(&mut image, 8 * 512 + 4, &64u32.to_le_bytes());
        put(&mut image, 64 * 512, &vec![0x88; 512 * grain_sectors as usize]);
        let text = descriptor("ffffffff", "RW 2048 VMFSSPARSE \"a-delta.vmdk\"");
        let files = [("d.vmdk", text.as_bytes()), ("a-delta.vmdk", &image)];
        let len = 512 * grain_sectors as usize;
        for mut disk in [open_among(&files, None).unwrap(), open_as(&image, None).unwrap()] {
            let expect = [vec![0; len], vec![0x88; len], vec![0; len]].concat();
            assert_eq!(read(&mut disk, 0, 3 * len), Ok(expect));
        }
        put(&mut image, 24, &[0; 4]);
        refuse("a directory that is too small", &image, "COWD directory size");
    }
}

/// A snapshot of ESX: a descriptor of this type over a flat disk of 0x99 bytes, with its own extent.
fn snapshot_of_flat(kind: &str, sectors: u64, extent: &[u8]) -> thinorigin_formats::memory::Disk {
    let base = descriptor("ffffffff", &format!("RW {sectors} VMFS \"a-flat.vmdk\""));
    let top = descriptor("00000001", &format!("RW {sectors} {kind} \"a-delta.vmdk\""));
    let top = format!("{top}parentFileNameHint=\"/vmfs/volumes/1/vm/a.vmdk\"\n");
    let flat = vec![0x99; sectors as usize * 512];
    let files = [
        ("a-000001.vmdk", top.as_bytes()),
        ("a.vmdk", base.as_bytes()),
        ("a-flat.vmdk", &flat),
        ("a-delta.vmdk", extent),
    ];
    open_among(&files, None).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

#[test]
fn snapshots_of_esx_over_a_flat_disk() {
    let mut cowd = vec![0; 512 * 4];
    put(&mut cowd, 0, b"COWD\x01\0\0\0\x03\0\0\0");
    for (at, value) in [(12, 2048), (16, 1), (20, 4), (24, 1)] {
        put(&mut cowd, at, &u32::to_le_bytes(value));
    }
    put(&mut cowd, 4 * 512, &8u32.to_le_bytes());
    put(&mut cowd, 8 * 512, &[0; 16384]);
    // Sector 1 is written with zeros, and they hide the parent.
    put(&mut cowd, 8 * 512 + 4, &64u32.to_le_bytes());
    put(&mut cowd, 64 * 512, &[0; 512]);
    let mut disk = snapshot_of_flat("VMFSSPARSE", 2048, &cowd);
    let expect = [[0x99; 512], [0; 512], [0x99; 512]].concat();
    assert_eq!(read(&mut disk, 0, 1536), Ok(expect), "chain-flat-parent+cowd");
    let mut disk = snapshot_of_flat("SESPARSE", 65536, &sesparse());
    let grains = [0x99, 0xaa, 0, 0].map(|byte| [byte; 4096]).concat();
    assert_eq!(read(&mut disk, 0, 16384), Ok(grains), "chain-flat-parent+sesparse");
    assert_eq!(read(&mut disk, 20480, 512), Ok(vec![0x99; 512]), "an absent grain is the parent's");
}

/// A seSparse extent of 32 MiB, whose grain 1 holds 0xaa; grains 2 and 3 are unmapped and zeroed.
fn sesparse() -> Vec<u8> {
    let mut image = Vec::new();
    let fields: [(usize, u64); 12] = [
        (0, 0xcafe_babe),
        (8, 0x2_0000_0001),
        (16, 65536),
        (24, 8),
        (32, 64),
        (80, 1),
        (88, 1),
        (128, 8),
        (136, 8),
        (144, 64),
        (192, 1024),
        (200, 4096),
    ];
    for (at, value) in fields {
        put(&mut image, at, &value.to_le_bytes());
    }
    put(&mut image, 512, &0xcafe_cafeu64.to_le_bytes());
    put(&mut image, 8 * 512, &0x1000_0000_0000_0001u64.to_le_bytes());
    // Table 1, at sector 64 + 64. Grain number 5 is stored with its low 12 bits on top.
    let table = 128 * 512;
    put(&mut image, table + 8, &(3u64 << 60 | 5 << 48).to_le_bytes());
    put(&mut image, table + 16, &(1u64 << 60).to_le_bytes());
    put(&mut image, table + 24, &(2u64 << 60).to_le_bytes());
    put(&mut image, table + 32, &(7u64 << 60).to_le_bytes());
    put(&mut image, 1024 * 512 + 5 * 4096, &[0xaa; 4096]);
    image
}

#[test]
fn sesparse_extents() {
    let image = sesparse();
    let text = descriptor("ffffffff", "RW 65536 SESPARSE \"a-sesparse.vmdk\"");
    let mut disk = open_among(&[("d.vmdk", text.as_bytes()), ("a-sesparse.vmdk", &image)], None).unwrap();
    let expect = [vec![0; 4096], vec![0xaa; 4096], vec![0; 8192]].concat();
    assert_eq!(read(&mut disk, 0, 16384), Ok(expect));
    assert!(read(&mut disk, 16384, 512).unwrap_err().contains("undefined state"));
    assert_eq!(read(&mut disk, 20480, 512), Ok(vec![0; 512]));
    for (name, at, expect) in [
        ("version", 8, "version"),
        ("grain", 24, "grain size"),
        ("volatile", 512, "0xcafecafe"),
        ("journal", 512 + 24, "journal"),
    ] {
        let mut image = sesparse();
        image[at] ^= 0x10;
        refuse(name, &image, expect);
    }
}
