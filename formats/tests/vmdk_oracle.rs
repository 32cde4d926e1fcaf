//! Every kind of vmdk that qemu-img can write: content and map are what qemu-img says they are.

mod common;

use common::{assert_reads, convert, disk_content, has, open, our_map, qemu_content, qemu_map, run};
use std::fs;
use tempfile::TempDir;
use thinorigin_formats::{Format, Options};

#[test]
fn every_subformat() {
    if !has("every_subformat", "qemu-img") {
        return;
    }
    let content = disk_content((9 << 20) + 3 * 512, 3);
    let kinds = [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ];
    for kind in kinds {
        for more in ["", ",zeroed_grain=on", ",compat6=on", ",adapter_type=lsilogic", ",hwversion=14"] {
            if more == ",zeroed_grain=on" && kind.ends_with("Flat") {
                continue;
            }
            let directory = TempDir::new().unwrap();
            let options = format!("subformat={kind}{more}");
            convert(directory.path(), &content, "a.vmdk", "vmdk", &["-o", &options]);
            let mut disk = open(directory.path(), "a.vmdk", Options::default());
            assert_eq!(disk.chain().layers()[0].format(), Format::Vmdk, "{options}: probed");
            // qemu presents sparse disks in whole grains.
            let expect = qemu_content(directory.path(), "a.vmdk", "vmdk");
            assert!(expect.starts_with(&content), "{options}: qemu-img reads what it wrote");
            assert_reads(&mut disk, &expect, &options);
            assert!(
                disk.chain().layers()[0].info().features.contains(&kind.to_owned()),
                "{options}: features"
            );
            if !kind.ends_with("Flat") {
                assert_eq!(
                    our_map(&mut disk),
                    qemu_map(directory.path(), "a.vmdk", "vmdk"),
                    "{options}: map"
                );
            }
        }
    }
}

#[test]
fn three_extents_across_two_gigabytes() {
    if !has("three_extents_across_two_gigabytes", "qemu-img") || !has("three_extents", "qemu-io") {
        return;
    }
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let options = format!("subformat={kind}");
        run(path, "qemu-img", &["create", "-f", "vmdk", "-o", &options, "a.vmdk", "4608M"]);
        let writes =
            ["write -P 1 2147418112 131072", "write -P 2 4294901760 131072", "write -P 3 4831834112 4096"];
        for write in writes {
            run(path, "qemu-io", &["-f", "vmdk", "-c", write, "a.vmdk"]);
        }
        let mut disk = open(path, "a.vmdk", Options::default());
        assert_eq!(disk.chain().virtual_size(), 4608 << 20);
        for (value, at, len) in [(1u8, 2147418112u64, 131072), (2, 4294901760, 131072), (3, 4831834112, 4096)]
        {
            let mut part = vec![0; len + 1024];
            let end = (at + len as u64 + 512).min(4608 << 20);
            let part = &mut part[..(end - (at - 512)) as usize];
            disk.read(at - 512, part).unwrap();
            let inside = |index: usize| (512..512 + len).contains(&index);
            for (index, byte) in part.iter().enumerate() {
                assert_eq!(*byte, if inside(index) { value } else { 0 }, "{kind}: {at:#x} + {index}");
            }
        }
        fs::remove_file(path.join("a.vmdk")).unwrap();
    }
}
