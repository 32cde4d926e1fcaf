//! Images whose structures lie far apart and carry checksums (vhdx, vhd): the input is a list of pieces with their
//! places, and the checksums are put right before the parser sees them, so that mutations get past them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use thinorigin_formats::Format;
use thinorigin_fuzz::sparse::Sparse;
use thinorigin_fuzz::{open, walk};

thread_local! {
    static IMAGE: RefCell<Sparse> = RefCell::new(Sparse::new());
}

fuzz_target!(|input: &[u8]| {
    let Some(([choice, at], pieces)) = input.split_first_chunk::<2>() else { return };
    let format = if choice % 2 == 0 { Format::Vhdx } else { Format::Vhd };
    IMAGE.with_borrow_mut(|sparse| {
        sparse.fill(pieces);
        match format {
            Format::Vhdx => sparse.seal_vhdx(),
            _ => sparse.seal_vhd(),
        }
        let image = sparse.image();
        if let Some(opened) = open(image, image, Some(format)) {
            let size = opened.layer.virtual_size();
            walk(opened.layer.as_ref(), image, image, 0, 64);
            walk(opened.layer.as_ref(), image, image, size / 256 * u64::from(*at), 64);
        }
        sparse.clear();
    });
});
