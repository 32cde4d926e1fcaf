//! What an answer to a range request must look like, before a byte of its body is believed.
//!
//! Pure: status and headers in, a verdict out. RFC 9110 sections 14 (range requests), 13 (preconditions) and 8.8
//! (validators) are what is checked against.

use super::checksum::Checksum;
use crate::tries::Fault;
use crate::{Kind, retry::Failure};
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
    RETRY_AFTER,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use std::ops::Range;
use std::time::{Duration, SystemTime};

/// What tells one content of an object from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Validator {
    /// A strong entity tag: equal tags, equal bytes (RFC 9110 8.8.1).
    Strong(HeaderValue),
    /// A date, and a weak tag if there was one.
    Modified(HeaderValue, Option<HeaderValue>),
    /// The server says nothing.
    None,
}

impl Validator {
    pub(super) fn of(headers: &HeaderMap) -> Validator {
        let tag = headers.get(ETAG);
        match (tag, headers.get(LAST_MODIFIED)) {
            (Some(tag), _) if tag.as_bytes().starts_with(b"\"") && tag.len() > 2 => {
                Validator::Strong(tag.clone())
            }
            (tag, Some(modified)) => Validator::Modified(modified.clone(), tag.cloned()),
            _ => Validator::None,
        }
    }

    /// The form that identities hold.
    pub(super) fn text(&self) -> String {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        match self {
            Validator::Strong(tag) => format!("etag:{}", text(tag)),
            Validator::Modified(modified, None) => format!("mtime:{}", text(modified)),
            Validator::Modified(modified, Some(tag)) => format!("mtime:{},{}", text(modified), text(tag)),
            Validator::None => String::new(),
        }
    }

    /// The header that makes the server refuse if the object is another by now.
    pub(super) fn precondition(&self) -> Option<(http::HeaderName, HeaderValue)> {
        match self {
            Validator::Strong(tag) => Some((IF_MATCH, tag.clone())),
            Validator::Modified(modified, _) => Some((IF_UNMODIFIED_SINCE, modified.clone())),
            Validator::None => None,
        }
    }
}

/// Size and validator as seen at open.
#[derive(Clone, Debug)]
pub(super) struct Pinned {
    pub(super) size: u64,
    pub(super) validator: Validator,
}

impl Pinned {
    /// Whether `part` is of this object, as far as a validator says so.
    pub(super) fn is_of(&self, part: &Part) -> bool {
        self.validator != Validator::None && self.validator == part.validator && self.size == part.total
    }
}

/// Which bytes an answer's body is about to hold.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) total: u64,
    pub(super) validator: Validator,
    /// Of the body.
    pub(super) checksum: Option<Checksum>,
}

/// The first answer: what the object is. `asked` starts at 0; the object may be shorter.
pub(super) fn first(status: StatusCode, headers: &HeaderMap, asked: &Range<u64>) -> Result<Part, Fault> {
    let empty = Part { range: 0..0, total: 0, validator: Validator::of(headers), checksum: None };
    match status {
        StatusCode::PARTIAL_CONTENT => part(headers, asked, None),
        // No byte range can be satisfied in an empty object (RFC 9110 15.5.17); some servers answer 200 to it.
        StatusCode::RANGE_NOT_SATISFIABLE if unsatisfied_total(headers) == Some(0) => Ok(empty),
        StatusCode::OK if length(headers) == Some(0) => Ok(empty),
        StatusCode::OK => Err(Fault::new(
            Kind::Unsupported,
            Failure::Final,
            "the server ignores range requests (it answered 200 to one), and images are read in ranges",
        )),
        status => Err(refusal(status, headers)),
    }
}

/// The answer to a request for the last `len` bytes, which is sent before anything is known. Only one that gives all of them
/// is of use.
pub(super) fn last(status: StatusCode, headers: &HeaderMap, len: u64) -> Result<Part, Fault> {
    if status != StatusCode::PARTIAL_CONTENT {
        return Err(refusal(status, headers));
    }
    let range = headers.get(CONTENT_RANGE).and_then(|value| content_range(value.to_str().ok()?));
    let total = range.map_or(0, |(_, total)| total);
    let part = part(headers, &(total.saturating_sub(len)..total), None)?;
    match part.range.end == total {
        true => Ok(part),
        false => Err(wrong("the server sent fewer bytes than the last ones that were asked for")),
    }
}

