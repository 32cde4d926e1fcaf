//! Checks of the negotiation.

use super::Target;
use super::raw::*;
use std::collections::HashSet;
use std::time::{Duration, Instant};

pub(crate) const CHECKS: &[Named] = &[
    ("H01 greeting and handshake flags", h01),
    ("H02 unknown client flags end the connection", h02),
    ("H03 ABORT is acknowledged, then closed", h03),
    ("H04 ABORT with data", h04),
    ("H05 LIST", h05),
    ("H06 LIST with data is invalid", h06),
    ("H07 unknown options are unsupported, in sync", h07),
    ("H08 PEEK_EXPORT is unsupported", h08),
    ("H09 malformed INFO is refused, in sync", h09),
    ("H10 an unknown export is an error, then usable", h10),
    ("H11 INFO tells what GO tells", h11),
    ("H12 the default export", h12),
    ("H13 EXPORT_NAME without zeroes", h13),
    ("H14 EXPORT_NAME with 124 zeroes", h14),
    ("H15 EXPORT_NAME of a client without flags", h15),
    ("H16 EXPORT_NAME of an unknown export closes", h16),
    ("H17 STRUCTURED_REPLY with data is invalid", h17),
    ("H18 SET_META before structured replies is invalid", h18),
    ("H19 LIST_META: wildcards and unknown namespaces", h19),
    ("H20 SET_META replaces and clears", h20),
    ("H21 SET_META with a query twice", h21),
    ("H22 malformed SET_META is invalid, in sync", h22),
    ("H22b SET_META with trailing bytes", h22b),
    ("H23 1000 queries", h23),
    ("H24 SET_META of an unknown export", h24),
    ("H25 STARTTLS where there is no TLS", h25),
    ("H26 EXTENDED_HEADERS", h26),
    ("H27 a bad option magic closes", h27),
    ("H28 an option of 4 GiB does no harm", h28),
    ("H29 a name longer than 4096 bytes", h29),
    ("H30 NUL in a name", h30),
    ("H31 names like paths and URIs", h31),
    ("H32 2000 options", h32),
    ("H33 20 idle negotiations block nobody", h33),
    ("H34 an idle negotiation is ended", h34),
    ("H35 a slow negotiation is ended", h35),
    ("H36 400 connections at once", h36),
    ("H37 transmission flags are of what was negotiated", h37),
    ("H38 SET_META of a namespace selects nothing", h38),
    ("H39 SET_META gives each context an id", h39),
];

/// The target still serves a new client.
fn serves(target: &Target) -> Check {
    Raw::connect(&target.socket)?.in_sync()
}

fn h01(target: &Target) -> Check {
    let mut raw = Raw::greeted(&target.socket)?;
    ensure!(raw.flags == 3, "handshake flags {:#x}", raw.flags);
    raw.send(&3_u32.to_be_bytes())?;
    raw.in_sync()
}

fn h02(target: &Target) -> Check {
    for flags in [4_u32, 0x8000_0000, 0xffff_ffff] {
        let mut raw = Raw::greeted(&target.socket)?;
        raw.send(&flags.to_be_bytes())?;
        raw.closed()?;
    }
    Ok(())
}

fn h03(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(ABORT, &[], ACK)?;
    raw.closed()
}

fn h04(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let verdict = raw.verdict(ABORT, b"because")?;
    ensure!(verdict == ACK || verdict == INVALID, "{verdict:#x}");
    Ok(())
}

fn h05(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let replies = raw.option(LIST, &[])?;
    let (last, names) = replies.split_last().ok_or("no reply")?;
    ensure!(last.0 == ACK && !names.is_empty(), "{replies:?}");
    for (kind, data) in names {
        let len = u32::from_be_bytes(data[..4].try_into()?) as usize;
        ensure!(*kind == SERVER && data.len() >= 4 + len, "{kind} {data:?}");
    }
    raw.in_sync()
}

fn h06(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(LIST, b"x", INVALID)?;
    raw.in_sync()
}

fn h07(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    for len in [0, 1, 4096, 60_000] {
        raw.expect(0x7fff_fff0, &vec![7; len], UNSUP)?;
    }
    raw.in_sync()
}

fn h08(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(4, &[], UNSUP)?;
    raw.in_sync()
}

