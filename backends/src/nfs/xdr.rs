//! XDR (RFC 4506): four-byte units, big endian. Reading never runs past the end and never allocates by what a
//! server's length says.

use bytes::{Buf, BufMut, Bytes};

/// Appends a counted byte string and its padding.
pub(super) fn put_opaque(out: &mut Vec<u8>, bytes: &[u8]) {
    // Names and handles, which are capped where they come from.
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
    out.put_bytes(0, bytes.len().next_multiple_of(4) - bytes.len());
}

/// What is left of a reply. Every method is `None` at its end.
#[derive(Clone, Debug)]
pub(super) struct Reader(pub(super) Bytes);

impl Reader {
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        match self.u32()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn skip(&mut self, len: usize) -> Option<()> {
        (len <= self.0.len()).then(|| self.0.advance(len))
    }

    /// A byte string of at most `most` bytes, without copying it.
    pub(super) fn opaque(&mut self, most: usize) -> Option<Bytes> {
        let len = self.u32()? as usize;
        let padded = len.checked_next_multiple_of(4)?;
        if len > most || padded > self.0.len() {
            return None;
        }
        let mut bytes = self.0.split_to(padded);
        bytes.truncate(len);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_and_lying_lengths_do_not_allocate() {
        for len in 0..9usize {
            let mut out = Vec::new();
            put_opaque(&mut out, &vec![7; len]);
            assert_eq!(out.len() % 4, 0);
            let mut reader = Reader(out.into());
            assert_eq!(reader.clone().opaque(len).unwrap(), vec![7; len]);
            assert!(len == 0 || reader.clone().opaque(len - 1).is_none());
            reader.opaque(len).unwrap();
            assert!(reader.u32().is_none() && reader.u64().is_none());
        }
        assert!(Reader(vec![0xff; 64].into()).opaque(usize::MAX).is_none());
        assert!(Reader(vec![0, 0, 0, 2].into()).flag().is_none());
        assert!(Reader(Bytes::new()).skip(1).is_none());
    }
}
