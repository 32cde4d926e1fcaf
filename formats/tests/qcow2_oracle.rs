//! Every kind of qcow2 that qemu-img can write: its content and its map are what qemu-img says they are.

mod common;

use common::{assert_reads, convert, disk_content, has, open, our_map, qemu_content, qemu_map, run};
use std::path::Path;
use tempfile::TempDir;
use thinorigin_formats::Options;

const MIB: usize = 1 << 20;

/// Converts `content` with `more` arguments and compares content and map.
fn check(directory: &Path, content: &[u8], more: &[&str]) {
    convert(directory, content, "a.qcow2", "qcow2", more);
    let mut disk = open(directory, "a.qcow2", Options::default());
    let name = more.join(" ");
    assert_reads(&mut disk, content, &name);
    // Of a disk of 0 bytes qemu-img prints one entry of length 0, and we print none.
    if !content.is_empty() {
        assert_eq!(our_map(&mut disk), qemu_map(directory, "a.qcow2", "qcow2"), "{name}: map");
    }
}

#[test]
fn cluster_sizes_and_compression() {
    if !has("cluster_sizes_and_compression", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let content = disk_content(9 * MIB + 3 * 512, 1);
    for bits in 9..=21 {
        let cluster = format!("cluster_size={}", 1 << bits);
        let zstd = format!("{cluster},compression_type=zstd");
        // Small clusters make large tables; the content is cut so that they stay quick to write.
        let content = if bits < 12 { &content[..2 * MIB + 512] } else { &content };
        check(directory.path(), content, &["-o", &cluster]);
        check(directory.path(), content, &["-c", "-o", &cluster]);
        check(directory.path(), content, &["-c", "-o", &zstd]);
    }
}

#[test]
fn options_of_the_header() {
    if !has("options_of_the_header", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let content = disk_content(3 * MIB, 4);
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        check(directory.path(), &content, &["-o", &format!("refcount_bits={bits}")]);
    }
    for options in ["compat=0.10", "lazy_refcounts=on", "preallocation=falloc", "preallocation=full"] {
        let convert_only = options.starts_with("preallocation");
        convert(directory.path(), &content, "a.qcow2", "qcow2", &["-o", options]);
        let mut disk = open(directory.path(), "a.qcow2", Options::default());
        assert_reads(&mut disk, &content, options);
        if !convert_only {
            assert_eq!(our_map(&mut disk), qemu_map(directory.path(), "a.qcow2", "qcow2"), "{options}: map");
        }
    }
    check(directory.path(), &content, &["-c", "-o", "compat=0.10"]);
    convert(directory.path(), &content, "a.qcow2", "qcow2", &["-o", "preallocation=metadata"]);
    assert_reads(
        &mut open(directory.path(), "a.qcow2", Options::default()),
        &content,
        "preallocation=metadata",
    );
    for size in [0, 512, 1024, 65024, 65536, 66048] {
        check(directory.path(), &disk_content(size, 5), &[]);
    }
}

#[test]
fn extended_l2() {
    if !has("extended_l2", "qemu-img") || !has("extended_l2", "qemu-io") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let content = disk_content(5 * MIB + 512, 6);
    for cluster in ["16k", "64k", "2M"] {
        let options = format!("extended_l2=on,cluster_size={cluster}");
        check(path, &content, &["-o", &options]);
        check(path, &content, &["-c", "-o", &options]);
        check(path, &content, &["-c", "-o", &format!("{options},compression_type=zstd")]);
        // Subclusters of all kinds in one cluster: written, zeroed, and left to the backing file.
        std::fs::write(path.join("base.raw"), &content).unwrap();
        let args = ["create", "-f", "qcow2", "-o", &options, "-b", "base.raw", "-F", "raw", "top.qcow2"];
        run(path, "qemu-img", &args);
        let io = [
            "write -P 9 70k 3k",
            "write -z 1M 512",
            "write -z 200k 64k",
            "discard 2M 1M",
            "write -P 8 5M 512",
        ];
        for command in io {
            run(path, "qemu-io", &["-f", "qcow2", "-c", command, "top.qcow2"]);
        }
        let mut disk = open(path, "top.qcow2", Options::default());
        assert_reads(&mut disk, &qemu_content(path, "top.qcow2", "qcow2"), &options);
    }
}

#[test]
fn zero_clusters_and_discards() {
    if !has("zero_clusters_and_discards", "qemu-img") || !has("zero_clusters_and_discards", "qemu-io") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    for compat in ["compat=0.10", "compat=1.1", "compat=1.1,compression_type=zstd"] {
        convert(path, &disk_content(8 * MIB, 7), "a.qcow2", "qcow2", &["-c", "-o", compat]);
        let commands = [
            "write -P 1 100k 300k",
            "write -z 64k 64k",
            "discard 1M 1M",
            "write -z -u 3M 1M",
            "write -z 5M 100",
        ];
        for command in commands {
            run(path, "qemu-io", &["-f", "qcow2", "-c", command, "a.qcow2"]);
        }
        let mut disk = open(path, "a.qcow2", Options::default());
        assert_reads(&mut disk, &qemu_content(path, "a.qcow2", "qcow2"), compat);
        assert_eq!(our_map(&mut disk), qemu_map(path, "a.qcow2", "qcow2"), "{compat}: map");
    }
}

/// Makes `top` over `backing` and writes a few stretches into it.
fn overlay(path: &Path, backing: (&str, &str), top: &str, size: &str, options: &str, seed: u8) {
    let (name, format) = backing;
    run(path, "qemu-img", &["create", "-f", "qcow2", "-o", options, "-b", name, "-F", format, top, size]);
    let commands = [
        format!("write -P {seed} {}k 96k", u64::from(seed) * 100),
        format!("write -z {}k 256k", u64::from(seed) * 300),
        format!("write -c -P {seed} {}M 512k", seed - 1),
    ];
    for command in commands {
        run(path, "qemu-io", &["-f", "qcow2", "-c", &command, top]);
    }
}

#[test]
fn backing_chains() {
    if !has("backing_chains", "qemu-img") || !has("backing_chains", "qemu-io") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    // Three deep over each format, with mixed cluster sizes and sizes that grow and shrink on the way up.
    for (format, file) in
        [("raw", "base.raw"), ("qcow2", "base.qcow2"), ("vmdk", "base.vmdk"), ("vpc", "base.vhd")]
    {
        let more: &[&str] = if format == "vpc" { &["-o", "force_size=on"] } else { &[] };
        convert(path, &disk_content(3 * MIB + 512, 8), file, format, more);
        overlay(path, (file, format), "one.qcow2", "8M", "cluster_size=4k", 3);
        overlay(path, ("one.qcow2", "qcow2"), "two.qcow2", "5M", "cluster_size=512k", 5);
        overlay(path, ("two.qcow2", "qcow2"), "top.qcow2", "10M", "cluster_size=64k", 6);
        let mut disk = open(path, "top.qcow2", Options::default());
        assert_eq!(disk.chain().layers().len(), 4, "{format}");
        assert_reads(&mut disk, &qemu_content(path, "top.qcow2", "qcow2"), format);
        if format != "raw" {
            assert_eq!(our_map(&mut disk), qemu_map(path, "top.qcow2", "qcow2"), "over {format}: map");
        }
    }
}

#[test]
fn backing_smaller_than_a_sector() {
    if !has("backing_smaller_than_a_sector", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    std::fs::write(path.join("base.raw"), vec![0x5a; 1000]).unwrap();
    run(path, "qemu-img", &["create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2", "1M"]);
    let mut expect = vec![0; MIB];
    expect[..1000].fill(0x5a);
    assert_reads(&mut open(path, "top.qcow2", Options::default()), &expect, "a raw file of 1000 bytes");
}

#[test]
fn external_data_files() {
    if !has("external_data_files", "qemu-img") || !has("external_data_files", "qemu-io") {
        return;
    }
    for options in ["data_file=d.raw", "data_file=d.raw,data_file_raw=on", "data_file=d.raw,extended_l2=on"] {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        run(path, "qemu-img", &["create", "-f", "qcow2", "-o", options, "a.qcow2", "4M"]);
        for command in ["write -P 1 0 64k", "write -P 2 1000k 100k", "write -z 1M 64k"] {
            run(path, "qemu-io", &["-f", "qcow2", "-c", command, "a.qcow2"]);
        }
        let mut disk = open(path, "a.qcow2", Options::default());
        assert_reads(&mut disk, &qemu_content(path, "a.qcow2", "qcow2"), options);
    }
}

#[test]
fn internal_snapshots() {
    if !has("internal_snapshots", "qemu-img") || !has("internal_snapshots", "qemu-io") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let first = disk_content(2 * MIB, 9);
    convert(path, &first, "a.qcow2", "qcow2", &[]);
    run(path, "qemu-img", &["snapshot", "-c", "before", "a.qcow2"]);
    run(path, "qemu-io", &["-f", "qcow2", "-c", "write -P 3 0 1M", "a.qcow2"]);
    run(path, "qemu-img", &["snapshot", "-c", "grown", "a.qcow2"]);
    run(path, "qemu-img", &["resize", "a.qcow2", "3M"]);
    let active = qemu_content(path, "a.qcow2", "qcow2");
    assert_reads(&mut open(path, "a.qcow2", Options::default()), &active, "the active disk");
    for name in ["before", "1"] {
        let options = Options { snapshot: Some(name.to_owned()), ..Options::default() };
        assert_reads(&mut open(path, "a.qcow2", options), &first, name);
    }
    let options = Options { snapshot: Some("absent".to_owned()), ..Options::default() };
    let refused = thinorigin_formats::memory::Disk::open(&common::files(path), "a.qcow2", options);
    assert!(refused.is_err_and(|error| error.to_string().contains("no internal snapshot")));
}

#[test]
fn bitmaps_are_passed_over() {
    if !has("bitmaps_are_passed_over", "qemu-img") || !has("bitmaps_are_passed_over", "qemu-io") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let content = disk_content(3 * MIB, 12);
    convert(path, &content, "a.qcow2", "qcow2", &[]);
    run(path, "qemu-img", &["bitmap", "--add", "a.qcow2", "before"]);
    run(path, "qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 100k", "a.qcow2"]);
    run(path, "qemu-img", &["bitmap", "--add", "--disable", "a.qcow2", "after"]);
    let mut disk = open(path, "a.qcow2", Options::default());
    assert_reads(&mut disk, &qemu_content(path, "a.qcow2", "qcow2"), "with bitmaps");
    assert_eq!(our_map(&mut disk), qemu_map(path, "a.qcow2", "qcow2"));
    assert!(disk.chain().layers()[0].info().features.contains(&"bitmaps".to_owned()));
}

#[test]
fn a_large_and_empty_disk() {
    if !has("a_large_and_empty_disk", "qemu-img") || !has("a_large_and_empty_disk", "qemu-io") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    run(path, "qemu-img", &["create", "-f", "qcow2", "a.qcow2", "64T"]);
    let last = (64u64 << 40) - 512;
    for write in ["write -P 4 1T 512".to_owned(), format!("write -P 5 {last} 512")] {
        run(path, "qemu-io", &["-f", "qcow2", "-c", &write, "a.qcow2"]);
    }
    let mut disk = open(path, "a.qcow2", Options::default());
    let mut part = [0; 1024];
    disk.read((1 << 40) - 512, &mut part).unwrap();
    assert!(part[..512] == [0; 512] && part[512..] == [4; 512]);
    disk.read(last - 512, &mut part).unwrap();
    assert!(part[..512] == [0; 512] && part[512..] == [5; 512]);
    let started = std::time::Instant::now();
    assert_eq!(our_map(&mut disk), qemu_map(path, "a.qcow2", "qcow2"));
    assert!(started.elapsed().as_secs() < 5, "the map of an empty disk is quick");
}
