//! qcow of version 1, as qemu-img writes it: content and map are what qemu-img says they are.

mod common;

use common::images::{open_as, put, refusal};
use common::{assert_reads, convert, disk_content, has, open, our_map, qemu_content, qemu_map, run};
use std::process::Command;
use tempfile::TempDir;
use thinorigin_formats::{Format, Options};

const MIB: usize = 1 << 20;

#[test]
fn plain_and_compressed() {
    if !has("plain_and_compressed", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let content = disk_content(9 * MIB + 3 * 512, 1);
    for compressed in [false, true] {
        convert(directory.path(), &content, "a.qcow", "qcow", &[]);
        if compressed {
            // qemu-img 10 ends with an error after it has written all of a compressed qcow; whether it has is seen
            // from what it reads.
            let convert = ["convert", "-f", "raw", "-c", "-O", "qcow", "content.raw", "a.qcow"];
            Command::new("qemu-img").args(convert).current_dir(directory.path()).status().unwrap();
            assert!(qemu_content(directory.path(), "a.qcow", "qcow") == content);
        }
        let mut disk = open(directory.path(), "a.qcow", Options::default());
        assert_eq!(disk.chain().layers()[0].format(), Format::Qcow, "probed");
        assert_reads(&mut disk, &content, &format!("compressed: {compressed}"));
        assert_eq!(
            our_map(&mut disk),
            qemu_map(directory.path(), "a.qcow", "qcow"),
            "compressed: {compressed}: map"
        );
    }
}

#[test]
fn on_a_backing_file() {
    if !has("on_a_backing_file", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let dir = directory.path();
    convert(dir, &disk_content(3 * MIB, 2), "base.qcow2", "qcow2", &[]);
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow", "-b", "base.qcow2", "-F", "qcow2", "a.qcow", "5M"]);
    run(dir, "qemu-io", &["-c", "write -P 7 1000000 70000", "-c", "write -P 8 4000000 512", "a.qcow"]);
    let wanted = qemu_content(dir, "a.qcow", "qcow");
    let mut disk = open(dir, "a.qcow", Options::default());
    assert_reads(&mut disk, &wanted, "overlay");
    assert_eq!(our_map(&mut disk), qemu_map(dir, "a.qcow", "qcow"), "map");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut image = vec![0; 4096];
    put(&mut image, 0, b"QFI\xfb\0\0\0\x01");
    put(&mut image, 24, &(1u64 << 20).to_be_bytes());
    put(&mut image, 32, &[12, 9]);
    put(&mut image, 40, &48u64.to_be_bytes());
    assert!(open_as(&image, None).is_ok());
    let cases: [(usize, &[u8], &str); 7] = [
        (32, &[8], "cluster_bits"),
        (32, &[17], "cluster_bits"),
        (33, &[5], "l2_bits"),
        (33, &[14], "l2_bits"),
        (36, &1u32.to_be_bytes(), "AES"),
        (40, &4090u64.to_be_bytes(), "L1 table"),
        (24, &u64::MAX.to_be_bytes(), "size"),
    ];
    for (at, bytes, word) in cases {
        let mut image = image.clone();
        put(&mut image, at, bytes);
        let message = refusal(word, open_as(&image, None));
        assert!(message.contains(word), "{message}");
    }
    put(&mut image, 48, &(1u64 << 40).to_be_bytes());
    let mut disk = open_as(&image, None).unwrap();
    let message = common::images::read(&mut disk, 0, 512).unwrap_err();
    assert!(message.contains("past the end"), "{message}");
}
