//! Two images out of one input as a chain, read through the driver.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thinorigin_formats::memory::{Directory, Disk};
use thinorigin_formats::{Kind, Options};
use thinorigin_fuzz::format;

fuzz_target!(|input: &[u8]| {
    let Some((tail, images)) = input.split_last_chunk::<11>().map(|(images, tail)| (tail, images)) else {
        return;
    };
    let split = usize::from(u16::from_le_bytes([tail[0], tail[1]])).min(images.len());
    let (top, base) = images.split_at(split);
    let mut directory = Directory::new();
    directory.add("top", top.to_vec());
    for name in ["base", "b", "a", "base.raw", "a.vmdk", "parent.vhd"] {
        directory.add(name, base.to_vec());
    }
    let options = Options { format: format(tail[2]), snapshot: None };
    let Ok(mut disk) = Disk::open(&directory, "top", options) else { return };
    let size = disk.chain().virtual_size();
    let at = u64::from_le_bytes(tail[3..].try_into().expect("8 bytes"));
    let mut next = at % size.max(1);
    for _ in 0..32 {
        if next >= size {
            break;
        }
        let Ok(extent) = disk.extent(next, size - next) else { break };
        assert!(extent.start == next && extent.len > 0 && extent.len <= size - next, "{extent:?}");
        if let Kind::Compressed(unit) = extent.kind
            && disk.chain().layers()[extent.layer].info().aligned_units
        {
            let cluster = disk.chain().layers()[extent.layer].info().cluster_size;
            assert!(
                cluster.is_some_and(|cluster| unit.guest % cluster == 0 && unit.decoded as u64 <= cluster),
                "{unit:?}"
            );
        }
        if let ([only], Kind::Data { .. }) = (disk.chain().layers(), extent.kind)
            && only.info().whole_clusters
            && extent.start != at % size
        {
            let cluster = only.info().cluster_size.unwrap_or(1);
            assert!(extent.start % cluster == 0, "{extent:?}");
        }
        let mut bytes = vec![0; extent.len.min(4096) as usize];
        let _read = disk.read(next, &mut bytes);
        next += extent.len;
    }
});
