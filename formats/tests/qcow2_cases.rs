//! qcow2 images that no writer makes: damaged, hostile and odd ones, built in memory.

mod common;

use common::images::{deflate, open_among, open_as, put, qcow2, qcow2_over, read, refusal};
use std::io::Write;
use thinorigin_formats::memory::{Directory, Disk};
use thinorigin_formats::{Format, Options};

const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;

/// The good image with `bytes` at `at`.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = qcow2();
    put(&mut image, at, bytes);
    image
}

/// The good image with incompatible feature bits.
fn with_bits(bits: u64) -> Vec<u8> {
    with(72, &bits.to_be_bytes())
}

/// Checks that `image` is refused with a message that contains `expect`.
fn refuse(name: &str, image: &[u8], expect: &str) {
    let message = refusal(name, open_as(image, None));
    assert!(message.contains(expect), "{name}: {message}");
}

/// Checks that `image` opens, that reading guest offset 0 fails with `expect`, and that the rest still reads.
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
fn the_good_image_reads() {
    reads("good", &qcow2(), 0x11);
    assert_eq!(read(&mut open_as(&qcow2(), None).unwrap(), 0x10000, 512), Ok(vec![0; 512]));
}

#[test]
fn a_header_cut_short_says_how_long_it_has_to_be() {
    for (len, needs) in [(6, "0x48"), (0x47, "0x68"), (0x67, "0x68")] {
        refuse("cut", &qcow2()[..len], &format!("needs {needs} bytes, but its file ends at {len:#x}"));
    }
    let mut old = with(4, &2_u32.to_be_bytes());
    old.truncate(0x47);
    refuse("cut", &old, "needs 0x48 bytes, but its file ends at 0x47");
}

#[test]
fn header_fields_out_of_range() {
    let good = qcow2();
    let be32 = |at, value: u32| with(at, &value.to_be_bytes());
    let be64 = |at, value: u64| with(at, &value.to_be_bytes());
    for bits in [0, 8, 22, 63, u32::MAX] {
        refuse("cluster_bits", &be32(20, bits), "cluster_bits");
    }
    refuse("size-huge", &be64(24, 1 << 63), "qcow2 size");
    refuse("size-max", &be64(24, u64::MAX - 511), "qcow2 size");
    refuse("l1size-small", &be32(36, 0), "too small for the size");
    refuse("l1size-huge", &be32(36, 0x7fff_ffff), "l1_size");
    refuse("l1size-wrap", &be32(36, 0x2000_0001), "l1_size");
    // A table that is longer than the disk needs is usual: what is left of it is for the state of a machine.
    reads("a longer L1 table", &be32(36, 0x2000), 0x11);
    let mut both = be64(24, 1 << 62);
    put(&mut both, 36, &(4u32 << 20).to_be_bytes());
    refuse("a disk larger than any table", &both, "too small for the size");
    refuse("l1off-unaligned", &be64(40, 0x10200), "l1_table_offset");
    refuse("l1off-eof", &be64(40, 0x100_0000), "its file ends");
    refuse("l1off-neg", &be64(40, 1 << 63), "l1_table_offset");
    refuse("rt-huge", &be32(56, 0x7fff_ffff), "refcount_table_clusters");
    refuse("snap-huge", &be32(60, 0x7fff_ffff), "nb_snapshots");
    refuse("snap-off", &be64(64, 1 << 63), "snapshots_offset");
    refuse("hdrlen-small", &be32(100, 72), "header_length");
    refuse("hdrlen-huge", &be32(100, u32::MAX), "header_length");
    refuse("refcount-order", &be32(96, 7), "refcount_order");
    refuse("version-0", &be32(4, 0), "only 2 and 3");
    refuse("version-4", &be32(4, 4), "qcow2 version");
    refuse("version-1", &be32(4, 1), "qcow cluster_bits");
    refuse("hdr-trunc", &good[..50], "its file ends");
    refuse("hdr-only", &good[..72], "its file ends");
    refuse("magic-only", &good[..4], "its file ends");
    refuse("enc-aes", &be32(32, 1), "AES");
    refuse("enc-luks", &be32(32, 2), "LUKS");
    refuse("enc-unknown", &be32(32, 9), "crypt_method");
}

