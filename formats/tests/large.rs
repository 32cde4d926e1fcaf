//! Large and nearly empty disks: what is read into memory does not grow with them beyond bounds.

mod common;

use common::counting::Counting;
use common::{has, open, our_map, run};
use tempfile::TempDir;
use thinorigin_formats::Options;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

#[test]
fn a_map_of_1_tib_takes_little_memory() {
    if !has("a_map_of_1_tib_takes_little_memory", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let dir = directory.path();
    // What qemu-img writes under this name, and with which options; the largest dynamic vhd is 2040 GiB.
    let variants = [
        ("qcow2", "cluster_size=64k,size=1T"),
        ("qcow2", "cluster_size=64k,extended_l2=on,size=1T"),
        ("qcow", "size=1T"),
        ("vpc", "subformat=dynamic,size=1T"),
        ("vhdx", "subformat=dynamic,size=1T"),
        ("vmdk", "subformat=monolithicSparse,size=1T"),
        ("vmdk", "subformat=twoGbMaxExtentSparse,size=1T"),
        ("raw", "size=1T"),
    ];
    for (format, options) in variants {
        let image = TempDir::new_in(dir).unwrap();
        run(image.path(), "qemu-img", &["create", "-q", "-f", format, "-o", options, "a.img"]);
        let write = ["-f", format, "-c", "write -P 1 512G 64k", "a.img"];
        run(image.path(), "qemu-io", &write);
        let before = Counting::reset();
        let mut disk = open(image.path(), "a.img", Options::default());
        let map = our_map(&mut disk);
        let peak = Counting::peak() - before;
        let found = map.iter().find(|entry| entry.start + entry.length > 512 << 30);
        assert!(found.is_some_and(|entry| entry.data), "{format} {options}");
        assert!(peak < 64 * MIB, "{format} {options}: {peak} bytes");
    }
}
