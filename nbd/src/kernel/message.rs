//! Generic netlink messages as bytes, built and taken apart without I/O.
//!
//! Layout: `include/uapi/linux/netlink.h`, `genetlink.h` and `nbd-netlink.h`. Everything is in the machine's byte order
//! and padded to four bytes. What the kernel sends is checked for bounds as if a stranger had sent it.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions
    )
)]

/// Length of a netlink header.
const HEADER: usize = 16;
/// Length of a generic netlink header.
const GENERIC_HEADER: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The bits of an attribute's type that are not its number: nested, and byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_NESTED: u16 = 0x8000;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_ACK: u16 = 0x5;

/// Attributes under construction.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds one attribute. It is short: what is sent is ours.
    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), b"\0"].concat())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NLA_NESTED, &inner.0)
    }
}

/// A whole request: `command` of `family`, to be acknowledged.
pub(super) fn request(family: u16, command: u8, attributes: &Attributes) -> Vec<u8> {
    let len = attributes.0.len().saturating_add(HEADER).saturating_add(GENERIC_HEADER);
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    // Sequence number and port: one request per socket needs neither.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// A message the kernel sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// The request is done: an error number, or 0.
    Done(i32),
    /// Attributes of the answer.
    Attributes(&'a [u8]),
}

/// The kernel sent what is no netlink message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// The messages in one datagram. Stops after the first that makes no sense.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Garbled>> {
    let mut rest = Some(datagram);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let Some((message, tail)) = message(bytes) else { return Some(Err(Garbled)) };
        rest = Some(tail);
        Some(Ok(message))
    })
}

fn message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..len)?;
    let tail = bytes.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
    let message = match kind {
        NLMSG_DONE => Message::Done(0),
        NLMSG_ERROR => Message::Done(i32::from_ne_bytes(*body.first_chunk()?)),
        _ => Message::Attributes(body.get(GENERIC_HEADER..)?),
    };
    Some((message, tail))
}

/// The attributes in `bytes`, number and value. Stops before the first that makes no sense.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// The value of the attribute `kind` in `bytes`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(of, _)| *of == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests;