#[test]
fn feature_bits() {
    reads("lazy-dirty", &with_bits(DIRTY), 0x11);
    reads("corrupt-bit", &with_bits(CORRUPT), 0x11);
    let disk = open_as(&with_bits(DIRTY | CORRUPT), None).unwrap();
    assert_eq!(disk.chain().layers()[0].info().warnings.len(), 2);
    reads("unknown-compat-autoclear", &with(80, &[0x80; 16]), 0x11);
    refuse("unknown-incompat", &with_bits(1 << 40), "bit 40 (unnamed)");
    let mut named = with_bits(1 << 40);
    let mut table = vec![0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 48, 0, 40];
    table.extend(b"frobnication\x1b");
    put(&mut named, 112, &table);
    refuse("unknown-incompat, named", &named, "bit 40 (frobnication?)");
    refuse(
        "comptype-bad",
        &with(72, &[&COMPRESSION.to_be_bytes()[..], &[0; 16], &[0, 0, 0, 4, 0, 0, 0, 112, 7]].concat()),
        "compression_type",
    );
    refuse("comptype-nobit", &with(104, &[1]), "contradicts");
    refuse("comptype-zero", &with_bits(COMPRESSION), "contradicts");
    let mut small = with_bits(EXTENDED_L2);
    put(&mut small, 20, &13u32.to_be_bytes());
    refuse("extl2-small", &small, "extended L2");
    refuse("datafile-noname", &with_bits(DATA_FILE), "does not name it");
}

#[test]
fn extensions() {
    refuse("ext-len", &with(112, &[1, 2, 3, 4, 255, 255, 255, 255]), "header extension");
    reads("unknown-ext", &with(112, &[&[1, 2, 3, 4, 0, 0, 0, 13][..], &[9; 13]].concat()), 0x11);
    reads("no-ext", &qcow2(), 0x11);
    let mut v2 = qcow2();
    put(&mut v2, 4, &2u32.to_be_bytes());
    v2[72..112].fill(0);
    reads("v2", &v2, 0x11);
    let mut long = qcow2();
    put(&mut long, 100, &144u32.to_be_bytes());
    long[112..144].fill(0xee);
    reads("hdr-long", &long, 0x11);
    reads("hdr104", &with(100, &104u32.to_be_bytes()), 0x11);
}

#[test]
fn what_a_reader_does_not_need_may_be_anything() {
    let mut refcounts = with(48, &0x30000u64.to_be_bytes());
    put(&mut refcounts, 56, &1u32.to_be_bytes());
    reads("refcount-garbage", &refcounts, 0x11);
    let mut snapshots = with(60, &2u32.to_be_bytes());
    put(&mut snapshots, 64, &0x30000u64.to_be_bytes());
    reads("a table of snapshots that is none", &snapshots, 0x11);
    let mut directory = Directory::new();
    directory.add("a", snapshots);
    let options = Options { snapshot: Some("1".to_owned()), ..Options::default() };
    let message = refusal("asked for one of them", Disk::open(&directory, "a", options));
    assert!(message.contains("of a qcow2 snapshot"), "{message}");
    // Bitmaps, of which autoclear bit 0 says that they are valid, and a LUKS header in an image that is not encrypted.
    let mut extensions = with(88, &1u64.to_be_bytes());
    let bitmaps = [&0x2385_2875u32.to_be_bytes()[..], &[0, 0, 0, 24], &[0xee; 24]].concat();
    let luks = [&0x0537_be77u32.to_be_bytes()[..], &[0, 0, 0, 16], &[0xee; 16]].concat();
    put(&mut extensions, 112, &[bitmaps, luks].concat());
    reads("bitmaps", &extensions, 0x11);
    let disk = open_as(&extensions, None).unwrap();
    assert!(disk.chain().layers()[0].info().features.contains(&"bitmaps".to_owned()));
}

/// The good image with its clusters in an external data file called `name`.
fn with_data_file(name: &[u8]) -> Vec<u8> {
    let mut image = with_bits(DATA_FILE);
    put(&mut image, 112, &0x4441_5441u32.to_be_bytes());
    put(&mut image, 116, &(name.len() as u32).to_be_bytes());
    put(&mut image, 120, name);
    image
}

