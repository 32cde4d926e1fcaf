use super::consts::{CommandFlags, Contexts, EXTENDED_REQUEST_LEN, Headers, REQUEST_LEN};
use super::*;
use crate::{Errno, Extent, ExtentFlags, Failure, Segment};
use bytes::Bytes;
use proptest::prelude::*;

/// A sink that keeps everything in memory.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Sink for Memory {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn segment(&mut self, segment: &Segment) -> Result<(), Errno> {
        match segment {
            Segment::Bytes(bytes) => self.0.extend_from_slice(bytes),
            Segment::Zero(len) => self.0.resize(self.0.len() + *len as usize, 0),
            Segment::File { .. } => return Err(Errno::Io),
        }
        Ok(())
    }
}

fn request(command: Command, flags: CommandFlags, offset: u64, length: u64) -> Request {
    Request { flags, command, cookie: Cookie(0x0102_0304_0506_0708), offset, length }
}

/// The reply as hexadecimal digits, with a blank before each magic number.
fn check(encode: impl FnOnce(&mut Memory), expected: &str) {
    let mut sink = Memory::default();
    encode(&mut sink);
    let hex: String = sink.0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected.replace([' ', '\n'], ""));
}

#[test]
fn simple_replies() {
    let read = request(Command::Read, CommandFlags::empty(), 16, 4);
    let segments = [Segment::Bytes(Bytes::from_static(b"ab")), Segment::Zero(2)];
    check(
        |sink| encode_read(Headers::Simple, &read, &segments, sink).unwrap(),
        "67446698 00000000 0102030405060708 6162 0000",
    );
    check(
        |sink| encode_error(Headers::Simple, &read, Errno::Inval, sink),
        "67446698 00000016 0102030405060708",
    );
    check(|sink| encode_done(Headers::Simple, &read, sink), "67446698 00000000 0102030405060708");
}

#[test]
fn structured_reads() {
    let segments = [
        Segment::Bytes(Bytes::from_static(b"a")),
        Segment::Bytes(Bytes::from_static(b"b")),
        Segment::Zero(1),
        Segment::Zero(2),
        Segment::Bytes(Bytes::from_static(b"c")),
    ];
    let read = request(Command::Read, CommandFlags::empty(), 16, 6);
    check(
        |sink| encode_read(Headers::Structured, &read, &segments, sink).unwrap(),
        "668e33ef 0000 0001 0102030405060708 0000000a 0000000000000010 6162
         668e33ef 0000 0002 0102030405060708 0000000c 0000000000000012 00000003
         668e33ef 0001 0001 0102030405060708 00000009 0000000000000015 63",
    );
    let read = request(Command::Read, CommandFlags::DF, 16, 6);
    check(
        |sink| encode_read(Headers::Structured, &read, &segments, sink).unwrap(),
        "668e33ef 0001 0001 0102030405060708 0000000e 0000000000000010 616200000063",
    );
    let read = request(Command::Read, CommandFlags::DF, 16, 3);
    check(
        |sink| encode_read(Headers::Extended, &read, &[Segment::Zero(3)], sink).unwrap(),
        "6e8a278c 0001 0002 0102030405060708 0000000000000010 000000000000000c 0000000000000010 00000003",
    );
    let read = request(Command::Read, CommandFlags::empty(), 16, 0);
    check(
        |sink| encode_read(Headers::Structured, &read, &[], sink).unwrap(),
        "668e33ef 0001 0000 0102030405060708 00000000",
    );
}

#[test]
fn structured_errors_say_what_is_wrong() {
    let read = request(Command::Read, CommandFlags::empty(), 16, 6);
    check(
        |sink| encode_error(Headers::Structured, &read, Errno::Inval, sink),
        "668e33ef 0001 8001 0102030405060708 00000015 00000016 000f 696e76616c69642072657175657374",
    );
    // Where the error is, if that is in the request.
    let text = "00000016 000f 696e76616c69642072657175657374";
    for (at, expected) in [
        (15, "8001 0102030405060708 00000015"),
        (16, "8002 0102030405060708 0000001d"),
        (21, "8002 0102030405060708 0000001d"),
        (22, "8001 0102030405060708 00000015"),
    ] {
        let place = if expected.starts_with("8002") { format!("{at:016x}") } else { String::new() };
        let failure = Failure { errno: Errno::Inval, at: Some(at) };
        check(
            |sink| encode_error(Headers::Structured, &read, failure, sink),
            &format!("668e33ef 0001 {expected} {text} {place}"),
        );
    }
    let failure = Failure { errno: Errno::Inval, at: Some(16) };
    check(
        |sink| encode_error(Headers::Extended, &read, failure, sink),
        &format!(
            "6e8a278c 0001 8002 0102030405060708 0000000000000010 000000000000001d {text} 0000000000000010"
        ),
    );
}

