//! Small images built byte by byte, to be damaged by the tests.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::io::Write;
use thinorigin_formats::memory::{Directory, Disk, Error};
use thinorigin_formats::{Format, Options};

/// Writes `bytes` into `image` at `at`, which grows as needed.
pub(crate) fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Opens `image` alone, as `format`.
pub(crate) fn open_as(image: &[u8], format: Option<Format>) -> Result<Disk, Error> {
    open_among(&[("a", image)], format)
}

/// Opens the first of `files`; the others are in its directory.
pub(crate) fn open_among(files: &[(&str, &[u8])], format: Option<Format>) -> Result<Disk, Error> {
    let mut directory = Directory::new();
    for (name, bytes) in files {
        directory.add(name, bytes.to_vec());
    }
    Disk::open(&directory, files[0].0, Options { format, ..Options::default() })
}

/// The error of opening; panics if the image opens.
pub(crate) fn refusal(name: &str, result: Result<Disk, Error>) -> String {
    match result {
        Ok(_) => panic!("{name}: opens"),
        Err(error) => error.to_string(),
    }
}

/// What opening and reading `len` bytes at `at` ends in.
pub(crate) fn read(disk: &mut Disk, at: u64, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0xa5; len];
    disk.read(at, &mut bytes).map(|()| bytes).map_err(|error| error.to_string())
}

/// Compresses with raw deflate.
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compresses as a zlib stream at `level`.
pub(crate) fn zlib(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A qcow2 of 1 MiB in clusters of 64 KiB: L1 table at 0x10000, L2 table at 0x20000, and one cluster of 0x11 bytes at
/// 0x30000 for guest offset 0.
pub(crate) fn qcow2() -> Vec<u8> {
    let mut image = vec![0; 0x40000];
    put(&mut image, 0, b"QFI\xfb\0\0\0\x03");
    put(&mut image, 20, &16u32.to_be_bytes());
    put(&mut image, 24, &(1u64 << 20).to_be_bytes());
    put(&mut image, 36, &1u32.to_be_bytes());
    put(&mut image, 40, &0x10000u64.to_be_bytes());
    put(&mut image, 96, &4u32.to_be_bytes());
    put(&mut image, 100, &112u32.to_be_bytes());
    put(&mut image, 0x10000, &(0x20000u64 | 1 << 63).to_be_bytes());
    put(&mut image, 0x20000, &(0x30000u64 | 1 << 63).to_be_bytes());
    image[0x30000..].fill(0x11);
    image
}

/// The qcow2 with `name` as its backing file.
pub(crate) fn qcow2_over(name: &[u8]) -> Vec<u8> {
    let mut image = qcow2();
    put(&mut image, 8, &0x400u64.to_be_bytes());
    put(&mut image, 16, &(name.len() as u32).to_be_bytes());
    put(&mut image, 0x400, name);
    image
}

/// A qcow of 1 MiB in clusters of 4 KiB: L1 table at 0x1000, L2 table at 0x2000, and one cluster at 0x3000.
pub(crate) fn qcow() -> Vec<u8> {
    let mut image = vec![0; 0x4000];
    put(&mut image, 0, b"QFI\xfb\0\0\0\x01");
    put(&mut image, 24, &(1u64 << 20).to_be_bytes());
    put(&mut image, 32, &[12, 9]);
    put(&mut image, 40, &0x1000u64.to_be_bytes());
    put(&mut image, 0x1000, &0x2000u64.to_be_bytes());
    put(&mut image, 0x2000, &0x3000u64.to_be_bytes());
    image[0x3000..].fill(0x11);
    image
}

/// The checksum of a vhd footer or header, whose own field is at `at`.
pub(crate) fn vhd_checksum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// A vhd footer of the given type.
pub(crate) fn vhd_footer(kind: u32, size: u64, creator: &[u8; 4], geometry: [u8; 4], id: u8) -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2u32.to_be_bytes());
    put(&mut footer, 12, &0x10000u32.to_be_bytes());
    put(&mut footer, 16, &if kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
    put(&mut footer, 28, creator);
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &geometry);
    put(&mut footer, 60, &kind.to_be_bytes());
    footer[68..84].fill(id);
    vhd_checksum(&mut footer, 64);
    footer
}

