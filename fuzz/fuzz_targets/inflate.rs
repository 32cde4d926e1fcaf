//! Decoders: exactly the bytes that were asked for, or an error; the same answer from used state as from fresh.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use thinorigin_formats::{Codec, Inflater};

thread_local! {
    static USED: RefCell<Inflater> = RefCell::new(Inflater::new());
}

fuzz_target!(|input: &[u8]| {
    let Some(([choice, size], stored)) = input.split_first_chunk::<2>() else { return };
    let codecs = [Codec::Stored, Codec::Deflate, Codec::Zlib, Codec::Zstd, Codec::Grain { lba: 0 }];
    let codec = codecs[usize::from(*choice) % codecs.len()];
    let decoded = 1 << (9 + size % 13);
    let fresh = Inflater::new().decode(codec, stored, decoded);
    let used = USED.with_borrow_mut(|inflater| inflater.decode(codec, stored, decoded));
    assert_eq!(fresh, used);
    if let Ok(clear) = fresh {
        assert_eq!(clear.len(), decoded as usize);
    }
});
