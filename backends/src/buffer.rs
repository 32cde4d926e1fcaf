//! Memory that is used again.
//!
//! Blocks are read and decoded into memory that somebody sends and then lets go of. To ask the C library for it each time
//! means to have it zeroed, and often to have the kernel map it anew: with fast codecs a tenth of all the work. What was
//! let go of last is also what the processor's caches still hold. All of it begins with a line of those caches: the kernel
//! copies to other places at two thirds of the speed, and to some at a third (`docs/performance.md`).

use bytes::Bytes;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The smallest and the largest buffer that is kept, as powers of two.
const CLASSES: std::ops::RangeInclusive<u32> = 12..=22;
/// Most bytes that are kept in all.
const KEPT: usize = 8 << 20;

/// Bytes in a line of the caches, on every processor that this is likely to run on.
const LINE: usize = 64;

/// Initialised bytes, of which those from `begin` on are used.
#[derive(Debug, Default)]
struct Memory {
    bytes: Vec<u8>,
    begin: usize,
}

impl Memory {
    /// Room for `len` bytes that begin with a line.
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + LINE - 1];
        // A place that cannot be had costs time and nothing else.
        let begin = bytes.as_ptr().align_offset(LINE).min(LINE - 1);
        Memory { bytes, begin }
    }

    /// How many bytes there is room for.
    fn room(&self) -> usize {
        self.bytes.len().saturating_sub(LINE - 1)
    }
}

/// Memory by its size, and how many bytes it has.
struct Spare {
    classes: [Vec<Memory>; (*CLASSES.end() - *CLASSES.start() + 1) as usize],
    bytes: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare {
    classes: [const { Vec::new() }; (*CLASSES.end() - *CLASSES.start() + 1) as usize],
    bytes: 0,
});

fn spare() -> MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The class of buffers for `len` bytes, if such are kept.
fn class(len: usize) -> Option<usize> {
    let power = len.max(1).next_power_of_two().trailing_zeros().max(*CLASSES.start());
    CLASSES.contains(&power).then_some((power - CLASSES.start()) as usize)
}

/// A piece of memory to be filled and then shared. When nobody refers to it any more it is used again.
#[derive(Debug)]
pub struct Buffer {
    /// As long as that of its class is.
    memory: Memory,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes that may have any content, what other buffers had among it: whoever makes one
    /// overwrites all of it before somebody else sees it.
    pub fn any(len: usize) -> Self {
        let Some(class) = class(len) else { return Buffer { memory: Memory::new(len), len } };
        let kept = {
            let mut spare = spare();
            let kept = spare.classes[class].pop();
            spare.bytes -= kept.as_ref().map_or(0, Memory::room);
            kept
        };
        let memory = kept.unwrap_or_else(|| Memory::new(1 << (class as u32 + CLASSES.start())));
        Buffer { memory, len }
    }

    /// The content, to be overwritten.
    pub fn content(&mut self) -> &mut [u8] {
        &mut self.memory.bytes[self.memory.begin..][..self.len]
    }

    /// The content, shared.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory.bytes[self.memory.begin..][..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let room = self.memory.room();
        let Some(class) = class(room) else { return };
        let mut spare = spare();
        if spare.bytes + room <= KEPT {
            spare.bytes += room;
            spare.classes[class].push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Others in this process may use buffers of these sizes as well, so that nothing is said about which comes back.
    #[test]
    fn what_somebody_reads_is_not_used_again() {
        let mut buffer = Buffer::any(100_000);
        buffer.content().fill(7);
        let bytes = buffer.freeze();
        assert_eq!(bytes.len(), 100_000);
        let reader = bytes.slice(10..20);
        drop(bytes);
        let mut others: Vec<_> = (0..20).map(|_| Buffer::any(100_000)).collect();
        others.iter_mut().for_each(|buffer| buffer.content().fill(8));
        assert_eq!(reader, vec![7; 10]);
        assert!(others.iter().all(|buffer| buffer.as_ref() == vec![8; 100_000]));
    }

    #[test]
    fn every_length_is_had_and_no_more_is_kept_than_may_be() {
        for len in [0, 1, 4095, 4096, 4097, (4 << 20) - 1, 4 << 20, (4 << 20) + 1] {
            let mut buffer = Buffer::any(len);
            assert_eq!(buffer.content().len(), len);
            assert_eq!(buffer.content().as_ptr() as usize % LINE, 0);
        }
        let taken: Vec<_> = (0..10).map(|_| Buffer::any(2 << 20)).collect();
        drop(taken);
        let spare = spare();
        let kept: usize = spare.classes.iter().flatten().map(Memory::room).sum();
        assert_eq!(kept, spare.bytes);
        assert!(kept <= KEPT, "{kept}");
    }
}
