//! Chains three deep, of mixed formats: what qemu-img reads through them, and we do.

mod common;

use common::{assert_reads, convert, disk_content, has, open, our_map, qemu_content, qemu_map, run};
use std::path::Path;
use tempfile::TempDir;
use thinorigin_formats::{Format, Options};

const MIB: usize = 1 << 20;

/// Makes `name` as an overlay of `backing` and writes a few stretches into it.
fn overlay(dir: &Path, (name, format): (&str, &str), (backing, backing_format): (&str, &str), size: &str) {
    run(dir, "qemu-img", &["create", "-q", "-f", format, "-b", backing, "-F", backing_format, name, size]);
    let pattern = name.len().to_string();
    for place in ["70000 5000", "1048000 3000", "2621440 65536"] {
        run(dir, "qemu-io", &["-f", format, "-c", &format!("write -P {pattern} {place}"), name]);
    }
}

/// Fills a file's holes: qemu-img's map shows them, and this crate knows nothing of file systems.
fn fill_holes(dir: &Path, name: &str) {
    let bytes = std::fs::read(dir.join(name)).unwrap();
    std::fs::write(dir.join(name), bytes).unwrap();
}

fn check(dir: &Path, top: &str, format: &str, layers: &[Format]) {
    let mut disk = open(dir, top, Options::default());
    let formats: Vec<Format> = disk.chain().layers().iter().map(|layer| layer.format()).collect();
    assert_eq!(formats, layers);
    assert_reads(&mut disk, &qemu_content(dir, top, format), top);
    assert_eq!(our_map(&mut disk), qemu_map(dir, top, format), "{top}: map");
}

#[test]
fn qcow2_over_qcow2_over_every_format() {
    if !has("qcow2_over_qcow2_over_every_format", "qemu-img") {
        return;
    }
    let bases = [
        ("raw", "raw", &[][..], Format::Raw),
        ("qcow", "qcow", &[], Format::Qcow),
        ("qcow2", "qcow2", &["-c", "-o", "compression_type=zstd"], Format::Qcow2),
        ("vhd", "vpc", &["-o", "force_size=on"], Format::Vhd),
        ("vhdx", "vhdx", &[], Format::Vhdx),
        ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"], Format::Vmdk),
        ("vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentSparse"], Format::Vmdk),
    ];
    for (end, format, options, base) in bases {
        let directory = TempDir::new().unwrap();
        let dir = directory.path();
        let (name, content) = (format!("base.{end}"), disk_content(3 * MIB, 5));
        convert(dir, &content, &name, format, options);
        fill_holes(dir, &name);
        // The middle is shorter than its base, and the top longer than both.
        overlay(dir, ("middle.qcow2", "qcow2"), (&name, format), "2900K");
        overlay(dir, ("top.qcow2", "qcow2"), ("middle.qcow2", "qcow2"), "5M");
        check(dir, "top.qcow2", "qcow2", &[Format::Qcow2, Format::Qcow2, base]);
    }
}

#[test]
fn vmdk_over_vmdk_over_vmdk() {
    if !has("vmdk_over_vmdk_over_vmdk", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let dir = directory.path();
    convert(dir, &disk_content(4 * MIB, 6), "base.vmdk", "vmdk", &[]);
    overlay(dir, ("middle.vmdk", "vmdk"), ("base.vmdk", "vmdk"), "4M");
    overlay(dir, ("top.vmdk", "vmdk"), ("middle.vmdk", "vmdk"), "4M");
    check(dir, "top.vmdk", "vmdk", &[Format::Vmdk; 3]);
}

#[test]
fn qcow2_over_qcow_over_vmdk() {
    if !has("qcow2_over_qcow_over_vmdk", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let dir = directory.path();
    convert(dir, &disk_content(3 * MIB, 7), "base.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    fill_holes(dir, "base-flat.vmdk");
    overlay(dir, ("middle.qcow", "qcow"), ("base.vmdk", "vmdk"), "3M");
    overlay(dir, ("top.qcow2", "qcow2"), ("middle.qcow", "qcow"), "3M");
    check(dir, "top.qcow2", "qcow2", &[Format::Qcow2, Format::Qcow, Format::Vmdk]);
}
