//! The negotiation and the transmission phase against any bytes: however they are cut into pieces, the answers are the
//! same, and what is kept of them is bounded.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use thinorigin_nbd::ExportInfo;
use thinorigin_nbd::handshake::{Encryption, Handshake, Negotiated, Step};
use thinorigin_nbd::session::{Event, Session};
use thinorigin_nbd::validate::Terms;
use thinorigin_nbd::wire::Command;
use thinorigin_nbd::wire::consts::{MAX_OPTION, MAX_PAYLOAD};

const SIZE: u64 = 1 << 30;

/// What came of the bytes: what was sent in the negotiation, whether it closed, and the events after it.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    sent: BytesMut,
    closed: bool,
    negotiated: Option<Negotiated>,
    events: Vec<Event>,
}

fn run(bytes: &[u8], piece: usize) -> Outcome {
    let info = ExportInfo { size: SIZE, preferred_block: 4096, description: "words".into() };
    let names = ["disk".to_owned()];
    let mut outcome = Outcome::default();
    let mut input = BytesMut::new();
    let mut handshake = Handshake::new(Encryption::None, &mut outcome.sent);
    let mut session: Option<Session> = None;
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        if session.is_none() {
            let mut step = handshake.step(&mut input, &mut outcome.sent);
            loop {
                step = match step {
                    Step::Lookup(name) => {
                        let found = matches!(name.as_str(), "" | "disk").then_some(&info);
                        handshake.found(found, &mut input, &mut outcome.sent)
                    }
                    Step::List => handshake.listed(&names, &mut input, &mut outcome.sent),
                    Step::Begin(negotiated) => {
                        outcome.negotiated = Some(negotiated);
                        let Negotiated { headers, contexts } = negotiated;
                        session = Some(Session::new(Terms { size: SIZE, headers, contexts }));
                        break;
                    }
                    Step::Close => {
                        outcome.closed = true;
                        return outcome;
                    }
                    Step::More => break,
                    Step::StartTls => panic!("TLS is not offered"),
                };
            }
            assert!(
                session.is_some() || input.len() <= MAX_OPTION as usize + 16,
                "{} bytes are kept",
                input.len()
            );
        }
        if let Some(session) = &mut session {
            loop {
                match session.receive(&mut input) {
                    Event::More => break,
                    event => outcome.events.push(event),
                }
            }
            assert!(input.len() < 32, "{} bytes are kept", input.len());
        }
    }
    outcome
}

fuzz_target!(|data: (u8, &[u8])| {
    let (piece, bytes) = data;
    let whole = run(bytes, bytes.len().max(1));
    for event in &whole.events {
        if let Event::Request(request) = event {
            let end = request.offset.checked_add(request.length);
            let inside = request.command == Command::Flush || end.is_some_and(|end| end <= SIZE);
            assert!(inside, "{request:?} is outside the disk");
            assert!(
                request.command != Command::Read || request.length <= u64::from(MAX_PAYLOAD),
                "{request:?}"
            );
        }
    }
    assert_eq!(run(bytes, usize::from(piece).max(1)), whole);
});
