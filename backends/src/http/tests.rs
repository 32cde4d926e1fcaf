use super::*;
use crate::testing::{Lie, Origin};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that tell their place.
fn content(len: usize) -> Bytes {
    (0..len as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

const SIZE: usize = 1 << 20;

/// A short deadline, so that what never works is over soon.
fn options() -> Options {
    Options::default().with_policy(Policy { deadline: Duration::from_secs(2), ..Policy::default() })
}

async fn open(origin: &Origin) -> Result<HttpSource, Error> {
    HttpSource::open(&origin.url("a.img").parse().unwrap(), &options()).await
}

async fn opened() -> (Origin, HttpSource) {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let source = open(&origin).await.unwrap();
    (origin, source)
}

#[tokio::test]
async fn one_request_opens_and_answers_the_first_reads() {
    let (origin, source) = opened().await;
    assert_eq!(source.len(), SIZE as u64);
    assert_eq!(source.identity().validator, "etag:\"1\"");
    assert_eq!(source.read(0..512).await.unwrap(), content(SIZE)[..512]);
    assert_eq!(source.read(4000..327_680).await.unwrap(), content(SIZE)[4000..327_680]);
    assert_eq!(origin.asked(), vec![0..327_680u64; 1]);
    for range in [327_679..327_681, SIZE as u64 - 1..SIZE as u64, 0..SIZE as u64, 7..7] {
        let expect = content(SIZE).slice(range.start as usize..range.end as usize);
        assert!(source.read(range).await.unwrap() == expect);
    }
    assert_eq!(source.read(0..SIZE as u64 + 1).await.unwrap_err().kind, Kind::Range);
    let heads = origin.heads();
    assert!(heads.iter().all(|head| head.contains("accept-encoding: identity\r\n")));
    assert!(!heads[0].contains("if-match"));
    assert!(heads[1..].iter().all(|head| head.contains("if-match: \"1\"\r\n")));
}

#[tokio::test]
async fn what_opening_brought_along_is_let_go() {
    let (origin, source) = opened().await;
    assert_eq!(source.at_hand(), 327_680);
    for (len, left) in [(1 << 20, 327_680), (65_536, 65_536), (65_537, 65_536), (0, 0), (5, 0)] {
        source.keep_at_hand(len);
        assert_eq!(source.at_hand(), left);
        let asked = origin.asked().len();
        assert!(source.read(0..65_536).await.unwrap() == content(SIZE)[..65_536]);
        assert_eq!(origin.asked().len() - asked, usize::from(left == 0));
    }
}

async fn open_with_ends(origin: &Origin) -> HttpSource {
    HttpSource::open(&origin.url("a.img").parse().unwrap(), &options().with_ends(true)).await.unwrap()
}

/// Whether the last byte is there without a further request.
async fn last_is_at_hand(origin: &Origin, source: &HttpSource) -> bool {
    let asked = origin.asked().len();
    let size = source.len();
    let read = source.read(size - 1..size).await.unwrap();
    assert_eq!(read, content(size as usize)[size as usize - 1..]);
    origin.asked().len() == asked
}

#[tokio::test]
async fn the_last_bytes_come_beside_the_first() {
    let size = SIZE as u64;
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let source = open_with_ends(&origin).await;
    let mut asked = origin.asked();
    asked.sort_by_key(|range| range.start);
    assert_eq!(asked, [0..327_680, size - 65_536..size]);
    for range in [0..327_680, size - 65_536..size, size - 512..size, size - 65_536..size - 65_535] {
        let expect = content(SIZE).slice(range.start as usize..range.end as usize);
        assert_eq!(source.read(range).await.unwrap(), expect);
    }
    assert_eq!(origin.asked().len(), 2);
    let around = size - 65_537..size;
    assert_eq!(source.read(around.clone()).await.unwrap(), content(SIZE)[around.start as usize..]);
    assert_eq!(origin.asked().len(), 3);
    source.keep_at_hand(u64::MAX);
    assert_eq!(source.at_hand(), 327_680);
    assert!(!last_is_at_hand(&origin, &source).await);
}

#[tokio::test]
async fn an_object_opens_whatever_becomes_of_the_request_for_its_last_bytes() {
    for lie in [
        Lie::Status(416, String::new()),
        Lie::Status(400, String::new()),
        Lie::Status(503, String::new()),
        Lie::Unranged,
        Lie::Shifted(4),
        Lie::Long(7),
        Lie::Cut(100),
        Lie::Reset,
        Lie::Pieces(100),
        Lie::Gzip,
        Lie::Tag("\"2\"".to_owned()),
        Lie::Whole,
        Lie::Endless,
        Lie::Drip,
        Lie::Stall,
        Lie::Freeze,
    ] {
        let origin = Origin::start(content(SIZE)).await.unwrap();
        origin.lie_at_the_end(lie.clone());
        let began = Instant::now();
        let source = open_with_ends(&origin).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{lie:?}");
        assert_eq!(source.len(), SIZE as u64, "{lie:?}");
        assert_eq!(source.at_hand(), 327_680, "{lie:?}");
        assert!(!last_is_at_hand(&origin, &source).await, "{lie:?}");
    }
}

#[tokio::test]
async fn the_first_bytes_are_not_lost_while_the_last_ones_are_waited_for() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    origin.lie([Lie::Late(Duration::from_millis(1200))]);
    origin.lie_at_the_end(Lie::Freeze);
    let began = Instant::now();
    assert_eq!(open_with_ends(&origin).await.at_hand(), 327_680);
    assert!(began.elapsed() < Duration::from_millis(2500));
}

#[tokio::test]
async fn who_asks_again_does_not_ask_for_the_last_bytes() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    origin.lie([Lie::Status(503, String::new())]);
    let source = open_with_ends(&origin).await;
    let firsts = origin.asked().iter().filter(|range| range.start == 0).count();
    assert_eq!((firsts, origin.asked().len() - firsts), (2, 1));
    assert!(!last_is_at_hand(&origin, &source).await);
}