/// A fixed vhd around `content`.
pub(crate) fn vhd_fixed(content: &[u8]) -> Vec<u8> {
    let mut image = content.to_vec();
    image.extend(vhd_footer(2, content.len() as u64, b"win ", [0; 4], 1));
    image
}

/// A dynamic (3) or differencing (4) vhd of 4 MiB with blocks of 2 MiB: header at 0x200, table at 0x600, and one
/// block for guest offset 0 at 0x800, all 0x22 bytes, with the given sector bitmap.
pub(crate) fn vhd(kind: u32, bitmap: [u8; 512]) -> Vec<u8> {
    let footer = vhd_footer(kind, 4 << 20, b"win ", [0; 4], 2);
    let mut image = footer.clone();
    put(&mut image, 0x200, &vhd_header(2 << 20, 2, 0x600));
    put(&mut image, 0x600, &[0xff; 512]);
    put(&mut image, 0x600, &4u32.to_be_bytes());
    put(&mut image, 0x800, &bitmap);
    put(&mut image, 0xa00, &vec![0x22; 2 << 20]);
    image.extend(footer);
    image
}

/// A vhd dynamic disk header; the parent's id is all 1, its name `parent.vhd`.
pub(crate) fn vhd_header(block: u32, entries: u32, table: u64) -> Vec<u8> {
    let mut header = vec![0; 1024];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &table.to_be_bytes());
    put(&mut header, 24, &0x10000u32.to_be_bytes());
    put(&mut header, 28, &entries.to_be_bytes());
    put(&mut header, 32, &block.to_be_bytes());
    header[40..56].fill(1);
    let name: Vec<u8> = "parent.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    put(&mut header, 64, &name);
    vhd_checksum(&mut header, 36);
    header
}

/// Where things are in [`vmdk`].
pub(crate) const VMDK_DIRECTORY: usize = 0x3000;
pub(crate) const VMDK_TABLE: usize = 0x3200;
pub(crate) const VMDK_GRAIN: usize = 0x10000;

/// A monolithicSparse vmdk of 1 MiB with grains of 64 KiB: descriptor at 0x200, directory, one table, and one grain
/// of 0x33 bytes for guest offset 0.
pub(crate) fn vmdk() -> Vec<u8> {
    let mut image = vec![0; 0x20000];
    put(&mut image, 0, b"KDMV\x01\0\0\0\x01\0\0\0");
    put(&mut image, 12, &2048u64.to_le_bytes());
    put(&mut image, 20, &128u64.to_le_bytes());
    put(&mut image, 28, &1u64.to_le_bytes());
    put(&mut image, 36, &20u64.to_le_bytes());
    put(&mut image, 44, &512u32.to_le_bytes());
    put(&mut image, 56, &(VMDK_DIRECTORY as u64 / 512).to_le_bytes());
    put(&mut image, 64, &128u64.to_le_bytes());
    put(&mut image, 73, b"\n \r\n");
    put(&mut image, 512, descriptor("ffffffff", "RW 2048 SPARSE \"a.vmdk\"").as_bytes());
    put(&mut image, VMDK_DIRECTORY, &(VMDK_TABLE as u32 / 512).to_le_bytes());
    put(&mut image, VMDK_TABLE, &(VMDK_GRAIN as u32 / 512).to_le_bytes());
    image[VMDK_GRAIN..].fill(0x33);
    image
}

/// A descriptor with CID 1.
pub(crate) fn descriptor(parent: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID={parent}\ncreateType=\"custom\"\n\n{extents}\n\n\
         ddb.adapterType = \"ide\"\n"
    )
}

/// Makes [`vmdk`] compressed: the grain at guest offset 0 is `stored`, with `marker` in front if there is one.
pub(crate) fn vmdk_stream(marker: Option<(u64, u32)>, stored: &[u8]) -> Vec<u8> {
    let mut image = vmdk();
    put(&mut image, 8, &(1u32 | 1 << 16 | if marker.is_some() { 1 << 17 } else { 0 }).to_le_bytes());
    put(&mut image, 77, &1u16.to_le_bytes());
    image.truncate(VMDK_GRAIN);
    if let Some((lba, size)) = marker {
        image.extend(lba.to_le_bytes());
        image.extend(size.to_le_bytes());
    }
    image.extend(stored);
    image.resize(image.len().next_multiple_of(512), 0);
    image
}
