//! Any bytes, opened as any format: an image or an error, after bounded reading.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thinorigin_fuzz::{format, open};

fuzz_target!(|input: &[u8]| {
    if let Some((&choice, image)) = input.split_last() {
        open(image, image, format(choice));
    }
});
