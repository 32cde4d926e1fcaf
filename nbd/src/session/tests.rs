use super::*;
use crate::wire::Cookie;
use crate::wire::consts::Contexts;
use proptest::prelude::*;

fn session(headers: Headers) -> Session {
    Session::new(Terms { size: 1 << 30, headers, contexts: Contexts::ALLOCATION })
}

/// All events of `bytes`, handed over in pieces of the given lengths (in turn, and again from the first).
fn events(headers: Headers, bytes: &[u8], pieces: &[usize]) -> Vec<Event> {
    let mut session = session(headers);
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    let mut left = bytes;
    for piece in pieces.iter().cycle() {
        let (here, rest) = left.split_at((*piece).min(left.len()));
        input.extend_from_slice(here);
        left = rest;
        loop {
            match session.receive(&mut input) {
                Event::More => break,
                event => events.push(event),
            }
        }
        if left.is_empty() {
            return events;
        }
    }
    events
}

fn request(command: Command, length: u64) -> Request {
    Request { flags: CommandFlags::empty(), command, cookie: Cookie(7), offset: 0, length }
}

/// The bytes of `requests` with their payloads.
fn stream(headers: Headers, requests: &[Request]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        let payload = match headers {
            Headers::Extended => {
                request.encode_extended(&mut bytes);
                request.flags.contains(CommandFlags::PAYLOAD_LEN)
            }
            _ => {
                request.encode(&mut bytes);
                request.command == Command::Write
            }
        };
        if payload {
            // The payload looks like a request with a wrong magic number, should anyone look.
            bytes.resize(bytes.len() + request.length as usize, 0xff);
        }
    }
    bytes
}

#[test]
fn a_refused_write_leaves_the_session_in_step() {
    let requests = [request(Command::Write, 100), request(Command::Read, 5)];
    let expected = vec![Event::Refused(requests[0], Errno::Perm), Event::Request(requests[1])];
    assert_eq!(events(Headers::Structured, &stream(Headers::Structured, &requests), &[3]), expected);
}

#[test]
fn with_extended_headers_the_flag_tells_a_payload() {
    let payload = Request { flags: CommandFlags::PAYLOAD_LEN, ..request(Command::Write, 100) };
    let odd = Request { flags: CommandFlags::PAYLOAD_LEN, ..request(Command::Read, 100) };
    let bare = request(Command::Write, 100);
    let read = request(Command::Read, 5);
    let requests = [payload, odd, bare, read];
    let expected = vec![
        Event::Refused(payload, Errno::Perm),
        Event::Refused(odd, Errno::Inval),
        Event::Refused(bare, Errno::Perm),
        Event::Request(read),
    ];
    assert_eq!(events(Headers::Extended, &stream(Headers::Extended, &requests), &[7]), expected);
}

#[test]
fn nothing_is_looked_at_after_the_end() {
    let read = request(Command::Read, 5);
    let mut bytes = stream(Headers::Simple, &[read, request(Command::Disconnect, 0), read]);
    assert_eq!(events(Headers::Simple, &bytes, &[1000]), vec![Event::Request(read), Event::Disconnect]);
    bytes[28] = 0;
    let malformed = Event::Malformed(Malformed(0x0060_9513));
    assert_eq!(events(Headers::Simple, &bytes, &[1000]), vec![Event::Request(read), malformed]);
}

#[test]
fn a_payload_beyond_the_maximum_ends_the_session() {
    let max = request(Command::Write, u64::from(MAX_PAYLOAD));
    let over = request(Command::Write, u64::from(MAX_PAYLOAD) + 1);
    let mut bytes = Vec::new();
    max.encode(&mut bytes);
    assert_eq!(events(Headers::Simple, &bytes, &[1000]), vec![Event::Refused(max, Errno::Perm)]);
    bytes.clear();
    over.encode(&mut bytes);
    assert_eq!(events(Headers::Simple, &bytes, &[1000]), vec![Event::TooLong(over)]);
}

/// Requests of every kind, valid or not, with short payloads.
fn any_request() -> impl Strategy<Value = Request> {
    let command = prop_oneof![
        Just(Command::Read),
        Just(Command::Write),
        Just(Command::Cache),
        Just(Command::Trim),
        Just(Command::BlockStatus),
        Just(Command::Unknown(77)),
    ];
    let flags = prop_oneof![3 => Just(0), 1 => Just(32), 1 => any::<u16>()];
    (command, flags, any::<u64>(), 0..200_u64).prop_map(|(command, flags, cookie, length)| Request {
        flags: CommandFlags::from_bits_retain(flags),
        command,
        cookie: Cookie(cookie),
        offset: cookie % (2 << 30),
        length,
    })
}

proptest! {
    #[test]
    fn any_split_of_the_same_bytes_gives_the_same_events(
        requests in prop::collection::vec(any_request(), 0..8),
        junk in prop::collection::vec(any::<u8>(), 0..40),
        pieces in prop::collection::vec(1..90_usize, 1..10),
        extended: bool,
    ) {
        let headers = if extended { Headers::Extended } else { Headers::Structured };
        let mut bytes = stream(headers, &requests);
        bytes.extend_from_slice(&junk);
        let whole = events(headers, &bytes, &[bytes.len().max(1)]);
        prop_assert!(whole.len() >= requests.len());
        prop_assert_eq!(events(headers, &bytes, &pieces), whole);
    }
}