fn h09(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    for data in [
        &b""[..],
        b"\0\0",
        b"\0\0\0\x05ab\0\0",
        b"\0\0\0\0\0\x02\0\x01",
        b"\0\0\0\0\0\0junk",
        b"\xff\xff\xff\xff\0\0",
    ] {
        let verdict = raw.verdict(INFO, data)?;
        ensure!(verdict == INVALID, "{data:?}: {verdict:#x}");
        raw.in_sync()?;
    }
    Ok(())
}

fn h10(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(INFO, &info("no such export", &[]), UNKNOWN)?;
    raw.expect(GO, &info("no such export", &[]), UNKNOWN)?;
    raw.in_sync()
}

fn h11(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let asked = info("", &[3, 1, 2, 0, 999]);
    let told = raw.option(INFO, &asked)?;
    ensure!(raw.option(GO, &asked)? == told, "GO tells something else than INFO");
    let of = |kind: u16| {
        told.iter().find(|(_, data)| data.starts_with(&kind.to_be_bytes())).map(|(_, data)| &data[2..])
    };
    let export = of(0).ok_or("no NBD_INFO_EXPORT")?;
    ensure!(export.len() == 10, "NBD_INFO_EXPORT of {} bytes", export.len());
    let size = u64::from_be_bytes(export[..8].try_into()?);
    ensure!(size == target.image.len() as u64, "{size} bytes");
    ensure!(export[9] & 3 == 3, "flags {:#x}: not read-only", export[9]);
    if let Some(sizes) = of(3) {
        let [minimum, preferred, maximum] =
            [0, 4, 8].map(|at| u32::from_be_bytes(sizes[at..at + 4].try_into().unwrap()));
        ensure!(minimum.is_power_of_two() && minimum <= 65536, "minimum block size {minimum}");
        ensure!(
            preferred.is_power_of_two() && preferred >= 512.max(minimum),
            "preferred block size {preferred}"
        );
        ensure!(maximum == u32::MAX || maximum >= 1 << 20, "maximum block size {maximum}");
    }
    Ok(())
}

fn h12(target: &Target) -> Check {
    let mut raw = Raw::transmit(&target.socket, Mode::Simple, &[])?;
    ensure!(raw.read(0, 512)? == target.image[..512], "other bytes");
    Ok(())
}

fn export_name(target: &Target, flags: u32, padding: usize) -> Check {
    let mut raw = Raw::greeted(&target.socket)?;
    raw.send(&flags.to_be_bytes())?;
    raw.put_option(EXPORT_NAME, &[])?;
    let answer = raw.receive(10 + padding)?;
    let size = u64::from_be_bytes(answer[..8].try_into()?);
    ensure!(size == target.image.len() as u64, "{size} bytes");
    ensure!(answer[10..].iter().all(|byte| *byte == 0), "padding of other than zeros");
    ensure!(raw.read(0, 512)? == target.image[..512], "other bytes");
    Ok(())
}

fn h13(target: &Target) -> Check {
    export_name(target, 3, 0)
}

fn h14(target: &Target) -> Check {
    export_name(target, 1, 124)
}

fn h15(target: &Target) -> Check {
    export_name(target, 0, 124)
}

fn h16(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.put_option(EXPORT_NAME, b"no such export")?;
    raw.closed()
}

fn h17(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(STRUCTURED, b"x", INVALID)?;
    raw.expect(STRUCTURED, &[], ACK)?;
    raw.in_sync()
}

fn h18(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(SET_META, &meta("", &["base:allocation"]), INVALID)?;
    raw.in_sync()
}

fn h19(target: &Target) -> Check {
    let mut raw = structured(target)?;
    for (queries, wanted) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["x-none:"], false),
        (&["x-none:thing"], false),
    ] {
        let replies = raw.option(LIST_META, &meta("", queries))?;
        let found = replies.iter().any(|(kind, data)| *kind == META && data.ends_with(b"base:allocation"));
        ensure!(replies.last().is_some_and(|(kind, _)| *kind == ACK), "{queries:?}: {replies:?}");
        ensure!(found == wanted, "{queries:?}: {replies:?}");
    }
    raw.in_sync()
}

fn structured(target: &Target) -> Answer<Raw> {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(STRUCTURED, &[], ACK)?;
    raw.mode = Mode::Structured;
    Ok(raw)
}

/// Whether BLOCK_STATUS works after the given selections.
fn selected(target: &Target, selections: &[&[u8]]) -> Answer<bool> {
    let mut raw = structured(target)?;
    for selection in selections {
        raw.option(SET_META, selection)?;
    }
    raw.expect(GO, &info("", &[]), ACK)?;
    Ok(raw.request(BLOCK_STATUS, 0, 0, 512)?.error == 0)
}

