//! Archives and compressed files: made by the usual tools, and damaged on purpose.

mod common;

use common::images::put;
use std::io::Write;
use std::process::{Command, Stdio};
use thinorigin_formats::container::{Archive, Container, Look, Packed, Unpacking};
use thinorigin_formats::{Ask, FormatError};

/// Looks at `file`, whose index, if it is asked for, is `index`. Every ask has to lie in its file.
fn look(file: &[u8], index: Option<&[u8]>) -> Result<Container, FormatError> {
    let mut unpacking = Unpacking::new(file.len() as u64, "image");
    loop {
        match unpacking.poll()? {
            Look::Done(container) => return Ok(container),
            Look::Need(Ask::Bytes { file: which, at, len }) => {
                let bytes = if which.0 == 0 { file } else { index.expect("an index was asked for") };
                let end = at + u64::from(len);
                unpacking.supply_bytes(bytes[at as usize..end as usize].to_vec());
            }
            Look::Need(Ask::File { name, .. }) => {
                assert_eq!(name, "image.gzi");
                unpacking.supply_file(index.expect("there is an index").len() as u64);
            }
        }
    }
}

fn archive(file: &[u8]) -> Archive {
    match look(file, None).expect("the archive is sound") {
        Container::Archive(archive) => archive,
        other => panic!("{other:?}"),
    }
}

fn packed(file: &[u8], index: Option<&[u8]>) -> Packed {
    match look(file, index).expect("the file is sound") {
        Container::Packed(packed) => packed,
        other => panic!("{other:?}"),
    }
}

/// All of a compressed file, block by block.
fn unpack(file: &[u8], packed: &Packed) -> Result<Vec<u8>, FormatError> {
    let mut out = Vec::new();
    while let Some((_, block)) = packed.find(out.len() as u64) {
        assert_eq!(block.start, out.len() as u64);
        let end = (block.at + u64::from(block.len)) as usize;
        let stored = &file[(block.at as usize).min(file.len())..end.min(file.len())];
        let clear = packed.decode(&block, stored)?;
        assert_eq!(clear.len(), block.decoded as usize);
        out.extend(clear);
    }
    assert_eq!(out.len() as u64, packed.len());
    Ok(out)
}