/// Every later answer, to a request for `asked` of the object `pinned`.
pub(super) fn later(
    status: StatusCode,
    headers: &HeaderMap,
    asked: &Range<u64>,
    pinned: &Pinned,
) -> Result<Part, Fault> {
    match status {
        StatusCode::PARTIAL_CONTENT => part(headers, asked, Some(pinned)),
        StatusCode::PRECONDITION_FAILED if pinned.validator != Validator::None => {
            Err(changed("the server holds another version of it now"))
        }
        StatusCode::RANGE_NOT_SATISFIABLE => match unsatisfied_total(headers) {
            Some(total) if total != pinned.size => {
                Err(changed(format!("its size is {total} bytes now, it was {}", pinned.size)))
            }
            _ => Err(wrong(format!(
                "the server says that bytes {} to {} do not exist",
                asked.start, asked.end
            ))),
        },
        StatusCode::OK => match Validator::of(headers) {
            other
                if pinned.validator != Validator::None
                    && other != Validator::None
                    && other != pinned.validator =>
            {
                Err(changed("the server sent another version of it"))
            }
            _ => Err(wrong("the server answered 200, the whole object, to a range request")),
        },
        status => Err(refusal(status, headers)),
    }
}

/// The object is another than the one opened.
pub(super) fn changed(how: impl std::fmt::Display) -> Fault {
    Fault::new(Kind::Changed, Failure::Final, format!("the object changed since it was opened: {how}"))
}

fn wrong(what: impl Into<String>) -> Fault {
    Fault::new(Kind::BadAnswer, Failure::Wrong, what)
}

/// Checks a 206.
fn part(headers: &HeaderMap, asked: &Range<u64>, pinned: Option<&Pinned>) -> Result<Part, Fault> {
    if let Some(encoding) =
        headers.get(CONTENT_ENCODING).filter(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(wrong(format!(
            "the server sent the range with content encoding {encoding:?} though none was accepted"
        )));
    }
    let Some(value) = headers.get(CONTENT_RANGE) else {
        return Err(wrong("the server answered 206 without Content-Range"));
    };
    let Some((range, total)) = value.to_str().ok().and_then(content_range) else {
        return Err(wrong(format!("the server sent a Content-Range that cannot be understood, {value:?}")));
    };
    let validator = Validator::of(headers);
    if let Some(pinned) = pinned {
        if pinned.validator != Validator::None && validator == Validator::None {
            return Err(wrong("the answer does not say which version of the object it is from"));
        }
        if pinned.validator != Validator::None && validator != pinned.validator {
            return Err(changed("the server sent another version of it"));
        }
        if total != pinned.size {
            return Err(changed(format!("its size is {total} bytes now, it was {}", pinned.size)));
        }
    }
    // A server may send less than was asked for, but not something else (RFC 9110 15.3.7).
    if range.start != asked.start || range.end > asked.end.min(total) {
        return Err(wrong(format!(
            "the server sent bytes {} to {} when {} to {} were asked for",
            range.start, range.end, asked.start, asked.end
        )));
    }
    if length(headers).is_some_and(|length| length != range.end - range.start) {
        return Err(wrong("the answer's Content-Length and Content-Range disagree"));
    }
    // S3's checksums are of whole objects, whatever part of one is sent.
    let whole = range == (0..total);
    Ok(Part { range, total, validator, checksum: whole.then(|| Checksum::of(headers)).flatten() })
}

/// `bytes 0-99/1000`, as a half-open range and the total. Unknown totals (`*`) are of no use.
fn content_range(value: &str) -> Option<(Range<u64>, u64)> {
    let (unit, rest) = value.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (number(first)?, number(last)?, number(total)?);
    (unit.eq_ignore_ascii_case("bytes") && first <= last && last < total).then(|| (first..last + 1, total))
}

/// The total in `bytes */1000`, which comes with a 416.
fn unsatisfied_total(headers: &HeaderMap) -> Option<u64> {
    number(
        headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes")?.trim().strip_prefix("*/")?,
    )
}

fn length(headers: &HeaderMap) -> Option<u64> {
    number(headers.get(CONTENT_LENGTH)?.to_str().ok()?)
}

/// Digits only: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What a status that is not an answer means.
pub(super) fn refusal(status: StatusCode, headers: &HeaderMap) -> Fault {
    let code = status.as_u16();
    let (kind, failure, what) = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            (Kind::NotFound, Failure::Final, "no such object".to_owned())
        }
        StatusCode::UNAUTHORIZED => {
            (Kind::Denied, Failure::Final, "the server wants credentials, or other ones".to_owned())
        }
        StatusCode::FORBIDDEN => (Kind::Denied, Failure::Final, "the server denies access".to_owned()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
            (Kind::Unreachable, Failure::Transient, "the server gave up on the request".to_owned())
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let failure = Failure::Busy(retry_after(headers, SystemTime::now()).unwrap_or_default());
            (Kind::Unreachable, failure, "the server is too busy".to_owned())
        }
        status if status.is_server_error() => {
            (Kind::Unreachable, Failure::Transient, "the server failed".to_owned())
        }
        _ => (Kind::BadAnswer, Failure::Wrong, "the server did not send the range".to_owned()),
    };
    Fault::new(kind, failure, format!("{what} (status {code})"))
}

/// How long the server asks to wait from `now` on: seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match number(value) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => httpdate::parse_http_date(value).ok().map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