fn h20(target: &Target) -> Check {
    let some = meta("", &["base:allocation"]);
    let none = meta("", &[]);
    let unknown = meta("no such export", &["base:allocation"]);
    ensure!(selected(target, &[&some])?, "a selection does not hold");
    ensure!(!selected(target, &[&some, &none])?, "an empty selection does not clear");
    ensure!(!selected(target, &[&some, b"junk"])?, "a failed selection does not clear");
    ensure!(!selected(target, &[&some, &unknown])?, "a selection for another export does not clear");
    ensure!(selected(target, &[&none, &some])?, "a selection does not replace an empty one");
    Ok(())
}

fn h21(target: &Target) -> Check {
    let mut raw = structured(target)?;
    let replies = raw.option(SET_META, &meta("", &["base:allocation", "base:allocation"]))?;
    let ids: Vec<_> = replies.iter().filter(|(kind, _)| *kind == META).map(|(_, data)| &data[..4]).collect();
    ensure!(!ids.is_empty() && ids.iter().collect::<HashSet<_>>().len() == 1, "{replies:?}");
    raw.in_sync()
}

fn h22(target: &Target) -> Check {
    let mut raw = structured(target)?;
    for data in [
        &b""[..],
        b"\0\0\0\0",
        b"\0\0\0\0\0\0\0\x01",
        b"\0\0\0\0\0\0\0\x01\0\0\0\x09base:",
        b"\xff\xff\xff\xff",
    ] {
        let verdict = raw.verdict(SET_META, data)?;
        ensure!(verdict == INVALID, "{data:?}: {verdict:#x}");
        raw.in_sync()?;
    }
    Ok(())
}

fn h22b(target: &Target) -> Check {
    let mut raw = structured(target)?;
    let mut data = meta("", &["base:allocation"]);
    data.extend(b"junk");
    raw.expect(SET_META, &data, INVALID)?;
    raw.in_sync()
}

fn h23(target: &Target) -> Check {
    let mut raw = structured(target)?;
    let mut queries = vec!["x-none:thing"; 999];
    queries.push("base:allocation");
    let verdict = raw.verdict(SET_META, &meta("", &queries))?;
    ensure!(verdict == ACK || verdict == TOO_BIG, "{verdict:#x}");
    raw.in_sync()
}

fn h24(target: &Target) -> Check {
    let mut raw = structured(target)?;
    raw.expect(SET_META, &meta("no such export", &["base:allocation"]), UNKNOWN)?;
    raw.in_sync()
}

fn h25(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let verdict = raw.verdict(STARTTLS, &[])?;
    ensure!(verdict == UNSUP || verdict == POLICY, "{verdict:#x}");
    raw.in_sync()
}

fn h26(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.expect(EXTENDED, b"x", INVALID)?;
    raw.expect(EXTENDED, &[], ACK)?;
    raw.expect(STRUCTURED, &[], EXT_HEADER_REQD)?;
    raw.expect(GO, &info("", &[]), ACK)?;
    raw.mode = Mode::Extended;
    ensure!(raw.read(5, 1000)? == target.image[5..1005], "other bytes");
    Ok(())
}

fn h27(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.send(b"IHAVEOPX\0\0\0\x03\0\0\0\0")?;
    raw.closed()?;
    serves(target)
}

fn h28(target: &Target) -> Check {
    for option in [INFO, 77] {
        let mut raw = Raw::connect(&target.socket)?;
        raw.send(&[&b"IHAVEOPT"[..], &option.to_be_bytes(), &[0xff; 4]].concat())?;
        // The server may hang up, or swallow; either way the next client is served.
        for _ in 0..100 {
            if raw.send(&[0; 4096]).is_err() {
                break;
            }
        }
    }
    serves(target)
}

fn h29(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let long = "n".repeat(4097);
    let verdict = raw.verdict(INFO, &info(&long, &[]))?;
    ensure!([INVALID, TOO_BIG, UNKNOWN].contains(&verdict), "{verdict:#x}");
    raw.in_sync()?;
    raw.expect(INFO, &info(&long[1..], &[]), UNKNOWN)?;
    raw.in_sync()
}

fn h30(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let verdict = raw.verdict(INFO, &info("a\0b", &[]))?;
    ensure!([INVALID, UNKNOWN, POLICY].contains(&verdict), "{verdict:#x}");
    raw.in_sync()
}