#[test]
fn external_data_files() {
    let image = with_data_file(b"data");
    let data = [vec![0x66; 0x30000], vec![0x55; 0x10000]].concat();
    let open = |image: &[u8]| open_among(&[("top", image), ("data", &data)], None);
    let first = |entry: u64| {
        let mut image = image.clone();
        put(&mut image, 0x20000, &entry.to_be_bytes());
        read(&mut open(&image).unwrap(), 0, 4)
    };
    assert_eq!(read(&mut open(&image).unwrap(), 0, 4), Ok(vec![0x55; 4]));
    assert_eq!(first(1 << 63), Ok(vec![0x66; 4]), "its first cluster is data, too");
    assert_eq!(first(0), Ok(vec![0; 4]));
    assert!(first(0x100_0000 | 1 << 63).unwrap_err().contains("past the end"));
    assert!(first(0x30000 | 1 << 62).unwrap_err().contains("no compressed data"));
    let message = refusal("datafile-missing", open_among(&[("top", &image)], None));
    assert!(message.contains("\"data\""), "{message}");
    refuse("datafile-emptyname", &with_data_file(b""), "its name is empty");
    refuse("datafile-nul", &with_data_file(b"a\0b"), "data file name");
    let message = refusal("itself", open_among(&[("top", &with_data_file(b"top"))], None));
    assert!(message.contains("refers to itself"), "{message}");
    let mut raw = image.clone();
    put(&mut raw, 88, &2u64.to_be_bytes());
    assert_eq!(read(&mut open(&raw).unwrap(), 0, 4), Ok(vec![0x55; 4]), "datafile-raw-on");
    put(&mut raw, 8, &0x400u64.to_be_bytes());
    put(&mut raw, 16, &1u32.to_be_bytes());
    put(&mut raw, 0x400, b"x");
    let message = refusal("raw, and on a backing file", open(&raw));
    assert!(message.contains("marked raw"), "{message}");
}

#[test]
fn names_of_backing_files_are_data() {
    // None of these is in the image's directory: all are refused, by name.
    let hostile = [
        "/etc/passwd",
        "../../../../../../../../etc/hostname",
        "http://169.254.169.254/latest/meta-data/",
        "nbd://127.0.0.1:1/x",
        "ssh://root@127.0.0.1/etc/shadow",
        "rbd:pool/img",
        "/dev/fdset/1",
        "/proc/self/environ",
        "/dev/sda",
        "json:{\"driver\":\"nbd\",\"host\":\"127.0.0.1\",\"port\":\"1\"}",
        "nvme://0000:00:00.0/1",
        "fat:/etc",
        "blkdebug::/etc/passwd",
    ];
    for name in hostile {
        let message = refusal(name, open_as(&qcow2_over(name.as_bytes()), None));
        let shown = format!("{name:?}");
        assert!(message.contains(&shown), "{name}: {message}");
    }
    refuse("backing-nul", &qcow2_over(b"a\0b"), "backing file name");
    refuse("backing-newline", &qcow2_over(b"a\nb"), "backing file name");
    refuse("backing-not-text", &qcow2_over(b"a\xffb"), "backing file name");
    refuse("backing-len", &qcow2_over(&[b'a'; 2000]), "backing_file_size");
    refuse("backing-off", &with(8, &(1u64 << 62).to_be_bytes()), "backing_file_offset");
    for name in ["a b", "it's \"quoted\" 100%", "snowman \u{2603}", "file:base", "./base"] {
        let file = name.trim_start_matches("file:").trim_start_matches("./");
        let files = [("top", &qcow2_over(name.as_bytes())[..]), (file, &qcow2()[..])];
        assert_eq!(read(&mut open_among(&files, None).unwrap(), 0, 4), Ok(vec![0x11; 4]), "{name}");
    }
}

#[test]
fn loops_and_deep_chains_end() {
    let message = refusal("backing-self", open_among(&[("a", &qcow2_over(b"a"))], None));
    assert!(message.contains("refers to itself"), "{message}");
    let (one, two) = (qcow2_over(b"two"), qcow2_over(b"one"));
    let message = refusal("backing-loop2", open_among(&[("one", &one), ("two", &two)], None));
    assert!(message.contains("refers to itself"), "{message}");
    let images: Vec<_> = (0..300)
        .map(|number| (format!("{number}"), qcow2_over((number + 1).to_string().as_bytes())))
        .collect();
    let files: Vec<_> = images.iter().map(|(name, image)| (name.as_str(), &image[..])).collect();
    let message = refusal("chain-deep", open_among(&files, None));
    assert!(message.contains("1 to 64 layers"), "{message}");
}

#[test]
fn a_recorded_backing_format_is_not_probed() {
    // The guest of a raw disk wrote a qcow2 header that names another file.
    let planted = qcow2_over(b"/etc/passwd");
    let mut top = qcow2_over(b"base");
    put(&mut top, 112, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
    put(&mut top, 120, b"raw");
    put(&mut top, 0x20000, &[0; 8]);
    let mut disk = open_among(&[("top", &top), ("base", &planted)], None).unwrap();
    assert_eq!(disk.chain().layers()[1].format(), Format::Raw);
    assert_eq!(read(&mut disk, 0, 4), Ok(b"QFI\xfb".to_vec()));
    // Of two such extensions the first counts.
    put(&mut top, 128, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 5]);
    put(&mut top, 136, b"qcow2");
    let disk = open_among(&[("top", &top), ("base", &planted)], None).unwrap();
    assert_eq!(disk.chain().layers()[1].format(), Format::Raw);
    assert_eq!(disk.chain().layers()[0].info().warnings, [] as [&str; 0]);
    put(&mut top, 120, b"qed");
    let message =
        refusal("an unknown backing format", open_among(&[("top", &top), ("base", &planted)], None));
    assert!(message.contains("backing format"), "{message}");
    // Where none is recorded, the file is probed, and a warning says so.
    let disk = open_among(&[("top", &qcow2_over(b"base")), ("base", &qcow2())], None).unwrap();
    assert_eq!(disk.chain().layers()[1].format(), Format::Qcow2);
    assert!(disk.chain().layers()[0].info().warnings[0].contains("probed"));
}

