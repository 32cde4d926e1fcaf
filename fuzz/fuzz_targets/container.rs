//! Any bytes as an archive or a compressed file: members and blocks inside the file, bounded reading, and of every
//! block exactly its bytes or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thinorigin_formats::container::{Container, Look, Unpacking};
use thinorigin_formats::{Ask, limits};

fuzz_target!(|input: &[u8]| {
    // The end of the input serves as the index beside the file.
    let Some((split, input)) = input.split_first() else { return };
    let (file, index) = input.split_at(input.len() - usize::from(*split).min(input.len()));
    let mut unpacking = Unpacking::new(file.len() as u64, "image");
    let mut asks = 0;
    let container = loop {
        asks += 1;
        assert!(asks <= limits::OPEN_ASKS + 1, "too many asks");
        match unpacking.poll() {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
            Ok(Look::Done(container)) => break container,
            Ok(Look::Need(Ask::File { .. })) => unpacking.supply_file(index.len() as u64),
            Ok(Look::Need(Ask::Bytes { file: which, at, len })) => {
                let bytes = if which.0 == 0 { file } else { index };
                assert!(len > 0 && len <= limits::ROOT_BYTES, "{len} bytes asked for");
                let end = at.checked_add(len.into()).expect("the range ends");
                assert!(end <= bytes.len() as u64, "{at:#x}+{len:#x} is outside the file");
                unpacking.supply_bytes(bytes[at as usize..end as usize].to_vec());
            }
        }
    };
    match container {
        Container::None => {}
        Container::Archive(archive) => {
            for member in archive.members() {
                assert!(member.at.checked_add(member.len).is_some_and(|end| end <= file.len() as u64), "{member:?}");
            }
            let _picked = archive.pick(None);
        }
        Container::Packed(packed) => {
            let mut at = 0;
            let mut decoded = 0;
            while let Some((_, block)) = packed.find(at) {
                assert!(block.start == at && block.decoded > 0, "{block:?} at {at:#x}");
                assert!(block.len.max(block.decoded) <= limits::BLOCK_BYTES, "{block:?}");
                at += u64::from(block.decoded);
                decoded += block.decoded;
                // Blocks that say they are large only cost time.
                if decoded > 4 << 20 {
                    break;
                }
                let start = usize::try_from(block.at).unwrap_or(usize::MAX).min(file.len());
                let end = start.saturating_add(block.len as usize).min(file.len());
                if let Ok(clear) = packed.decode(&block, &file[start..end]) {
                    assert_eq!(clear.len(), block.decoded as usize);
                }
            }
        }
    }
});