fn h31(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    for name in
        ["/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "nbd://localhost", "%s%n", "ü\u{202e}"]
    {
        raw.expect(INFO, &info(name, &[]), UNKNOWN)?;
    }
    raw.in_sync()
}

fn h32(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    for _ in 0..2000 {
        raw.expect(INFO, &info("no such export", &[]), UNKNOWN)?;
    }
    raw.in_sync()
}

fn h33(target: &Target) -> Check {
    let idle: Vec<_> = (0..20).map(|_| Raw::greeted(&target.socket)).collect::<Result<_, _>>()?;
    let start = Instant::now();
    serves(target)?;
    ensure!(start.elapsed() < Duration::from_millis(1800), "{:?}", start.elapsed());
    drop(idle);
    Ok(())
}

fn h34(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    raw.socket().set_read_timeout(Some(Duration::from_secs(5)))?;
    raw.closed()
}

fn h35(target: &Target) -> Check {
    let mut raw = Raw::connect(&target.socket)?;
    let start = Instant::now();
    for byte in option_bytes(77, &[0; 1000]) {
        if raw.send(&[byte]).is_err() {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(5), "a byte now and then keeps the connection open");
        std::thread::sleep(Duration::from_millis(10));
    }
    Err("the option was taken whole".into())
}

fn h36(target: &Target) -> Check {
    let mut flood = Vec::new();
    for _ in 0..400 {
        // A server may turn clients away, or let them wait in the backlog.
        let socket = std::os::unix::net::UnixStream::connect(&target.socket);
        flood.extend(socket);
    }
    drop(flood);
    serves(target)
}

/// Of a read-only export. `NBD_FLAG_SEND_DF` needs structured replies, `NBD_FLAG_BLOCK_STAT_PAYLOAD` extended headers.
fn h37(target: &Target) -> Check {
    const HAS_FLAGS_AND_READ_ONLY: u16 = 3;
    const SEND_DF: u16 = 1 << 7;
    /// Trim, write zeroes, resize, fast zero.
    const WRITES: u16 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11;
    const BLOCK_STAT_PAYLOAD: u16 = 1 << 12;
    let check = |flags: u16, mode: Mode| -> Check {
        ensure!(flags & 3 == HAS_FLAGS_AND_READ_ONLY && flags & WRITES == 0, "{mode:?}: flags {flags:#x}");
        ensure!((flags & SEND_DF != 0) == (mode != Mode::Simple), "{mode:?}: DF in {flags:#x}");
        let payload = flags & BLOCK_STAT_PAYLOAD != 0;
        ensure!(!payload || mode == Mode::Extended, "{mode:?}: a payload of BLOCK_STATUS in {flags:#x}");
        Ok(())
    };
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        if mode == Mode::Extended && !target.extended {
            continue;
        }
        let mut raw = Raw::with(&target.socket, mode)?;
        let told = raw.option(INFO, &info("", &[]))?;
        let export = told.iter().find(|(_, data)| data.starts_with(&[0, 0])).ok_or("no NBD_INFO_EXPORT")?;
        check(u16::from_be_bytes(export.1[10..12].try_into()?), mode)?;
    }
    let mut raw = Raw::connect(&target.socket)?;
    raw.put_option(EXPORT_NAME, &[])?;
    check(u16::from_be_bytes(raw.receive(10)?[8..].try_into()?), Mode::Simple)
}

fn h38(target: &Target) -> Check {
    let mut raw = structured(target)?;
    for queries in [&["base:"][..], &["x-none:thing"], &["base:alloc"], &["base:", "x-none:"]] {
        let replies = raw.option(SET_META, &meta("", queries))?;
        ensure!(replies.iter().map(|(kind, _)| *kind).eq([ACK]), "{queries:?}: {replies:?}");
    }
    ensure!(!selected(target, &[&meta("", &["base:"])])?, "BLOCK_STATUS without a context");
    Ok(())
}

fn h39(target: &Target) -> Check {
    let mut raw = structured(target)?;
    let replies = raw.option(SET_META, &meta("", target.contexts))?;
    let chosen: Vec<_> = replies.iter().filter(|(kind, _)| *kind == META).map(|(_, data)| data).collect();
    let ids: HashSet<_> = chosen.iter().map(|data| &data[..4]).collect();
    let names: HashSet<_> = chosen.iter().map(|data| &data[4..]).collect();
    let wanted: HashSet<_> = target.contexts.iter().map(|name| name.as_bytes()).collect();
    ensure!(ids.len() == wanted.len() && names == wanted, "{replies:?}");
    raw.in_sync()
}
