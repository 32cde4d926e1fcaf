//! 10 000 damaged images: none panics, none takes long or much memory to open or to read from.
//!
//! Mutations are deterministic. They aim at the metadata: single bits, bytes of interest, numbers at the edges of
//! their ranges, and cut ends.

mod common;

use common::Random;
use common::counting::Counting;
use common::images::{deflate, put, qcow, qcow2, qcow2_over, read, vhd, vmdk, vmdk_stream, zlib};
use std::path::Path;
use std::time::{Duration, Instant};
use thinorigin_formats::container::{Container, Look, Unpacking};
use thinorigin_formats::memory::{Directory, Disk};
use thinorigin_formats::{Ask, Format, Options};

const MIB: usize = 1 << 20;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A good image, and the ranges (start and length) that hold its metadata.
type Seed = (Format, Vec<u8>, Vec<(usize, usize)>);

/// Good images of all formats: those that are easy to write down, and the specimens.
fn seeds() -> Vec<Seed> {
    let mut compressed = qcow2();
    let stored = deflate(&[0x44; 0x10000]);
    put(&mut compressed, 0x20000, &(0x30000u64 | 1 << 62).to_be_bytes());
    put(&mut compressed, 0x30000, &stored);
    let grain = zlib(&[0x44; 0x10000], 6);
    let tables = vec![(0, 160), (0x10000, 8), (0x20000, 64)];
    let mut seeds = vec![
        (Format::Qcow2, qcow2(), tables.clone()),
        (Format::Qcow2, qcow2_over(b"base"), vec![(0, 160), (0x400, 4)]),
        (Format::Qcow2, compressed, [tables, vec![(0x30000, stored.len())]].concat()),
        (Format::Vhd, vhd(3, [0xff; 512]), vec![(0, 512), (0x200, 64), (0x600, 8)]),
        (Format::Vhd, vhd(4, [0x55; 512]), vec![(0x200, 1024), (0x600, 8), (0x800, 512)]),
        (Format::Vmdk, vmdk(), vec![(0, 80), (512, 200), (0x3000, 8), (0x3200, 64)]),
        (
            Format::Vmdk,
            vmdk_stream(Some((0, grain.len() as u32)), &grain),
            vec![(0, 80), (0x3200, 64), (0x10000, 64)],
        ),
        (Format::Qcow, qcow(), vec![(0, 48), (0x1000, 8), (0x2000, 64)]),
    ];
    let specimens = [
        (Format::Vhd, "batmap.vhd"),
        (Format::Vhdx, "base.vhdx.xz"),
        (Format::Vhdx, "log.vhdx.xz"),
        (Format::Vmdk, "cowd-delta.vmdk"),
        (Format::Vmdk, "sesparse-delta.vmdk"),
    ];
    seeds.extend(specimens.map(|(format, name)| {
        let image = specimen(name);
        let ranges = written(&image);
        (format, image, ranges)
    }));
    seeds
}

/// A file of `tests/data`, unpacked.
fn specimen(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name);
    let file = std::fs::read(path).unwrap();
    let mut unpacking = Unpacking::new(file.len() as u64, name);
    loop {
        match unpacking.poll().unwrap() {
            Look::Need(Ask::Bytes { at, len, .. }) => {
                unpacking.supply_bytes(file[at as usize..at as usize + len as usize].to_vec());
            }
            Look::Done(Container::Packed(packed)) => {
                let mut image = Vec::new();
                while let Some((_, block)) = packed.find(image.len() as u64) {
                    let stored = &file[block.at as usize..block.at as usize + block.len as usize];
                    image.extend(packed.decode(&block, stored).unwrap());
                }
                return image;
            }
            Look::Done(Container::None) => return file,
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// The sectors of `image` that are not zero.
fn written(image: &[u8]) -> Vec<(usize, usize)> {
    let sectors = image.chunks(512).enumerate();
    sectors
        .filter(|(_, sector)| sector.iter().any(|&byte| byte != 0))
        .map(|(n, sector)| (n * 512, sector.len()))
        .collect()
}

/// Damages `image` in one to four places.
fn mutate(image: &mut Vec<u8>, ranges: &[(usize, usize)], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let (start, len) = ranges[random.below(ranges.len() as u64) as usize];
        let at = (start + random.below(len as u64) as usize).min(image.len() - 9);
        match random.below(6) {
            0 => image[at] ^= 1 << random.below(8),
            1 => image[at] = random.next() as u8,
            2 => image[at..at + 4].fill(0xff),
            3 => image[at..at + 8].copy_from_slice(&(1u64 << random.below(64)).to_be_bytes()),
            4 => image[at..at + 8].copy_from_slice(&(1u64 << random.below(64)).to_le_bytes()),
            _ => image[at..at + 8].fill(0),
        }
    }
    if random.below(10) == 0 {
        let len = 16 + random.below(image.len() as u64 - 16) as usize;
        image.truncate(len);
    }
}

#[test]
fn ten_thousand_mutations() {
    let seeds = seeds();
    let mut random = Random(42);
    let (mut opened, mut refused, mut unreadable) = (0, 0, 0);
    for round in 0..10_000 {
        let (format, seed, ranges) = &seeds[round % seeds.len()];
        let mut image = seed.clone();
        mutate(&mut image, ranges, &mut random);
        let mut directory = Directory::new();
        directory.add("image", image);
        directory.add("base", vec![0x5a; 4096]);
        let started = Instant::now();
        let before = Counting::reset();
        let format = Some(*format).filter(|_| random.below(2) == 0);
        match Disk::open(&directory, "image", Options { format, ..Options::default() }) {
            Err(_) => refused += 1,
            Ok(mut disk) => {
                opened += 1;
                let size = disk.chain().virtual_size();
                for at in [0, size / 2, size.saturating_sub(4096)] {
                    let len = 4096.min(size.saturating_sub(at)) as usize;
                    unreadable += usize::from(read(&mut disk, at, len).is_err());
                }
            }
        }
        let (took, peak) = (started.elapsed(), Counting::peak() - before);
        assert!(took < Duration::from_secs(1), "image {round} takes {took:?}");
        assert!(peak < 64 * MIB, "image {round} takes {peak} bytes");
    }
    // The mutations have to get past the front door, and not leave everything whole either.
    assert!(opened > 1000 && refused > 1000 && unreadable > 100, "{opened} {refused} {unreadable}");
}
