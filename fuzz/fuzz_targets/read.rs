//! Whatever opens has a map that covers the disk, gets ahead at every step, and stays inside its bounds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thinorigin_fuzz::{format, open, walk};

fuzz_target!(|input: &[u8]| {
    let Some((tail, image)) = input.split_last_chunk::<9>().map(|(image, tail)| (tail, image)) else { return };
    let at = u64::from_le_bytes(tail[..8].try_into().expect("8 bytes"));
    if let Some(opened) = open(image, image, format(tail[8])) {
        walk(opened.layer.as_ref(), image, image, 0, 64);
        walk(opened.layer.as_ref(), image, image, at % opened.layer.virtual_size().max(1), 64);
    }
});