/// What `command` makes of `input`.
fn pipe(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// Content that compresses, but not to nothing.
fn content(len: usize) -> Vec<u8> {
    let mut random = common::Random(7);
    (0..len).map(|at| if at % 7 < 4 { (at >> 10) as u8 } else { random.next() as u8 & 0x1f }).collect()
}

/// A tar header for `name` with `size` bytes, of the type `kind`.
fn header(name: &str, size: &[u8], kind: u8) -> Vec<u8> {
    let mut header = vec![0; 512];
    put(&mut header, 0, name.as_bytes());
    put(&mut header, 124, size);
    put(&mut header, 148, b"        ");
    put(&mut header, 156, &[kind]);
    put(&mut header, 257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
    header
}

fn octal(size: u64) -> Vec<u8> {
    format!("{size:011o}\0").into_bytes()
}

#[test]
fn members_of_archives_by_real_tar_are_found() {
    if !common::has("members_of_archives_by_real_tar_are_found", "tar") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/disk with a name.vmdk", "d".repeat(120));
    std::fs::create_dir(dir.path().join("d".repeat(120))).unwrap();
    std::fs::write(dir.path().join("a.ovf"), "<Envelope/>").unwrap();
    std::fs::write(dir.path().join(&long), content(5000)).unwrap();
    for format in ["ustar", "pax", "gnu", "posix"] {
        let (form, dir) = (format!("--format={format}"), dir.path().to_str().unwrap());
        common::run(dir.as_ref(), "tar", &[&form, "-cf", "a.ova", "a.ovf", &long]);
        let file = std::fs::read(format!("{dir}/a.ova")).unwrap();
        let archive = archive(&file);
        let member = archive.pick(None).unwrap();
        assert_eq!((member.name.as_str(), member.len), (long.as_str(), 5000), "{format}");
        assert_eq!(file[member.at as usize..][..5000], content(5000), "{format}");
        assert_eq!(archive.pick(Some("a.ovf")).unwrap().len, 11);
    }
}

#[test]
fn what_is_meant_must_be_clear() {
    let two = [header("a.vmdk", &octal(0), b'0'), header("B.VHD.gz", &octal(0), b'0')].concat();
    let message = archive(&two).pick(None).unwrap_err().to_string();
    assert!(message.contains(r#"--member: "a.vmdk", "B.VHD.gz""#), "{message}");
    let message = archive(&two).pick(Some("c")).unwrap_err().to_string();
    assert!(message.contains(r#"no file "c""#), "{message}");
    let none = header("a.ovf", &octal(0), b'0');
    assert!(archive(&none).pick(None).unwrap_err().to_string().contains("named like a disk"));
    let sparse = header("a.img", &octal(0), b'S');
    assert!(archive(&sparse).pick(None).unwrap_err().to_string().contains("sparse"));
    let chunks = [header("d.vmdk.000000000", &octal(0), b'0'), header("d.vmdk.000000001", &octal(0), b'0')];
    assert!(archive(&chunks.concat()).pick(None).unwrap_err().to_string().contains("pieces"));
    assert_eq!(archive(&chunks[0]).pick(None).unwrap().name, "d.vmdk.000000000");
}

#[test]
fn sizes_of_more_than_8_gib_are_read_and_bounded_by_the_file() {
    let mut big = vec![0x80];
    big.extend([0; 3]);
    big.extend(0x3_0000_0000u64.to_be_bytes());
    let file = header("a.raw", &big, b'0');
    let error = look(&file, None).unwrap_err();
    assert!(matches!(error, FormatError::Truncated { len: 0x3_0000_0000, .. }), "{error}");
    for size in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"99999999999\0", b"\xff\0\0\0"] {
        let error = look(&header("a.raw", size, b'0'), None).unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn a_damaged_header_is_an_error_with_its_place() {
    let mut file =
        [header("a.ovf", &octal(512), b'0'), vec![1; 512], header("b.vmdk", &octal(0), b'0')].concat();
    file[1024 + 3] ^= 1;
    let error = look(&file, None).unwrap_err();
    assert_eq!(error, FormatError::Checksum { what: "tar header", at: 1024 });
    file[3] ^= 1;
    assert!(matches!(look(&file, None), Ok(Container::None)), "no archive at all");
}

#[test]
fn a_vhd_that_begins_like_an_archive_is_no_archive() {
    let mut disk = [header("a.vmdk", &octal(0), b'0'), vec![0; 512]].concat();
    disk.extend(common::images::vhd_footer(2, 1024, b"vpc ", [0, 1, 1, 2], 1));
    assert!(matches!(look(&disk, None), Ok(Container::None)));
}

#[test]
fn compressed_files_by_real_tools_decode() {
    let clear = content(1 << 20);
    let xz: [&[&str]; 5] = [
        &["xz", "--block-size=400KiB"],
        &["xz", "--block-size=300KiB", "--check=sha256"],
        &["xz", "--check=none"],
        &["xz", "--check=crc32", "--x86", "--lzma2"],
        &["xz", "-9"],
    ];
    let others: [&[&str]; 3] = [&["gzip"], &["gzip", "-1", "-N"], &["zstd", "-q", "--stream-size=1048576"]];
    for command in xz.into_iter().chain(others) {
        if !common::has("compressed_files_by_real_tools_decode", command[0]) {
            continue;
        }
        let file = pipe(command, &clear);
        let packed = packed(&file, None);
        assert!(unpack(&file, &packed).unwrap() == clear, "{command:?}");
        assert!(packed.find(clear.len() as u64).is_none());
        // Any byte that is changed is noticed, or changes nothing.
        for at in (0..file.len()).step_by(file.len() / 20) {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            if let Ok(Container::Packed(packed)) = look(&damaged, None)
                && let Ok(bytes) = unpack(&damaged, &packed)
            {
                assert!(bytes == clear || command.contains(&"--check=none"), "{command:?}: byte {at}");
            }
        }
    }
}

#[test]
fn streams_of_xz_follow_each_other_with_padding() {
    if !common::has("streams_of_xz_follow_each_other_with_padding", "xz") {
        return;
    }
    let clear = content(1 << 20);
    let one = pipe(&["xz", "--block-size=300KiB"], &clear);
    let file = [&one[..], &[0; 8], &one[..], &[0; 4]].concat();
    let packed = packed(&file, None);
    assert!(unpack(&file, &packed).unwrap() == [&clear[..], &clear[..]].concat());
}

#[test]
fn bgzip_is_read_by_its_index() {
    if !common::has("bgzip_is_read_by_its_index", "bgzip") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clear = content(500_000);
    let path = dir.path().join("image");
    std::fs::write(&path, &clear).unwrap();
    assert!(Command::new("bgzip").arg("--index").arg(&path).status().unwrap().success());
    let file = std::fs::read(dir.path().join("image.gz")).unwrap();
    let index = std::fs::read(dir.path().join("image.gz.gzi")).unwrap();
    let packed = packed(&file, Some(&index));
    assert!(unpack(&file, &packed).unwrap() == clear);
    assert!(packed.largest() <= 0x1_0000);

    let mut wrong = index.clone();
    wrong[0] += 1;
    assert!(look(&file, Some(&wrong)).unwrap_err().to_string().contains("number of entries"));
    let mut wrong = index.clone();
    wrong[8 + 16..8 + 24].fill(0);
    assert!(look(&file, Some(&wrong)).unwrap_err().to_string().contains("lies before"));
    let mut wrong = index;
    wrong[8] ^= 4;
    if let Ok(Container::Packed(packed)) = look(&file, Some(&wrong)) {
        assert!(unpack(&file, &packed).is_err(), "an index of another file");
    }
}

/// A file in the seekable format: frames of `step` bytes, and their table.
fn seekable(clear: &[u8], step: usize, checked: bool) -> Vec<u8> {
    let (mut file, mut table) = (Vec::new(), Vec::new());
    for piece in clear.chunks(step) {
        let frame = pipe(&["zstd", "-q"], piece);
        table.extend((frame.len() as u32).to_le_bytes());
        table.extend((piece.len() as u32).to_le_bytes());
        if checked {
            table.extend((twox_hash::XxHash64::oneshot(0, piece) as u32).to_le_bytes());
        }
        file.extend(frame);
    }
    file.extend(0x184d_2a5eu32.to_le_bytes());
    file.extend((table.len() as u32 + 9).to_le_bytes());
    let frames = clear.len().div_ceil(step) as u32;
    [&file[..], &table, &frames.to_le_bytes(), &[u8::from(checked) << 7], b"\xb1\xea\x92\x8f"].concat()
}

#[test]
fn seekable_zstd_is_read_by_its_table() {
    if !common::has("seekable_zstd_is_read_by_its_table", "zstd") {
        return;
    }
    let clear = content(400_000);
    for checked in [false, true] {
        let file = seekable(&clear, 100_000, checked);
        let whole = packed(&file, None);
        assert!(unpack(&file, &whole).unwrap() == clear);
        assert_eq!(whole.find(250_000).map(|(index, block)| (index, block.start)), Some((2, 200_000)));
    }
    let mut file = seekable(&clear, 100_000, true);
    let table = file.len() - 9 - 4 * 12;
    file[table + 8] ^= 1;
    let whole = packed(&file, None);
    assert!(unpack(&file, &whole).unwrap_err().to_string().contains("another checksum"));
    file[table] ^= 0x40;
    if let Ok(Container::Packed(packed)) = look(&file, None) {
        assert!(unpack(&file, &packed).is_err(), "frames elsewhere");
    }
}

#[test]
fn what_cannot_be_had_in_pieces_is_refused_with_the_way_out() {
    let mut gzip = vec![0; 100];
    put(&mut gzip, 0, b"\x1f\x8b\x08\0");
    put(&mut gzip, 96, &(65u32 << 20).to_le_bytes());
    let refusals =
        [(gzip, "bgzip --index"), (b"\x28\xb5\x2f\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "seekable")];
    for (file, way_out) in refusals {
        let message = look(&file, None).unwrap_err().to_string();
        assert!(message.contains(way_out), "{message}");
    }
    if common::has("what_cannot_be_had_in_pieces_is_refused_with_the_way_out", "xz") {
        let mut cut = pipe(&["xz"], &content(10_000));
        cut.truncate(cut.len() - 5);
        assert!(look(&cut, None).unwrap_err().to_string().contains("cut off"));
        let zeros = vec![0; 70 << 20];
        let message =
            look(&pipe(&["xz", "-0", "-T1", "--block-size=70MiB"], &zeros), None).unwrap_err().to_string();
        assert!(message.contains("--block-size=1MiB"), "{message}");
    }
}

#[test]
fn a_bomb_is_an_error_after_bounded_work() {
    if !common::has("a_bomb_is_an_error_after_bounded_work", "gzip") {
        return;
    }
    // The trailer says 1000 bytes, and there are 70 MiB of zeros behind it.
    let mut bomb = pipe(&["gzip", "-9"], &vec![0; 70 << 20]);
    let end = bomb.len();
    bomb[end - 4..].copy_from_slice(&1000u32.to_le_bytes());
    let packed = packed(&bomb, None);
    assert_eq!(packed.len(), 1000);
    assert!(unpack(&bomb, &packed).is_err());
}