#[tokio::test]
async fn where_the_last_bytes_came_from_is_not_asked_for_others() {
    let front = Origin::start(content(SIZE)).await.unwrap();
    let (one, other) =
        (Origin::start(content(SIZE)).await.unwrap(), Origin::start(content(SIZE / 2)).await.unwrap());
    other.replace(content(SIZE / 2), "\"2\"");
    let to = |origin: &Origin| Lie::Status(302, format!("Location: {}\r\n", origin.url("b.img")));
    for (first, last) in [(100, 150), (150, 100)] {
        front.always(to(&one));
        front.lie_at_the_end(to(&other));
        one.lie([Lie::Late(Duration::from_millis(first))]);
        other.lie_at_the_end(Lie::Late(Duration::from_millis(last)));
        let source = open_with_ends(&front).await;
        assert_eq!(source.len(), SIZE as u64);
        assert_eq!(source.read(400_000..800_000).await.unwrap(), content(SIZE)[400_000..800_000]);
    }
    assert!(!other.asked().is_empty());
}

#[tokio::test]
async fn the_last_bytes_of_what_has_no_version_and_of_what_is_known_are_not_used() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    origin.replace(content(SIZE), "W/\"1\"");
    let source = open_with_ends(&origin).await;
    assert_eq!(source.identity().validator, "");
    assert!(!last_is_at_hand(&origin, &source).await);

    let origin = Origin::start(content(SIZE)).await.unwrap();
    let options = options().with_ends(true).with_known(true);
    let source = HttpSource::open(&origin.url("a.img").parse().unwrap(), &options).await.unwrap();
    assert_eq!(origin.asked(), vec![0..512; 1]);
    assert!(!last_is_at_hand(&origin, &source).await);
}

