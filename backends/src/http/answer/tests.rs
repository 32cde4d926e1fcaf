use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn pinned() -> Pinned {
    Pinned { size: 1000, validator: Validator::Strong(HeaderValue::from_static("\"a\"")) }
}

fn check(status: u16, pairs: &[(&'static str, &str)]) -> Result<Range<u64>, (Kind, Failure)> {
    later(StatusCode::from_u16(status).unwrap(), &headers(pairs), &(100..200), &pinned())
        .map(|part| part.range)
        .map_err(|fault| (fault.kind, fault.failure))
}

const BAD: Result<Range<u64>, (Kind, Failure)> = Err((Kind::BadAnswer, Failure::Wrong));
const CHANGED: Result<Range<u64>, (Kind, Failure)> = Err((Kind::Changed, Failure::Final));

#[test]
fn only_the_asked_range_of_the_pinned_object_is_taken() {
    let etag = ("etag", "\"a\"");
    let range = ("content-range", "bytes 100-199/1000");
    assert_eq!(check(206, &[etag, range, ("content-length", "100")]), Ok(100..200));
    assert_eq!(check(206, &[etag, ("content-range", "bytes 100-149/1000")]), Ok(100..150));
    assert_eq!(check(206, &[etag, range, ("content-encoding", "identity")]), Ok(100..200));
    for wrong in [
        "bytes 0-99/1000",
        "bytes 101-199/1000",
        "bytes 100-200/1000",
        "bytes 199-100/1000",
        "bytes 100-199/*",
        "bytes 100-199/150",
        "bytes +100-199/1000",
        "bytes 100-/1000",
        "lines 100-199/1000",
        "bytes=100-199/1000",
        "bytes 18446744073709551616-199/1000",
        "",
    ] {
        assert_eq!(check(206, &[etag, ("content-range", wrong)]), BAD, "{wrong}");
    }
    assert_eq!(check(206, &[etag]), BAD);
    assert_eq!(check(206, &[range]), BAD, "no validator");
    assert_eq!(check(206, &[etag, range, ("content-length", "99")]), BAD);
    assert_eq!(check(206, &[etag, range, ("content-encoding", "gzip")]), BAD);
    assert_eq!(check(200, &[etag, ("content-length", "1000")]), BAD);
    assert_eq!(check(302, &[]), BAD);
}

#[test]
fn the_last_bytes_are_all_that_were_asked_for_or_of_no_use() {
    let check = |status, pairs: &[(&'static str, &str)]| {
        last(StatusCode::from_u16(status).unwrap(), &headers(pairs), 100)
            .map(|part| (part.range, part.total))
            .ok()
    };
    let range = |value| ("content-range", value);
    assert_eq!(check(206, &[range("bytes 900-999/1000")]), Some((900..1000, 1000)));
    assert_eq!(
        check(206, &[range("bytes 900-999/1000"), ("content-length", "100")]),
        Some((900..1000, 1000))
    );
    assert_eq!(check(206, &[range("bytes 0-49/50")]), Some((0..50, 50)));
    for wrong in [
        "bytes 899-999/1000",
        "bytes 901-999/1000",
        "bytes 900-998/1000",
        "bytes 0-99/1000",
        "bytes 900-999/*",
        "",
    ] {
        assert_eq!(check(206, &[range(wrong)]), None, "{wrong}");
    }
    assert_eq!(check(206, &[]), None);
    assert_eq!(check(206, &[range("bytes 900-999/1000"), ("content-length", "99")]), None);
    assert_eq!(check(206, &[range("bytes 900-999/1000"), ("content-encoding", "gzip")]), None);
    assert_eq!(check(200, &[("content-length", "100")]), None);
    assert_eq!(check(416, &[range("bytes */0")]), None);
}

#[test]
fn another_version_is_final() {
    let range = ("content-range", "bytes 100-199/1000");
    assert_eq!(check(206, &[("etag", "\"b\""), range]), CHANGED);
    assert_eq!(check(206, &[("etag", "W/\"a\""), ("last-modified", "x"), range]), CHANGED);
    assert_eq!(check(206, &[("etag", "\"a\""), ("content-range", "bytes 100-199/1001")]), CHANGED);
    assert_eq!(check(412, &[]), CHANGED);
    assert_eq!(check(416, &[("content-range", "bytes */50")]), CHANGED);
    assert_eq!(check(416, &[("content-range", "bytes */1000")]), BAD);
    assert_eq!(check(200, &[("etag", "\"b\"")]), CHANGED);
}

#[test]
fn refusals_are_told_apart() {
    assert_eq!(check(404, &[]), Err((Kind::NotFound, Failure::Final)));
    assert_eq!(check(403, &[]), Err((Kind::Denied, Failure::Final)));
    assert_eq!(check(401, &[]), Err((Kind::Denied, Failure::Final)));
    assert_eq!(check(500, &[]), Err((Kind::Unreachable, Failure::Transient)));
    assert_eq!(check(503, &[]), Err((Kind::Unreachable, Failure::Busy(Duration::ZERO))));
    let busy = Failure::Busy(Duration::from_secs(7));
    assert_eq!(check(503, &[("retry-after", "7")]), Err((Kind::Unreachable, busy)));
    assert_eq!(check(429, &[("retry-after", "7")]), Err((Kind::Unreachable, busy)));
    let long_ago = ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT");
    assert_eq!(check(429, &[long_ago]), Err((Kind::Unreachable, Failure::Busy(Duration::ZERO))));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_470);
    assert_eq!(retry_after(&headers(&[long_ago]), now), Some(Duration::from_secs(10)));
    assert_eq!(retry_after(&headers(&[("retry-after", "Wed, 21 Oct")]), now), None);
}

#[test]
fn the_first_answer_says_what_the_object_is() {
    let first = |status: u16, pairs: &[(&'static str, &str)]| {
        first(StatusCode::from_u16(status).unwrap(), &headers(pairs), &(0..65536))
            .map(|part| (part.range.end, part.total, part.validator.text()))
            .map_err(|fault| fault.kind)
    };
    let range = ("content-range", "bytes 0-99/100");
    assert_eq!(first(206, &[range, ("etag", "\"a\"")]), Ok((100, 100, "etag:\"a\"".into())));
    assert_eq!(first(206, &[range, ("last-modified", "then")]), Ok((100, 100, "mtime:then".into())));
    let weak = [range, ("etag", "W/\"a\""), ("last-modified", "then")];
    assert_eq!(first(206, &weak), Ok((100, 100, "mtime:then,W/\"a\"".into())));
    assert_eq!(first(206, &[range, ("etag", "W/\"a\"")]), Ok((100, 100, String::new())));
    assert_eq!(first(416, &[("content-range", "bytes */0")]), Ok((0, 0, String::new())));
    assert_eq!(first(200, &[("content-length", "0")]), Ok((0, 0, String::new())));
    assert_eq!(first(200, &[("content-length", "100")]), Err(Kind::Unsupported));
    assert_eq!(first(200, &[]), Err(Kind::Unsupported));
    assert_eq!(first(404, &[]), Err(Kind::NotFound));
}
