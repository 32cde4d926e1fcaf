//! Numbers out of byte structures, without a way to overrun them.

use crate::{FormatError, Result};

/// A structure of known place whose fields are read by offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    /// `bytes` are the structure called `what`.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Fields { bytes, what }
    }

    /// `len` bytes at `at`.
    pub(crate) fn slice(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        at.checked_add(len)
            .and_then(|end| self.bytes.get(at..end))
            .ok_or(FormatError::Refused { what: self.what, rule: "it is shorter than its fields" })
    }

    /// `N` bytes at `at`.
    pub(crate) fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(at, N)?);
        Ok(array)
    }

    /// One byte.
    pub(crate) fn u8(&self, at: usize) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array(at)?))
    }

    /// A big-endian 16-bit number.
    pub(crate) fn be16(&self, at: usize) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array(at)?))
    }

    /// A big-endian 32-bit number.
    pub(crate) fn be32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array(at)?))
    }

    /// A big-endian 64-bit number.
    pub(crate) fn be64(&self, at: usize) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array(at)?))
    }

    /// A little-endian 16-bit number.
    pub(crate) fn le16(&self, at: usize) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(at)?))
    }

    /// A little-endian 32-bit number.
    pub(crate) fn le32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    /// A little-endian 64-bit number.
    pub(crate) fn le64(&self, at: usize) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }
}

/// The big-endian 32-bit numbers of `bytes`; a short rest is dropped.
pub(crate) fn be32s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_be_bytes(*chunk))
}

/// The big-endian 64-bit numbers of `bytes`; a short rest is dropped.
pub(crate) fn be64s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_be_bytes(*chunk))
}

/// The little-endian 32-bit numbers of `bytes`; a short rest is dropped.
pub(crate) fn le32s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk))
}

/// The little-endian 64-bit numbers of `bytes`; a short rest is dropped.
pub(crate) fn le64s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk))
}

/// `value` as an index or length in memory. On a machine where it does not fit, the largest one, which no slice has.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The length of something in memory as a file or guest length.
pub(crate) fn length(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A name as text. Control characters have no place in one and could fool a log or a terminal.
pub(crate) fn text(what: &'static str, bytes: &[u8]) -> Result<String> {
    let rule = "it is not UTF-8 text without control characters";
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(FormatError::Refused { what, rule }),
    }
}