#[tokio::test]
async fn an_empty_object_and_one_shorter_than_the_first_request_open() {
    for len in [0, 4, 327_676, 327_680] {
        let origin = Origin::start(content(len)).await.unwrap();
        let source = open(&origin).await.unwrap();
        assert_eq!(source.len(), len as u64);
        assert_eq!(source.read(0..len as u64).await.unwrap(), content(len));
        let source = open_with_ends(&origin).await;
        assert_eq!(source.len(), len as u64);
        assert_eq!(source.read(0..len as u64).await.unwrap(), content(len));
    }
}

#[tokio::test]
async fn a_whole_object_that_its_checksum_is_not_of_is_not_taken() {
    let origin = Origin::start(content(1000)).await.unwrap();
    let of_others = Lie::Sum(format!("{}=", "A".repeat(43)));
    origin.lie([of_others.clone()]);
    let source = open(&origin).await.unwrap();
    assert!(source.read(0..1000).await.unwrap() == content(1000));
    assert_eq!(origin.asked().len(), 2, "it was asked for again");
    origin.always(of_others);
    let source = open(&origin).await;
    let error = match source {
        Ok(source) => source.read(0..1000).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind, Kind::BadAnswer);
    assert!(error.message.contains("its checksum is of"), "{error}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let (origin, source) = opened().await;
    let range = 400_000..600_000;
    let expect = content(SIZE).slice(400_000..600_000);
    for lie in [
        Lie::Status(503, String::new()),
        Lie::Status(500, String::new()),
        Lie::Status(429, "Retry-After: 1\r\n".into()),
        Lie::Status(302, String::new()),
        Lie::Reset,
        Lie::Cut(0),
        Lie::Cut(77_777),
        Lie::Whole,
        Lie::Page,
        Lie::Shifted(512),
        Lie::Unsized,
        Lie::Pieces(1000),
        Lie::Long(10),
        Lie::Endless,
        Lie::Gzip,
        Lie::Unranged,
        Lie::Late(Duration::from_millis(100)),
    ] {
        let before = origin.asked().len();
        origin.lie([lie.clone()]);
        assert!(source.read(range.clone()).await.unwrap() == expect, "{lie:?}");
        let late = matches!(lie, Lie::Late(_));
        assert_eq!(origin.asked().len() - before, if late { 1 } else { 2 }, "{lie:?}");
    }
}

#[tokio::test]
async fn a_broken_body_is_continued_where_it_ended() {
    let (origin, source) = opened().await;
    origin.lie([Lie::Cut(50_000), Lie::Cut(50_000)]);
    assert!(source.read(400_000..600_000).await.unwrap() == content(SIZE)[400_000..600_000]);
    assert_eq!(origin.asked()[1..], [400_000..600_000, 450_000..600_000, 500_000..600_000]);
}

#[tokio::test]
async fn what_never_works_ends_within_the_deadline_and_says_why() {
    let (origin, source) = opened().await;
    for (lie, kind, text) in [
        (Lie::Status(503, String::new()), Kind::Unreachable, "too busy (status 503)"),
        (Lie::Status(404, String::new()), Kind::NotFound, "no such object"),
        (Lie::Status(403, String::new()), Kind::Denied, "denies access"),
        (Lie::Whole, Kind::BadAnswer, "answered 200"),
        (Lie::Shifted(512), Kind::BadAnswer, "sent bytes 400512 to 600512"),
        (Lie::Unsized, Kind::BadAnswer, "early"),
        (Lie::Unranged, Kind::BadAnswer, "without Content-Range"),
        (Lie::Gzip, Kind::BadAnswer, "gzip"),
        (Lie::Freeze, Kind::Unreachable, "in time"),
        (Lie::Stall, Kind::Unreachable, "in time"),
        (Lie::Drip, Kind::Unreachable, "in time"),
        (Lie::Reset, Kind::Unreachable, "connection broke"),
    ] {
        origin.always(lie.clone());
        let started = Instant::now();
        let error = source.read(400_000..600_000).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(2500), "{lie:?}: {:?}", started.elapsed());
        assert_eq!(error.kind, kind, "{lie:?}: {error}");
        assert!(
            error.message.contains(text) && error.message.contains("/images/a.img: "),
            "{lie:?}: {error}"
        );
    }
    origin.always(Lie::None);
    assert!(source.read(400_000..600_000).await.is_ok(), "no failure is remembered");
}