#[test]
fn extents_are_merged_as_each_context_sees_them() {
    let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
    let extents = [
        Extent { len: 4, flags: ExtentFlags::empty(), depth: 1, local: true },
        Extent { len: 5, flags: ExtentFlags::empty(), depth: 2, local: true },
        Extent { len: 6, flags: hole, depth: 0, local: true },
    ];
    let contexts = Contexts::ALLOCATION | Contexts::CACHED;
    let status = request(Command::BlockStatus, CommandFlags::empty(), 0, 15);
    check(
        |sink| encode_status(Headers::Structured, contexts, &status, &extents, sink).unwrap(),
        "668e33ef 0000 0005 0102030405060708 00000014 00000001 00000009 00000000 00000006 00000003
         668e33ef 0001 0005 0102030405060708 0000000c 00000004 0000000f 00000001",
    );
    let status = request(Command::BlockStatus, CommandFlags::REQ_ONE, 0, 15);
    check(
        |sink| encode_status(Headers::Extended, Contexts::ALLOCATION, &status, &extents, sink).unwrap(),
        "6e8a278c 0001 0006 0102030405060708 0000000000000000 0000000000000018 00000001 00000001
         0000000000000009 0000000000000000",
    );
}

#[test]
fn a_request_begins_with_its_magic_number() {
    assert_eq!(Request::decode(&[0; REQUEST_LEN]), Err(Malformed(0)));
    let mut compact = Vec::new();
    request(Command::Read, CommandFlags::empty(), 0, 0).encode(&mut compact);
    let mut extended = [0; EXTENDED_REQUEST_LEN];
    extended[..REQUEST_LEN].copy_from_slice(&compact);
    assert_eq!(Request::decode_extended(&extended), Err(Malformed(0x2560_9513)));
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32, long: u64) {
        let mut bytes = Vec::new();
        let flags = CommandFlags::from_bits_retain(flags);
        let kind = Command::of(kind);
        let request = Request { flags, command: kind, cookie: Cookie(cookie), offset, length: length.into() };
        request.encode(&mut bytes);
        prop_assert_eq!(Request::decode(bytes.first_chunk().unwrap()), Ok(request));
        prop_assert_eq!(bytes.len(), REQUEST_LEN);

        bytes.clear();
        let request = Request { length: long, ..request };
        request.encode_extended(&mut bytes);
        prop_assert_eq!(Request::decode_extended(bytes.first_chunk().unwrap()), Ok(request));
        prop_assert_eq!(bytes.len(), EXTENDED_REQUEST_LEN);
    }

    #[test]
    fn structured_reads_cover_the_request_once(kinds in prop::collection::vec((any::<bool>(), 1_u32..9), 1..9), df: bool) {
        let segments: Vec<Segment> = kinds.iter().map(|(zero, len)| match zero {
            true => Segment::Zero(*len),
            false => Segment::Bytes(Bytes::from(vec![7; *len as usize])),
        }).collect();
        let length = kinds.iter().map(|(_, len)| u64::from(*len)).sum();
        let flags = if df { CommandFlags::DF } else { CommandFlags::empty() };
        let read = request(Command::Read, flags, 1000, length);
        let mut sink = Memory::default();
        encode_read(Headers::Structured, &read, &segments, &mut sink).unwrap();

        let mut cursor = Cursor(&sink.0);
        let mut image = Vec::new();
        let mut chunks = 0;
        while !cursor.0.is_empty() {
            cursor.u32().unwrap();
            let (flags, kind) = (cursor.u16().unwrap(), cursor.u16().unwrap());
            cursor.u64().unwrap();
            let mut payload = Cursor(cursor.counted().unwrap());
            prop_assert_eq!(payload.u64().unwrap(), 1000 + image.len() as u64);
            match kind {
                1 => image.extend_from_slice(payload.0),
                _ => image.resize(image.len() + payload.u32().unwrap() as usize, 0),
            }
            prop_assert_eq!(flags == 1, cursor.0.is_empty());
            chunks += 1;
        }
        let expected: Vec<u8> =
            kinds.iter().flat_map(|(zero, len)| vec![if *zero { 0 } else { 7 }; *len as usize]).collect();
        prop_assert_eq!(image, expected);
        prop_assert!(!df || chunks == 1);
    }
}
