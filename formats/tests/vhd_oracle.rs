//! Every kind of vhd that qemu-img can write: content and map are what qemu-img says they are.

mod common;

use common::{assert_reads, convert, disk_content, has, open, our_map, qemu_content, qemu_map};
use tempfile::TempDir;
use thinorigin_formats::{Format, Options};

#[test]
fn fixed_and_dynamic() {
    if !has("fixed_and_dynamic", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    for size in [1 << 20, (9 << 20) + 512, 33 << 20] {
        // The second half of the largest is empty, so that blocks are absent.
        let mut content = disk_content(size.min(20 << 20), 2);
        content.resize(size, 0);
        for subformat in ["subformat=fixed", "subformat=dynamic"] {
            for force in ["force_size=on", "force_size=off"] {
                let name = format!("{subformat},{force},{size}");
                convert(directory.path(), &content, "a.vhd", "vpc", &["-o", &format!("{subformat},{force}")]);
                // Without force_size, qemu-img rounds the size up to a geometry.
                let expect = qemu_content(directory.path(), "a.vhd", "vpc");
                assert!(expect.starts_with(&content), "{name}: qemu-img reads what it wrote");
                let mut disk = open(directory.path(), "a.vhd", Options::default());
                assert_eq!(disk.chain().layers()[0].format(), Format::Vhd, "{name}: probed");
                assert_reads(&mut disk, &expect, &name);
                if subformat == "subformat=dynamic" {
                    assert_eq!(our_map(&mut disk), qemu_map(directory.path(), "a.vhd", "vpc"), "{name}: map");
                }
            }
        }
    }
}