#[tokio::test]
async fn when_the_time_is_over_the_try_before_says_why() {
    let (origin, source) = opened().await;
    let busy = Lie::Status(503, String::new());
    origin.always(Lie::Freeze);
    origin.lie([busy.clone()]);
    let error = source.read(400_000..600_000).await.unwrap_err();
    assert!(error.message.ends_with("the server is too busy (status 503)"), "{error}");
    origin.lie([busy]);
    let error = open(&origin).await.unwrap_err();
    assert!(error.message.ends_with("the server is too busy (status 503)"), "{error}");
}

#[tokio::test]
async fn a_changed_object_is_an_error_for_good() {
    for lie in [Lie::Tag("\"2\"".into()), Lie::None] {
        let (origin, source) = opened().await;
        if lie == Lie::None {
            origin.replace(content(SIZE), "\"2\"");
        }
        origin.lie([lie]);
        assert_eq!(source.read(400_000..400_001).await.unwrap_err().kind, Kind::Changed);
        origin.replace(content(SIZE), "\"1\"");
        let before = origin.asked().len();
        assert_eq!(source.read(0..1).await.unwrap_err().kind, Kind::Changed);
        assert_eq!(origin.asked().len(), before);
        assert!(open(&origin).await.is_ok());
    }
}

#[tokio::test]
async fn no_read_mixes_two_versions() {
    let (origin, source) = opened().await;
    // The body breaks off, and what would continue it is another version by then.
    origin.lie([Lie::Cut(50_000)]);
    let read = tokio::spawn(async move { source.read(400_000..600_000).await });
    while origin.asked().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    origin.replace(vec![0xff; SIZE], "\"2\"");
    assert_eq!(read.await.unwrap().unwrap_err().kind, Kind::Changed);
}

#[tokio::test]
async fn opening_refuses_what_cannot_be_read_in_ranges() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    for (lie, kind) in [
        (Lie::Whole, Kind::Unsupported),
        (Lie::Page, Kind::Unsupported),
        (Lie::Status(404, String::new()), Kind::NotFound),
        (Lie::Status(401, String::new()), Kind::Denied),
        (Lie::Status(500, String::new()), Kind::Unreachable),
        (Lie::Freeze, Kind::Unreachable),
    ] {
        origin.always(lie.clone());
        assert_eq!(open(&origin).await.unwrap_err().kind, kind, "{lie:?}");
    }
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error =
        HttpSource::open(&format!("http://{unused}/x").parse().unwrap(), &options()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert!(error.message.to_lowercase().contains("refused"), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_once_and_resolved_again_when_they_expire() {
    let target = Origin::start(content(SIZE)).await.unwrap();
    let front = Origin::start(content(SIZE)).await.unwrap();
    let to = |query: &str| Lie::Status(302, format!("Location: {}?sig={query}\r\n", target.url("t")));
    front.always(to("first"));
    let source = open(&front).await.unwrap();
    for i in 1..4u64 {
        source.read(300_000 + i * 70_000..300_000 + i * 70_000 + 10).await.unwrap();
    }
    assert_eq!((front.asked().len(), target.asked().len()), (1, 4));
    for (again, status) in (1..).zip([400, 401, 403, 404, 410]) {
        front.always(to(&status.to_string()));
        target.lie([Lie::Status(status, String::new())]);
        source.read(500_000..500_010).await.unwrap();
        assert_eq!((front.asked().len(), target.asked().len()), (1 + again, 4 + 2 * again), "{status}");
        assert!(target.heads().last().unwrap().starts_with(&format!("GET /images/t?sig={status} ")));
    }
    // A target that refuses even then is an error, not a circle.
    target.always(Lie::Status(403, String::new()));
    assert_eq!(source.read(500_000..500_010).await.unwrap_err().kind, Kind::Denied);
    // So is a circle.
    front.always(Lie::Status(302, format!("Location: {}\r\n", front.url("a.img"))));
    let error = source.read(500_000..500_010).await.unwrap_err();
    assert!(error.message.contains("circle"), "{error}");
    assert!(!error.message.contains("sig"), "{error}");
}

#[tokio::test]
async fn a_server_that_comes_back_within_the_deadline_is_waited_for() {
    let (origin, source) = opened().await;
    let address = origin.address();
    drop(origin);
    let back = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        Origin::listen(&address.to_string(), content(SIZE)).await.unwrap()
    });
    assert_eq!(source.read(600_000..600_004).await.unwrap(), content(SIZE)[600_000..600_004]);
    back.await.unwrap();
}

