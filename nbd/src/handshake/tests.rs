use super::*;
use proptest::prelude::*;

/// One reply to an option: option, kind, data.
type Reply = (u32, u32, Vec<u8>);

/// A client that talks to one machine, whose only export is `disk` of 1 MiB.
struct Client {
    handshake: Handshake,
    input: BytesMut,
    out: BytesMut,
}

impl Client {
    /// Past the greeting, with `flags` sent.
    fn new(encryption: Encryption, flags: u32) -> Self {
        let mut out = BytesMut::new();
        let handshake = Handshake::new(encryption, &mut out);
        assert_eq!(&out.split()[..], b"NBDMAGICIHAVEOPT\0\x03");
        let mut client = Self { handshake, input: BytesMut::new(), out };
        client.send(&flags.to_be_bytes());
        client
    }

    fn fixed() -> Self {
        Self::new(Encryption::None, 3)
    }

    /// Sends bytes and plays the server's part until it needs more.
    fn send(&mut self, bytes: &[u8]) -> Step {
        self.input.extend_from_slice(bytes);
        let mut step = self.handshake.step(&mut self.input, &mut self.out);
        loop {
            step = match step {
                Step::Lookup(name) => {
                    let info =
                        ExportInfo { size: 1 << 20, preferred_block: 65536, description: "words".into() };
                    let found = (name == "disk").then_some(&info);
                    self.handshake.found(found, &mut self.input, &mut self.out)
                }
                Step::List => self.handshake.listed(&["disk".into()], &mut self.input, &mut self.out),
                step => return step,
            }
        }
    }

    fn replies(&mut self) -> Vec<Reply> {
        let out = self.out.split();
        let mut cursor = Cursor(&out);
        let mut replies = Vec::new();
        while !cursor.0.is_empty() {
            assert_eq!(cursor.u64(), Some(REP_MAGIC));
            let (option, kind) = (cursor.u32().unwrap(), cursor.u32().unwrap());
            replies.push((option, kind, cursor.counted().unwrap().to_vec()));
        }
        replies
    }

    /// Sends an option that does not end the negotiation, and answers the kinds of the replies.
    #[track_caller]
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<u32> {
        assert_eq!(self.send(&encode(option, data)), Step::More);
        let replies = self.replies();
        assert!(replies.iter().all(|(of, ..)| *of == option));
        replies.into_iter().map(|(_, kind, _)| kind).collect()
    }
}

fn encode(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTS_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| counted(query)));
    data
}

fn begin(headers: Headers, contexts: Contexts) -> Step {
    Step::Begin(Negotiated { headers, contexts })
}

#[test]
fn unknown_client_flags_end_the_connection() {
    assert_eq!(Client::new(Encryption::None, 4).send(&[]), Step::Close);
    assert_eq!(Client::new(Encryption::None, 0x8000_0003).send(&[]), Step::Close);
    assert_eq!(Client::fixed().send(&[]), Step::More);
}

#[test]
fn go_tells_what_was_asked_for() {
    let mut client = Client::fixed();
    let wanted = info("disk", &[INFO_BLOCK_SIZE, INFO_DESCRIPTION, 77, INFO_NAME, INFO_EXPORT]);
    client.send(&encode(OPT_INFO, &wanted));
    let told = client.replies();
    assert_eq!(client.send(&encode(OPT_GO, &wanted)), begin(Headers::Simple, Contexts::empty()));
    let replies = client.replies();
    let bare =
        |replies: &[Reply]| replies.iter().map(|(_, kind, data)| (*kind, data.clone())).collect::<Vec<_>>();
    assert_eq!(bare(&told), bare(&replies));
    assert_eq!(
        bare(&replies),
        [
            (REP_INFO, b"\0\0\0\0\0\0\0\x10\0\0\x05\x0f".to_vec()),
            (REP_INFO, b"\0\x01disk".to_vec()),
            (REP_INFO, b"\0\x02words".to_vec()),
            (REP_INFO, b"\0\x03\0\0\0\x01\0\x01\0\0\x02\0\0\0".to_vec()),
            (REP_ACK, vec![]),
        ]
    );
    let mut client = Client::fixed();
    client.send(&encode(OPT_GO, &info("disk", &[])));
    assert_eq!(client.replies().len(), 2);
}

#[test]
fn an_unknown_export_is_an_error_and_no_more() {
    let mut client = Client::fixed();
    assert_eq!(client.option(OPT_GO, &info("other", &[])), [REP_ERR_UNKNOWN]);
    assert_eq!(client.option(OPT_INFO, &info("disk", &[])), [REP_INFO, REP_ACK]);
    assert_eq!(client.send(&encode(OPT_EXPORT_NAME, b"other")), Step::Close);
}

#[test]
fn export_name_pads_unless_told_not_to() {
    for (flags, len) in [(3, 10), (1, 134), (0, 134)] {
        let mut client = Client::new(Encryption::None, flags);
        let step = client.send(&encode(OPT_EXPORT_NAME, b"disk"));
        assert_eq!(step, begin(Headers::Simple, Contexts::empty()));
        assert_eq!(client.out.len(), len);
        assert_eq!(&client.out[..10], b"\0\0\0\0\0\x10\0\0\x05\x0f");
    }
}

