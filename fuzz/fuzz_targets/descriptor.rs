//! vmdk descriptors: the text is the input, all extents are one file of zeros.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thinorigin_formats::Format;
use thinorigin_fuzz::{open, walk};

fuzz_target!(|input: &[u8]| {
    let mut text = b"# Disk DescriptorFile\n".to_vec();
    text.extend_from_slice(input);
    let extent = vec![0; 64 << 10];
    if let Some(opened) = open(&text, &extent, Some(Format::Vmdk)) {
        walk(opened.layer.as_ref(), &text, &extent, 0, 2048);
        if let Some(parent) = opened.parent {
            assert!(!parent.names.is_empty());
        }
    }
});