/// A credentials file with `text`.
fn credentials(dir: &tempfile::TempDir, text: &str) -> crate::Credentials {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.path().join("credentials.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    crate::Credentials::load(Some(&path)).unwrap()
}

#[tokio::test]
async fn authorization_goes_to_the_origin_alone_and_is_renewed_when_refused() {
    let target = Origin::start(content(SIZE)).await.unwrap();
    let front = Origin::start(content(SIZE)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let section = |password: &str| {
        format!(
            "[\"http://{}/\"]\npassword = \"{password}\"\nheaders = {{ X-Key = \"k3y\" }}",
            front.address()
        )
    };
    let options = options().with_credentials(credentials(&dir, &section("s3cret")));
    let location: Location = format!("http://u@{}/images/a", front.address()).parse().unwrap();
    let source = HttpSource::open(&location, &options).await.unwrap();
    let head = front.heads().pop().unwrap();
    // u:s3cret
    assert!(
        head.contains("authorization: basic dtpzm2nyzxq=\r\n") && head.contains("x-key: k3y\r\n"),
        "{head}"
    );
    assert!(head.starts_with("GET /images/a "), "{head}");
    // Refused, and the file says something else by now.
    credentials(&dir, &section("new"));
    front.lie([Lie::Status(401, String::new())]);
    source.read(400_000..400_001).await.unwrap();
    assert!(front.heads().pop().unwrap().contains("authorization: basic dtpuzxc=\r\n"));
    // Refused, and it does not.
    front.always(Lie::Status(401, String::new()));
    let error = source.read(400_000..400_001).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    assert!(!format!("{error} {source:?} {options:?}").contains("s3cret"));
    front.always(Lie::Status(307, format!("Location: {}\r\n", target.url("t"))));
    source.read(500_000..500_001).await.unwrap();
    let head = target.heads().pop().unwrap();
    assert!(!head.contains("authorization") && !head.contains("x-key"), "{head}");
}

#[tokio::test]
async fn a_token_is_shown_as_a_bearer_s() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let section = format!("[\"http://{}/\"]\ntoken = \"t0ken\"", origin.address());
    let options = options().with_credentials(credentials(&dir, &section));
    HttpSource::open(&origin.url("a").parse().unwrap(), &options).await.unwrap();
    assert!(origin.heads().pop().unwrap().contains("authorization: bearer t0ken\r\n"));
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn s3_requests_are_signed_and_addressed_as_configured() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("endpoint = \"http://{}/base\"", origin.address());
    let signed = format!(
        "[\"s3://bucket/\"]\n{endpoint}\naccess_key = \"AK\"\nsecret_key = \"s3cret\"\nregion = \"eu-x\""
    );
    let options = options().with_credentials(credentials(&dir, &signed));
    let location: Location = "s3://bucket/dir/a%20b?versionId=v1".parse().unwrap();
    let source = HttpSource::open(&location, &options).await.unwrap();
    let identity = format!("s3://bucket/dir/a%20b?versionId=v1 at http://{}", origin.address());
    assert_eq!(source.identity().location, identity);
    let head = origin.heads().pop().unwrap();
    assert!(head.starts_with("GET /base/bucket/dir/a%20b?versionId=v1 "), "{head}");
    assert!(
        head.contains("authorization: aws4-hmac-sha256 credential=ak/") && head.contains("/eu-x/s3/"),
        "{head}"
    );
    assert!(
        head.contains("signedheaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date"),
        "{head}"
    );
    assert!(!format!("{source:?} {options:?}").contains("s3cret"));
    let open = format!("[\"s3://bucket/\"]\n{endpoint}\nanonymous = true\nrequester_pays = true");
    let options = options.with_credentials(credentials(&dir, &open));
    crate::open(&location, &options).await.unwrap();
    let head = origin.heads().pop().unwrap();
    assert!(!head.contains("authorization") && head.contains("x-amz-request-payer: requester\r\n"), "{head}");
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn a_bucket_elsewhere_and_a_reader_who_pays() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let section = format!(
        "[\"s3://bucket/\"]\nendpoint = \"http://{}\"\naccess_key = \"AK\"\nsecret_key = \"s3cret\"\nrequester_pays = true",
        origin.address()
    );
    let options = options().with_credentials(credentials(&dir, &section));
    let location: Location = "s3://bucket/a".parse().unwrap();
    HttpSource::open(&location, &options).await.unwrap();
    let head = origin.heads().pop().unwrap();
    assert!(head.contains("x-amz-request-payer: requester\r\n"), "{head}");
    assert!(head.contains("x-amz-date;x-amz-request-payer,"), "it is signed: {head}");
    origin.always(Lie::Status(301, "x-amz-bucket-region: eu-y\r\n".into()));
    let error = HttpSource::open(&location, &options).await.unwrap_err();
    assert!(error.message.contains("eu-y"), "{error}");
}

#[tokio::test]
async fn a_late_answer_is_overtaken_by_a_second_request() {
    for lie in [Lie::Drip, Lie::Freeze, Lie::Stall, Lie::Late(Duration::from_secs(60))] {
        let origin = Origin::start(content(SIZE)).await.unwrap();
        let options = Options::default();
        let source = HttpSource::open(&origin.url("a.img").parse().unwrap(), &options).await.unwrap();
        origin.lie([lie.clone()]);
        let began = Instant::now();
        assert!(source.read(400_000..700_000).await.unwrap() == content(SIZE)[400_000..700_000], "{lie:?}");
        assert!(began.elapsed() < Duration::from_secs(18), "{lie:?} took {:?}", began.elapsed());
        assert_eq!(origin.asked().len(), 3, "{lie:?}: the opening, and two");
    }
}

#[tokio::test]
async fn a_server_that_is_too_busy_is_asked_less_at_a_time() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let location = origin.url("a.img").parse().unwrap();
    let source = HttpSource::open(&location, &Options::default()).await.unwrap();
    let source = Arc::new(source);
    origin.lie(std::iter::repeat_n(Lie::Status(503, String::new()), 20));
    let readers: Vec<_> = (0..64u64)
        .map(|i| {
            let source = source.clone();
            tokio::spawn(async move { source.read(600_000 + i * 4096..600_000 + (i + 1) * 4096).await })
        })
        .collect();
    for (i, reader) in (0..).zip(readers) {
        assert!(
            reader.await.unwrap().unwrap() == content(SIZE)[600_000 + i * 4096..600_000 + (i + 1) * 4096]
        );
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_asked_seldom_and_found_when_it_is_back() {
    let origin = Origin::start(content(SIZE)).await.unwrap();
    let location = origin.url("a.img").parse().unwrap();
    let source = HttpSource::open(&location, &Options::default()).await.unwrap();
    let (address, source) = (origin.address(), Arc::new(source));
    drop(origin);
    let readers: Vec<_> = (0..100u64)
        .map(|i| {
            let source = source.clone();
            tokio::spawn(async move { source.read(370_000 + i..380_000).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(800)).await;
    // Whoever asks meanwhile is counted here, and finds nobody.
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = std::iter::from_fn(|| listener.accept().ok()).count();
    assert!(asked <= 3, "{asked} readers asked");
    drop(listener);
    let origin = Origin::listen(&address.to_string(), content(SIZE)).await.unwrap();
    for (i, reader) in (0..).zip(readers) {
        assert!(reader.await.unwrap().unwrap() == content(SIZE)[370_000 + i..380_000]);
    }
    drop(origin);
}

/// Three origins with the same object, as one location and its two mirrors.
async fn mirrored(options: Options) -> (Vec<Origin>, Options, tempfile::TempDir, Location) {
    use std::os::unix::fs::PermissionsExt;
    let mut origins = Vec::new();
    for _ in 0..3 {
        origins.push(Origin::start(content(SIZE)).await.unwrap());
    }
    let prefixes: Vec<String> = origins.iter().map(|origin| origin.url("")).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credentials.toml");
    let text = format!("[{:?}]\nmirrors = [{:?}, {:?}]\n", prefixes[0], prefixes[1], prefixes[2]);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let credentials = crate::Credentials::load(Some(&file)).unwrap();
    let location = origins[0].url("a.img").parse().unwrap();
    (origins, options.with_credentials(credentials), dir, location)
}

#[tokio::test]
async fn a_mirror_answers_where_the_server_does_not() {
    let (mut origins, options, _dir, location) = mirrored(options()).await;
    let source = HttpSource::open(&location, &options).await.unwrap();
    let range = 400_000..600_000;
    assert!(source.read(range.clone()).await.unwrap() == content(SIZE)[400_000..600_000]);
    assert_eq!(origins[1].asked().len() + origins[2].asked().len(), 0, "mirrors are not asked without need");
    // Refusals and lies of the first are no error either.
    for lie in [Lie::Status(404, String::new()), Lie::Status(500, String::new()), Lie::Page, Lie::Cut(1000)] {
        origins[0].lie([lie.clone()]);
        assert!(source.read(range.clone()).await.unwrap() == content(SIZE)[400_000..600_000], "{lie:?}");
    }
    assert!(!origins[1].asked().is_empty());
    drop(origins.remove(0));
    drop(origins.remove(0));
    let began = Instant::now();
    for i in 0..20 {
        assert!(source.read(i..i + 70_000).await.unwrap() == content(SIZE)[i as usize..i as usize + 70_000]);
    }
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "half of what waiting would take: {:?}",
        began.elapsed()
    );
    // The object keeps its name, whoever answers.
    let other = HttpSource::open(&location, &options).await.unwrap();
    assert_eq!(other.identity(), source.identity());
}

#[tokio::test]
async fn a_mirror_with_another_object_is_left_out() {
    let (mut origins, options, _dir, location) = mirrored(options()).await;
    origins[1].replace(content(SIZE / 2), "\"2\"");
    let source = HttpSource::open(&location, &options).await.unwrap();
    drop(origins.remove(0));
    for _ in 0..3 {
        assert!(source.read(400_000..600_000).await.unwrap() == content(SIZE)[400_000..600_000]);
    }
    assert_eq!(origins[0].asked().len(), 1, "asked once, and never again");
    origins[1].replace(content(SIZE), "\"3\"");
    assert_eq!(source.read(400_000..600_000).await.unwrap_err().kind, Kind::Unreachable);
    assert!(source.check().is_ok(), "the object itself has not changed");
}