#[test]
fn an_old_client_gets_no_error_replies() {
    let mut client = Client::new(Encryption::None, 0);
    assert_eq!(client.send(&encode(OPT_GO, &info("disk", &[]))), Step::Close);
    assert!(client.out.is_empty());
}

#[test]
fn malformed_options_are_refused_in_step() {
    let mut client = Client::fixed();
    client.option(OPT_STRUCTURED_REPLY, b"");
    let cases: [(u32, &[u8]); 14] = [
        (OPT_LIST, b"x"),
        (OPT_INFO, b""),
        (OPT_INFO, b"\0\0\0\x01"),
        (OPT_INFO, b"\0\0\0\x04disk"),
        (OPT_INFO, b"\0\0\0\x04disk\0\x01"),
        (OPT_INFO, b"\0\0\0\x04disk\0\0junk"),
        (OPT_INFO, b"\xff\xff\xff\xffdisk\0\0"),
        (OPT_GO, b"\0\0\0\x02\xc3\x28\0\0"),
        (OPT_GO, b"\0\0\0\x02a\0\0\0"),
        (OPT_SET_META_CONTEXT, b"\0\0\0\x04disk"),
        (OPT_SET_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\x01"),
        (OPT_SET_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\0junk"),
        (OPT_SET_META_CONTEXT, b"\0\0\0\x04disk\xff\xff\xff\xff"),
        (OPT_STRUCTURED_REPLY, b"x"),
    ];
    for (option, data) in cases {
        assert_eq!(client.option(option, data), [REP_ERR_INVALID], "{option} {data:?}");
    }
    assert_eq!(client.option(OPT_LIST, b""), [REP_SERVER, REP_ACK]);
    let long = "n".repeat(MAX_STRING + 1);
    assert_eq!(client.option(OPT_INFO, &info(&long, &[])), [REP_ERR_INVALID]);
    assert_eq!(client.option(OPT_INFO, &info(&long[1..], &[])), [REP_ERR_UNKNOWN]);
}

#[test]
fn unknown_options_are_skipped_up_to_a_limit() {
    let mut client = Client::fixed();
    for option in [0, 4, 5, 12, 0xffff_ffff] {
        assert_eq!(client.option(option, &[7; 5000]), [REP_ERR_UNSUP]);
    }
    assert_eq!(client.option(OPT_INFO, &vec![0; MAX_OPTION as usize + 1]), [REP_ERR_TOO_BIG]);
    assert_eq!(client.option(99, &vec![0; MAX_OPTION_SKIP as usize]), [REP_ERR_UNSUP]);
    assert_eq!(client.option(OPT_LIST, b""), [REP_SERVER, REP_ACK]);
    let mut header = encode(99, b"");
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(client.send(&header), Step::Close);
    assert_eq!(Client::fixed().send(&[0; 16]), Step::Close);
}

#[test]
fn abort_is_acknowledged() {
    for data in [&b""[..], b"because"] {
        let mut client = Client::fixed();
        assert_eq!(client.send(&encode(OPT_ABORT, data)), Step::Close);
        assert_eq!(client.replies(), [(OPT_ABORT, REP_ACK, vec![])]);
        assert_eq!(client.send(&encode(OPT_LIST, b"")), Step::Close);
    }
}

#[test]
fn contexts_need_structured_replies_and_belong_to_one_export() {
    let mut client = Client::fixed();
    let all =
        meta("disk", &["base:allocation", "base:", "x-thinorigin:cached", "other:thing", "base:allocation"]);
    assert_eq!(client.option(OPT_SET_META_CONTEXT, &all), [REP_ERR_INVALID]);
    client.option(OPT_STRUCTURED_REPLY, b"");
    client.send(&encode(OPT_SET_META_CONTEXT, &all));
    let replies = client.replies();
    assert_eq!(replies[0], (OPT_SET_META_CONTEXT, REP_META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()));
    assert_eq!(
        replies[1],
        (OPT_SET_META_CONTEXT, REP_META_CONTEXT, b"\0\0\0\x04x-thinorigin:cached".to_vec())
    );
    assert_eq!(replies[2..], [(OPT_SET_META_CONTEXT, REP_ACK, vec![])]);
    let step = client.send(&encode(OPT_GO, &info("disk", &[])));
    assert_eq!(step, begin(Headers::Structured, Contexts::ALLOCATION | Contexts::CACHED));
    assert_eq!(client.replies()[0].2, b"\0\0\0\0\0\0\0\x10\0\0\x05\x8f");
}

#[test]
fn a_selection_replaces_the_one_before_even_if_it_fails() {
    for (option, data, expected) in [
        (OPT_SET_META_CONTEXT, meta("disk", &[]), Contexts::empty()),
        (OPT_SET_META_CONTEXT, meta("disk", &["qemu:allocation-depth"]), Contexts::DEPTH),
        (OPT_SET_META_CONTEXT, meta("other", &["base:allocation"]), Contexts::empty()),
        (OPT_SET_META_CONTEXT, b"junk".to_vec(), Contexts::empty()),
        (OPT_LIST_META_CONTEXT, meta("disk", &[]), Contexts::ALLOCATION),
        (OPT_INFO, info("other", &[]), Contexts::ALLOCATION),
    ] {
        let mut client = Client::fixed();
        client.option(OPT_STRUCTURED_REPLY, b"");
        client.option(OPT_SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
        client.option(option, &data);
        let step = client.send(&encode(OPT_EXPORT_NAME, b"disk"));
        assert_eq!(step, begin(Headers::Structured, expected), "{option}");
    }
}

#[test]
fn namespaces_are_for_lists() {
    let mut client = Client::fixed();
    client.option(OPT_STRUCTURED_REPLY, b"");
    for (queries, count) in [
        (&[][..], 3),
        (&["base:"][..], 1),
        (&["base:", "qemu:"][..], 2),
        (&["base:allocation"][..], 1),
        (&["base", ":", "", "base:allocation:"][..], 0),
    ] {
        let replies = client.option(OPT_LIST_META_CONTEXT, &meta("disk", queries));
        assert_eq!(replies.len(), count + 1, "{queries:?}");
    }
    assert_eq!(client.option(OPT_SET_META_CONTEXT, &meta("disk", &["base:", "qemu:"])), [REP_ACK]);
    assert_eq!(client.option(OPT_SET_META_CONTEXT, &meta("other", &[])), [REP_ERR_UNKNOWN]);
}

#[test]
fn extended_headers_come_before_structured_replies() {
    let mut client = Client::fixed();
    assert_eq!(client.option(OPT_EXTENDED_HEADERS, b"x"), [REP_ERR_INVALID]);
    assert_eq!(client.option(OPT_STRUCTURED_REPLY, b""), [REP_ACK]);
    assert_eq!(client.option(OPT_EXTENDED_HEADERS, b""), [REP_ACK]);
    assert_eq!(client.option(OPT_STRUCTURED_REPLY, b""), [REP_ERR_EXT_HEADER_REQD]);
    assert_eq!(client.option(OPT_SET_META_CONTEXT, &meta("disk", &["base:allocation"])).len(), 2);
    let step = client.send(&encode(OPT_GO, &info("disk", &[])));
    assert_eq!(step, begin(Headers::Extended, Contexts::ALLOCATION));
}

#[test]
fn without_encryption_nothing_is_negotiated_when_it_is_required() {
    let mut client = Client::new(Encryption::Required, 3);
    for option in [OPT_LIST, OPT_GO, OPT_INFO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT, 77] {
        assert_eq!(client.option(option, b"data"), [REP_ERR_TLS_REQD]);
    }
    assert_eq!(client.option(OPT_STARTTLS, b"x"), [REP_ERR_INVALID]);
    assert_eq!(client.send(&encode(OPT_STARTTLS, b"")), Step::StartTls);
    assert_eq!(client.replies(), [(OPT_STARTTLS, REP_ACK, vec![])]);
    client.handshake.encrypted();
    assert_eq!(client.option(OPT_STARTTLS, b""), [REP_ERR_INVALID]);
    let step = client.send(&encode(OPT_GO, &info("disk", &[])));
    assert_eq!(step, begin(Headers::Simple, Contexts::empty()));

    let mut client = Client::new(Encryption::Required, 3);
    assert_eq!(client.send(&encode(OPT_EXPORT_NAME, b"disk")), Step::Close);
    let mut client = Client::new(Encryption::Required, 3);
    assert_eq!(client.send(&encode(OPT_ABORT, b"")), Step::Close);
}

/// Options of every kind, most of them sound.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let names = prop_oneof![Just("disk"), Just("other")];
    prop_oneof![
        names.clone().prop_map(|name| encode(OPT_INFO, &info(name, &[INFO_NAME, INFO_BLOCK_SIZE]))),
        names.clone().prop_map(|name| encode(OPT_GO, &info(name, &[]))),
        names.prop_map(|name| encode(OPT_SET_META_CONTEXT, &meta(name, &["base:allocation"]))),
        Just(encode(OPT_LIST, b"")),
        Just(encode(OPT_STRUCTURED_REPLY, b"")),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(option, data)| encode(option, &data)),
    ]
}

proptest! {
    #[test]
    fn any_split_of_the_same_bytes_gives_the_same_answer(
        options in prop::collection::vec(any_option(), 0..8),
        junk in prop::collection::vec(any::<u8>(), 0..20),
        pieces in prop::collection::vec(1..70_usize, 1..10),
    ) {
        let mut bytes = options.concat();
        bytes.extend_from_slice(&junk);
        let mut whole = Client::fixed();
        let step = whole.send(&bytes);
        let mut split = Client::fixed();
        let mut left = &bytes[..];
        let mut last = Step::More;
        for piece in pieces.iter().cycle() {
            let (here, rest) = left.split_at((*piece).min(left.len()));
            left = rest;
            last = split.send(here);
            if last != Step::More || left.is_empty() {
                break;
            }
        }
        prop_assert_eq!(last, step);
        prop_assert_eq!(split.out, whole.out);
    }
}
