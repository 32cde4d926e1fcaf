//! Replies of the transmission phase.
//!
//! A reply is written to a [`Sink`], header by header and segment by segment, so that the payload need not be in memory.
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

use super::Request;
use super::consts::{
    CommandFlags, Contexts, EXTENDED_REPLY_MAGIC, Headers, REPLY_FLAG_DONE, REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_BLOCK_STATUS_EXT, REPLY_TYPE_ERROR, REPLY_TYPE_ERROR_OFFSET, REPLY_TYPE_NONE,
    REPLY_TYPE_OFFSET_DATA, REPLY_TYPE_OFFSET_HOLE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use crate::{Errno, Extent, Failure, Segment};

/// Where replies go.
pub trait Sink {
    /// Appends header bytes.
    fn bytes(&mut self, bytes: &[u8]);

    /// Appends payload. After an error the reply is void: whoever made the sink undoes it.
    fn segment(&mut self, segment: &Segment) -> Result<(), Errno>;
}

/// Answers a request that has no result but success.
pub fn encode_done(headers: Headers, request: &Request, sink: &mut impl Sink) {
    if headers == Headers::Simple {
        simple(request, 0, sink);
    } else {
        chunk(headers, request, REPLY_FLAG_DONE, REPLY_TYPE_NONE, 0, sink);
    }
}

/// Answers a request with an error. Where it is, is told if that is inside the request.
pub fn encode_error(headers: Headers, request: &Request, failure: impl Into<Failure>, sink: &mut impl Sink) {
    let Failure { errno, at } = failure.into();
    if headers == Headers::Simple {
        return simple(request, errno.number(), sink);
    }
    let inside = |at: &u64| at.checked_sub(request.offset).is_some_and(|skip| skip < request.length);
    let (kind, place) = match at.filter(inside) {
        Some(at) => (REPLY_TYPE_ERROR_OFFSET, &at.to_be_bytes()[..]),
        None => (REPLY_TYPE_ERROR, &[][..]),
    };
    let text = errno.text().as_bytes();
    let len = u16::try_from(text.len()).unwrap_or_default();
    let place_len = u64::try_from(place.len()).unwrap_or_default();
    let payload = u64::from(len).saturating_add(6).saturating_add(place_len);
    chunk(headers, request, REPLY_FLAG_DONE, kind, payload, sink);
    sink.bytes(&errno.number().to_be_bytes());
    sink.bytes(&len.to_be_bytes());
    sink.bytes(text);
    sink.bytes(place);
}

/// Answers a READ. The segments' lengths add up to the request's. Adjacent data become one chunk and adjacent zeros one
/// hole; with `NBD_CMD_FLAG_DF` everything is one chunk.
pub fn encode_read(
    headers: Headers,
    request: &Request,
    segments: &[Segment],
    sink: &mut impl Sink,
) -> Result<(), Errno> {
    if headers == Headers::Simple {
        simple(request, 0, sink);
        return segments.iter().try_for_each(|segment| sink.segment(segment));
    }
    if request.length == 0 {
        encode_done(headers, request, sink);
        return Ok(());
    }
    let all_zero = segments.iter().all(Segment::is_zero);
    let whole = request.flags.contains(CommandFlags::DF) && !all_zero;
    let end = request.offset.saturating_add(request.length);
    let mut at = request.offset;
    let mut rest = segments;
    while let Some(first) = rest.first() {
        let hole = first.is_zero() && !whole;
        let count = rest.iter().take_while(|s| whole || s.is_zero() == hole).count();
        let Some((run, tail)) = rest.split_at_checked(count) else { break };
        rest = tail;
        let len = run.iter().fold(0_u64, |sum, s| sum.saturating_add(u64::from(s.len())));
        let next = at.saturating_add(len);
        let flags = if next >= end { REPLY_FLAG_DONE } else { 0 };
        if hole {
            chunk(headers, request, flags, REPLY_TYPE_OFFSET_HOLE, 12, sink);
            sink.bytes(&at.to_be_bytes());
            sink.bytes(&u32::try_from(len).map_err(|_| Errno::Overflow)?.to_be_bytes());
        } else {
            chunk(headers, request, flags, REPLY_TYPE_OFFSET_DATA, len.saturating_add(8), sink);
            sink.bytes(&at.to_be_bytes());
            run.iter().try_for_each(|segment| sink.segment(segment))?;
        }
        at = next;
    }
    Ok(())
}

/// Answers a BLOCK_STATUS: one chunk for each of `contexts`, of which there is at least one.
pub fn encode_status(
    headers: Headers,
    contexts: Contexts,
    request: &Request,
    extents: &[Extent],
    sink: &mut impl Sink,
) -> Result<(), Errno> {
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    let mut left = contexts;
    for context in contexts.iter() {
        left.remove(context);
        let runs = runs(context, extents, one);
        let flags = if left.is_empty() { REPLY_FLAG_DONE } else { 0 };
        let count = u32::try_from(runs.len()).map_err(|_| Errno::Overflow)?;
        if headers == Headers::Extended {
            let payload = u64::from(count).saturating_mul(16).saturating_add(8);
            chunk(headers, request, flags, REPLY_TYPE_BLOCK_STATUS_EXT, payload, sink);
            sink.bytes(&context.bits().to_be_bytes());
            sink.bytes(&count.to_be_bytes());
            for (len, status) in runs {
                sink.bytes(&len.to_be_bytes());
                sink.bytes(&u64::from(status).to_be_bytes());
            }
        } else {
            let payload = u64::from(count).saturating_mul(8).saturating_add(4);
            chunk(headers, request, flags, REPLY_TYPE_BLOCK_STATUS, payload, sink);
            sink.bytes(&context.bits().to_be_bytes());
            for (len, status) in runs {
                sink.bytes(&u32::try_from(len).map_err(|_| Errno::Overflow)?.to_be_bytes());
                sink.bytes(&status.to_be_bytes());
            }
        }
    }
    Ok(())
}

/// Extents as one context sees them, adjacent equal ones merged.
fn runs(context: Contexts, extents: &[Extent], one: bool) -> Vec<(u64, u32)> {
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for extent in extents {
        let status = match context {
            Contexts::ALLOCATION => extent.flags.bits(),
            Contexts::DEPTH => extent.depth,
            _ => u32::from(extent.local),
        };
        match runs.last_mut() {
            Some((len, last)) if *last == status => *len = len.saturating_add(extent.len),
            Some(_) if one => break,
            _ => runs.push((extent.len, status)),
        }
    }
    runs
}

fn simple(request: &Request, error: u32, sink: &mut impl Sink) {
    let mut header = [0; 16];
    let (magic, rest) = header.split_at_mut(4);
    let (errno, cookie) = rest.split_at_mut(4);
    magic.copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    errno.copy_from_slice(&error.to_be_bytes());
    cookie.copy_from_slice(&request.cookie.0.to_be_bytes());
    sink.bytes(&header);
}

fn chunk(headers: Headers, request: &Request, flags: u16, kind: u16, payload: u64, sink: &mut impl Sink) {
    let extended = headers == Headers::Extended;
    let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
    sink.bytes(&magic.to_be_bytes());
    sink.bytes(&flags.to_be_bytes());
    sink.bytes(&kind.to_be_bytes());
    sink.bytes(&request.cookie.0.to_be_bytes());
    if extended {
        sink.bytes(&request.offset.to_be_bytes());
        sink.bytes(&payload.to_be_bytes());
    } else {
        // A READ carries at most 32 MiB, and extents are as few as the driver asks for.
        let [_, _, _, _, low @ ..] = payload.to_be_bytes();
        sink.bytes(&low);
    }
}
