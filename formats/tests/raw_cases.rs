//! Files that are raw disks, and files that are images of kinds which are not read.

mod common;

use common::images::{open_among, open_as, put, qcow2, read, refusal};
use thinorigin_formats::Format;

/// Checks that `file` is taken for a raw disk, and reads as it is.
fn is_raw(name: &str, file: &[u8]) {
    let mut disk = open_among(&[(name, file)], None).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(disk.chain().layers()[0].format(), Format::Raw, "{name}");
    assert_eq!(disk.chain().virtual_size(), file.len() as u64, "{name}");
    assert!(read(&mut disk, 0, file.len()).unwrap() == file, "{name}");
}

#[test]
fn a_raw_disk_has_the_size_of_its_file() {
    for size in [0, 1, 511, 512, 513, 1000, 65536, 1_048_577] {
        let file: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        is_raw("disk", &file);
        if size > 0 {
            let mut disk = open_as(&file, None).unwrap();
            assert_eq!(read(&mut disk, size as u64 - 1, 1), Ok(file[size - 1..].to_vec()));
        }
    }
}

#[test]
fn a_name_is_no_evidence() {
    for name in ["disk.vmdk", "disk.qcow2", "disk.vhd", "disk.vhdx"] {
        is_raw(name, &[7; 4096]);
    }
    let mut disk = open_among(&[("disk.raw", &qcow2())], None).unwrap();
    assert_eq!(disk.chain().layers()[0].format(), Format::Qcow2);
    assert_eq!(read(&mut disk, 0, 4), Ok(vec![0x11; 4]));
}

#[test]
fn what_is_no_disk_format_says_nothing() {
    // An ISO 9660 file system is a disk, also one that begins as a PDF.
    let mut iso = vec![0; 40 << 10];
    put(&mut iso, 0x8000, b"\x01CD001\x01\0");
    is_raw("disk.iso", &iso);
    put(&mut iso, 0, b"%PDF-1.7\n");
    is_raw("disk.pdf", &iso);
    // An image is what its own signature says, whatever else somebody may take it for.
    let mut image = qcow2();
    put(&mut image, 0x8000, b"\x01CD001\x01\0");
    put(&mut image, 0x200, b"%PDF-1.7\n");
    assert_eq!(read(&mut open_as(&image, None).unwrap(), 0, 4), Ok(vec![0x11; 4]));
    // A master boot record, a GPT, and a signature in the wrong place.
    let mut disk = vec![0; 4096];
    put(&mut disk, 510, b"\x55\xaa");
    put(&mut disk, 512, b"EFI PART");
    put(&mut disk, 1024, b"QFI\xfb\0\0\0\x03");
    is_raw("disk", &disk);
}

#[test]
fn kinds_that_are_not_read_are_named() {
    let kinds: [(usize, &[u8], &str, &str); 17] = [
        (0, b"QED\0", "QED", "qemu-img convert"),
        (64, b"\x7f\x10\xda\xbe", "VDI", "qemu-img convert"),
        (0, b"WithoutFreeSpace", "Parallels", "qemu-img convert"),
        (0, b"WithouFreSpacExt", "Parallels", "qemu-img convert"),
        (0, b"Bochs Virtual HD Image", "Bochs", "qemu-img convert"),
        (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop", "qemu-img convert"),
        (0, b"EVF\x09\x0d\x0a\xff\0", "EWF", "qemu-img convert"),
        (0, b"MSWIM\0\0\0", "WIM", "not a disk"),
        (0, b"\x1f\x8b\x08", "gzip", "unpack it"),
        (0, b"\xfd7zXZ\0", "xz", "unpack it"),
        (0, b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it"),
        (0, b"BZh", "bzip2", "unpack it"),
        (0, b"\x04\x22\x4d\x18", "LZ4", "unpack it"),
        (0, b"LZIP\x01", "lzip", "unpack it"),
        (0, b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it"),
        (0, b"PK\x03\x04", "zip", "unpack it"),
        (257, b"ustar", "tar", "unpack it"),
    ];
    for (at, magic, name, way_out) in kinds {
        let mut file = vec![0; 4096];
        put(&mut file, at, magic);
        let message = refusal(name, open_as(&file, None));
        assert!(message.contains(name) && message.contains(way_out), "{name}: {message}");
        // Somebody who knows that it is a disk can say so.
        let mut disk = open_as(&file, Some(Format::Raw)).unwrap();
        assert!(read(&mut disk, 0, 4096).unwrap() == file, "{name}");
    }
}
