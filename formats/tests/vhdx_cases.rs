//! Damaged vhdx images, made from one that qemu-img writes.

mod common;

use common::images::{open_as, refusal};
use common::{content, convert, disk_content, has};
use tempfile::TempDir;
use thinorigin_formats::memory::Disk;

const KIB: usize = 1 << 10;

/// A dynamic vhdx with blocks of 1 MiB, and its content.
fn made() -> (Vec<u8>, Vec<u8>) {
    let directory = TempDir::new().unwrap();
    let bytes = disk_content(3 << 20, 21);
    convert(directory.path(), &bytes, "a.vhdx", "vhdx", &["-o", "block_size=1M"]);
    (std::fs::read(directory.path().join("a.vhdx")).unwrap(), bytes)
}

fn opened(name: &str, image: &[u8]) -> Disk {
    open_as(image, None).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn copies_stand_in_for_damaged_structures() {
    if !has("copies_stand_in_for_damaged_structures", "qemu-img") {
        return;
    }
    let (image, expect) = made();
    assert_eq!(content(&mut opened("good", &image)), expect);
    for at in [64, 128, 192, 256] {
        let mut damaged = image.clone();
        damaged[at * KIB + 20] ^= 1;
        assert_eq!(content(&mut opened("one copy damaged", &damaged)), expect, "damaged at {at} KiB");
    }
}

#[test]
fn what_is_refused() {
    if !has("what_is_refused", "qemu-img") {
        return;
    }
    let (image, _) = made();
    let refuse = |name: &str, image: &[u8], expect: &str| {
        let message = refusal(name, open_as(image, None));
        assert!(message.contains(expect), "{name}: {message}");
    };
    let both = |first: usize, second: usize, at: usize| {
        let mut image = image.clone();
        image[first * KIB + at] ^= 1;
        image[second * KIB + at] ^= 1;
        image
    };
    refuse("sig", &both(64, 128, 0), "vhdx header");
    refuse("crc", &both(64, 128, 100), "vhdx header");
    refuse("region-crc", &both(192, 256, 100), "vhdx region table");
    refuse("trunc", &image[..256 * KIB], "its file ends");
    refuse("magic", &image[..8], "vhdx header");
    // A cut file opens, and its lost blocks are errors, not zeros.
    let mut disk = opened("cut", &image[..image.len() - KIB]);
    let mut bytes = vec![0; 3 << 20];
    assert!(disk.read(0, &mut bytes).is_err_and(|error| error.to_string().contains("past the end")));
}