#[test]
fn damaged_entries_fail_where_they_are() {
    let l1 = |entry: u64| with(0x10000, &entry.to_be_bytes());
    let l2 = |entry: u64| with(0x20000, &entry.to_be_bytes());
    damaged("l1ent-unaligned", &l1(0x20200), "not aligned");
    damaged("l1ent-eof", &l1(0x100_0000), "past the end");
    damaged("l1ent-reserved", &l1(0x20000 | 1), "reserved bits");
    damaged("l2ent-unaligned", &l2(0x30200 | 1 << 63), "not aligned");
    reads("l2ent-header", &l2(1 << 63), 0);
    damaged("l2ent-l1", &l2(0x10000 | 1 << 63), "metadata");
    damaged("l2self", &l2(0x20000 | 1 << 63), "metadata");
    damaged("l2ent-eof", &l2(0x100_0000 | 1 << 63), "past the end");
    damaged("comp-eof", &l2(0x100_0000 | 1 << 62), "past the end");
    damaged("comp-garbage", &l2(0x30000 | 1 << 62), "compressed data");
    damaged("comp-maxsect", &l2(0x3fe00 | 0xff << 54 | 1 << 62), "compressed data");
    damaged("zero+comp", &l2(0x30001 | 1 << 62), "compressed data");
    let mut v2 = l2(0x30000 | 1 << 63 | 1);
    put(&mut v2, 4, &2u32.to_be_bytes());
    v2[72..112].fill(0);
    damaged("zero flag in v2", &v2, "undefined state");
    // The neighbour of a damaged cluster is as good as before.
    let mut pair = l2(0x30200 | 1 << 63);
    put(&mut pair, 0x20008, &(0x30000u64 | 1 << 63).to_be_bytes());
    let mut disk = open_as(&pair, None).unwrap();
    assert_eq!(read(&mut disk, 0x10000, 512), Ok(vec![0x11; 512]));
    assert!(read(&mut disk, 0, 512).is_err());
}

#[test]
fn odd_and_good_entries() {
    reads("zero-plain", &with(0x20000, &1u64.to_be_bytes()), 0);
    reads("zero-alloc", &with(0x20000, &(0x30000u64 | 1 << 63 | 1).to_be_bytes()), 0);
    reads("copied-flag-clear", &with(0x20000, &0x30000u64.to_be_bytes()), 0x11);
    let mut image = qcow2();
    image.truncate(0x30000 + 5000);
    reads("truncated-last-cluster", &image, 0x11);
    let bytes = read(&mut open_as(&image, None).unwrap(), 4096, 4096).unwrap();
    assert!(bytes[..904] == [0x11; 904] && bytes[904..].iter().all(|&byte| byte == 0));
    let odd = with(24, &3_145_628u64.to_be_bytes());
    let mut disk = open_as(&odd, None).unwrap();
    assert_eq!(disk.chain().virtual_size(), 3_145_628);
    assert_eq!(read(&mut disk, 3_145_000, 628), Ok(vec![0; 628]));
    // An L2 table that the file's end cuts in two.
    let mut cut = qcow2();
    put(&mut cut, 0x10000, &(0x30000u64 | 1 << 63).to_be_bytes());
    cut.truncate(0x30008);
    cut[0x30000..].fill(0);
    let mut disk = open_as(&cut, None).unwrap();
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![0; 512]));
    assert!(read(&mut disk, 0x10000, 512).unwrap_err().contains("leaf table"));
}

#[test]
fn compressed_clusters() {
    let stored = deflate(&[0x44; 0x10000]);
    let entry = |at: u64, stored: &[u8]| {
        let sectors = (at % 512 + stored.len() as u64).div_ceil(512) - 1;
        at | sectors << 54 | 1 << 62
    };
    // At an odd offset, in the sector where another stream ends, and with a file that ends right behind it.
    let mut image = qcow2();
    put(&mut image, 0x20000, &entry(0x30123, &stored).to_be_bytes());
    put(&mut image, 0x30123, &stored);
    image.truncate(0x30123 + stored.len());
    reads("compressed at an odd offset", &image, 0x44);
    // Window 15 and a stream that goes on past the cluster.
    let more = deflate(&[0x55; 0x20000]);
    let mut image = qcow2();
    put(&mut image, 0x20000, &entry(0x30000, &more).to_be_bytes());
    put(&mut image, 0x30000, &more);
    reads("a stream longer than the cluster", &image, 0x55);
    // One that is not ended where the file does.
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&[0x77; 0x10000]).unwrap();
    encoder.flush().unwrap();
    let open_end = encoder.get_ref().clone();
    let mut image = qcow2();
    put(&mut image, 0x20000, &entry(0x30000, &open_end).to_be_bytes());
    put(&mut image, 0x30000, &open_end);
    image.truncate(0x30000 + open_end.len());
    reads("a stream without an end", &image, 0x77);
    let short = deflate(&[0x55; 0x8000]);
    let mut image = qcow2();
    put(&mut image, 0x20000, &entry(0x30000, &short).to_be_bytes());
    put(&mut image, 0x30000, &short);
    damaged("a stream shorter than the cluster", &image, "ends too soon");
}

#[test]
fn a_bomb_stays_one_cluster_at_a_time() {
    // 512 entries that share one compressed cluster of 2 MiB: a gigabyte out of 2 KiB.
    let stored = deflate(&vec![0x66; 2 << 20]);
    let mut image = qcow2();
    put(&mut image, 20, &21u32.to_be_bytes());
    put(&mut image, 24, &(1u64 << 30).to_be_bytes());
    put(&mut image, 40, &0x20_0000u64.to_be_bytes());
    let sectors = (stored.len() as u64).div_ceil(512) - 1;
    put(&mut image, 0x20_0000, &0x40_0000u64.to_be_bytes());
    let entry = 0x60_0000 | sectors << 49 | 1u64 << 62;
    for number in 0..512 {
        put(&mut image, 0x40_0000 + number * 8, &entry.to_be_bytes());
    }
    put(&mut image, 0x60_0000, &stored);
    let mut disk = open_as(&image, None).unwrap();
    for at in [0u64, 0x1234_5678, (1 << 30) - 4096] {
        assert_eq!(read(&mut disk, at, 4096), Ok(vec![0x66; 4096]));
    }
}

#[test]
fn zstd_clusters() {
    let mut image = with(72, &COMPRESSION.to_be_bytes());
    put(&mut image, 104, &[1]);
    let stored = zstd::stream::encode_all(&vec![0x77; 0x10000][..], 3).unwrap();
    put(&mut image, 0x20000, &(0x30000u64 | 1 << 62).to_be_bytes());
    put(&mut image, 0x30000, &stored);
    reads("zstd", &image, 0x77);
    // The window byte follows the frame header descriptor: 2^(10 + 31).
    assert_eq!(stored[4] & 0x20, 0, "the frame has a window descriptor");
    image[0x30005] = 31 << 3;
    damaged("zstd-window", &image, "zstd");
    image[0x30005] = 0xff;
    damaged("zstd-window", &image, "zstd");
    put(&mut image, 0x30000, &[0; 64]);
    damaged("not a frame", &image, "zstd");
}

#[test]
fn extended_entries_that_contradict_themselves() {
    let extended = |entry: u64, bitmap: u64| {
        let mut image = with_bits(EXTENDED_L2);
        put(&mut image, 0x20000, &entry.to_be_bytes());
        put(&mut image, 0x20008, &bitmap.to_be_bytes());
        image
    };
    reads("all allocated", &extended(0x30000 | 1 << 63, 0xffff_ffff), 0x11);
    reads("all zero", &extended(0x30000 | 1 << 63, 0xffff_ffff_0000_0000), 0);
    reads("the first two", &extended(0x30000 | 1 << 63, 3), 0x11);
    assert_eq!(
        read(&mut open_as(&extended(0x30000 | 1 << 63, 3), None).unwrap(), 4096, 512),
        Ok(vec![0; 512])
    );
    damaged("allocated and zero", &extended(0x30000 | 1 << 63, 1 << 32 | 1), "contradicts");
    damaged("allocated nowhere", &extended(0, 1), "contradicts");
    // The bitmap of a compressed cluster means nothing.
    let stored = deflate(&[0x44; 0x10000]);
    let mut image = extended(0x30000 | 1 << 62, u64::MAX);
    put(&mut image, 0x30000, &stored);
    reads("extl2-compressed", &image, 0x44);
}
