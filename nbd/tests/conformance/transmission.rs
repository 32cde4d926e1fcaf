//! Checks of the transmission phase.

use super::Target;
use super::raw::*;
use std::io::{ErrorKind, Write};
use std::time::Duration;

pub(crate) const CHECKS: &[Named] = &[
    ("T01 reads anywhere", t01),
    ("T02 the whole image", t02),
    ("T03 reads out of range are invalid", t03),
    ("T04 a read of nothing does not disconnect", t04),
    ("T05 oversize reads", t05),
    ("T06 unknown commands are invalid", t06),
    ("T07 unknown flags are invalid", t07),
    ("T08 writes are not permitted, in sync", t08),
    ("T09 FLUSH", t09),
    ("T10 FUA on READ", t10),
    ("T11 CACHE", t11),
    ("T12 BLOCK_STATUS without a context is invalid", t12),
    ("T13 base:allocation of all, REQ_ONE, bounds", t13),
    ("T14 what is said to be zero reads as zeros", t14),
    ("T15 all contexts at once", t15),
    ("T16 DF", t16),
    ("T17 64 requests at once, any cookies", t17),
    ("T18 a bad request magic closes", t18),
    ("T20 DISC closes", t20),
    ("T21 what is under way is answered before DISC closes", t21),
    ("T22 a WRITE of 4 GiB does no harm", t22),
    ("T23 30 abrupt ends", t23),
    ("T24 8 connections at once", t24),
    ("T26 PAYLOAD_LEN with extended headers", t26),
    ("T27 64-bit lengths", t27),
    ("T28 a payload of BLOCK_STATUS that makes no sense", t28),
    ("T29 a WRITE of nothing is not permitted", t29),
    ("T25 a client that does not read is bounded", t25),
];

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// Runs `check` in each mode the target knows.
fn in_modes(target: &Target, check: impl Fn(&mut Raw) -> Check) -> Check {
    for mode in MODES {
        if mode == Mode::Extended && !target.extended {
            continue;
        }
        let mut raw = Raw::transmit(&target.socket, mode, &[])?;
        check(&mut raw).map_err(|error| format!("{mode:?}: {error}"))?;
    }
    Ok(())
}

fn t01(target: &Target) -> Check {
    in_modes(target, |raw| {
        let size = target.image.len() as u64;
        let mut state = 1_u64;
        for round in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (state >> 16) % size;
            let length = ((state >> 40) % (1 << (round % 20))).min(size - offset).max(1);
            let data = raw.read(offset, length)?;
            ensure!(
                data == target.image[offset as usize..][..length as usize],
                "{length} bytes at {offset:#x} differ"
            );
        }
        Ok(())
    })
}

fn t02(target: &Target) -> Check {
    in_modes(target, |raw| {
        let data = raw.read(0, target.image.len() as u64)?;
        ensure!(data == target.image, "the image differs");
        Ok(())
    })
}

fn t03(target: &Target) -> Check {
    in_modes(target, |raw| {
        let size = target.image.len() as u64;
        for (offset, length) in [
            (size, 1),
            (size - 1, 2),
            (size + 512, 512),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
            (1 << 63, 512),
        ] {
            raw.refused(READ, 0, offset, length, &[EINVAL])?;
        }
        Ok(())
    })
}

fn t04(target: &Target) -> Check {
    in_modes(target, |raw| {
        raw.request(READ, 0, 0, 0)?;
        raw.alive()
    })
}

fn t05(target: &Target) -> Check {
    in_modes(target, |raw| {
        for length in [(32 << 20) + 1, 64 << 20, 0xffff_ffff] {
            let error = raw.request(READ, 0, 0, length)?.error;
            ensure!(error != 0, "{length} bytes are read of a disk of {}", target.image.len());
            raw.alive()?;
        }
        Ok(())
    })
}

fn t06(target: &Target) -> Check {
    in_modes(target, |raw| {
        for command in [9, 77, 0xffff] {
            raw.refused(command, 0, 0, 512, &[EINVAL])?;
        }
        Ok(())
    })
}

fn t07(target: &Target) -> Check {
    in_modes(target, |raw| {
        for flags in [1 << 3, 1 << 6, 1 << 15] {
            raw.refused(READ, flags, 0, 512, &[EINVAL])?;
        }
        Ok(())
    })
}

fn t08(target: &Target) -> Check {
    in_modes(target, |raw| {
        for command in [TRIM, WRITE_ZEROES] {
            raw.refused(command, 0, 0, 512, &[EPERM])?;
        }
        let flags = if raw.mode == Mode::Extended { PAYLOAD_LEN } else { 0 };
        for length in [1, 512, 32 << 20] {
            let cookie = raw.put_request(WRITE, flags, 0, length)?;
            let mut writer = raw.socket().try_clone()?;
            let payload = std::thread::spawn(move || writer.write_all(&vec![0x25; length as usize]));
            let error = raw.answer(WRITE, cookie, 0, length)?.error;
            payload.join().expect("writes")?;
            ensure!(error == EPERM, "WRITE of {length}: error {error}");
            raw.alive()?;
        }
        ensure!(raw.read(0, 512)? == target.image[..512], "it wrote");
        Ok(())
    })
}

fn t09(target: &Target) -> Check {
    in_modes(target, |raw| {
        ensure!(raw.request(FLUSH, 0, 0, 0)?.error == 0, "FLUSH fails");
        raw.alive()
    })
}

fn t10(target: &Target) -> Check {
    in_modes(target, |raw| {
        let reply = raw.request(READ, FUA, 0, 512)?;
        ensure!(reply.error == 0 && reply.data == target.image[..512], "error {}", reply.error);
        // Once announced, it may be set for every command.
        ensure!(raw.request(FLUSH, FUA, 0, 0)?.error == 0, "FLUSH with FUA");
        ensure!(raw.request(CACHE, FUA, 0, 512)?.error == 0, "CACHE with FUA");
        raw.alive()
    })
}

fn t11(target: &Target) -> Check {
    in_modes(target, |raw| {
        let size = target.image.len() as u64;
        ensure!(raw.request(CACHE, 0, 0, size)?.error == 0, "CACHE fails");
        raw.refused(CACHE, 0, size, 512, &[EINVAL])?;
        raw.refused(CACHE, 1 << 7, 0, 512, &[EINVAL])
    })
}

fn t12(target: &Target) -> Check {
    in_modes(target, |raw| raw.refused(BLOCK_STATUS, 0, 0, 512, &[EINVAL]))
}

/// The extents of `base:allocation` from `offset`, at most `length` of them unless told otherwise.
fn extents(raw: &mut Raw, flags: u16, offset: u64, length: u64) -> Answer<Vec<(u64, u64)>> {
    let reply = raw.request(BLOCK_STATUS, flags, offset, length)?;
    ensure!(reply.error == 0, "BLOCK_STATUS {length} at {offset:#x}: error {}", reply.error);
    let (kind, payload) = reply.chunks.first().ok_or("no chunk")?;
    ensure!(*kind == if raw.mode == Mode::Extended { 6 } else { 5 }, "chunk type {kind}");
    let count = if *kind == 6 { u32::from_be_bytes(payload[4..8].try_into()?) as usize } else { 0 };
    let extents: Vec<(u64, u64)> = match kind {
        5 => payload[4..]
            .chunks(8)
            .map(|pair| {
                let (len, flags) = pair.split_at(4);
                (
                    u32::from_be_bytes(len.try_into().unwrap()).into(),
                    u32::from_be_bytes(flags.try_into().unwrap()).into(),
                )
            })
            .collect(),
        6 => payload[8..]
            .chunks(16)
            .map(|pair| {
                let (len, flags) = pair.split_at(8);
                (u64::from_be_bytes(len.try_into().unwrap()), u64::from_be_bytes(flags.try_into().unwrap()))
            })
            .collect(),
        other => return Err(format!("chunk type {other}").into()),
    };
    ensure!(!extents.is_empty() && extents.iter().all(|(len, _)| *len > 0), "{extents:?}");
    ensure!(*kind == 5 || count == extents.len(), "{count} extents, it says, and they are {extents:?}");
    let (last, before) = extents.split_last().ok_or("no extent")?;
    let sum: u64 = before.iter().map(|(len, _)| len).sum();
    ensure!(sum < length, "extents beyond the request: {extents:?}");
    ensure!(flags & REQ_ONE == 0 || last.0 <= length, "REQ_ONE tells more than was asked: {extents:?}");
    Ok(extents)
}

fn with_contexts(target: &Target, contexts: &[&str], check: impl Fn(&mut Raw) -> Check) -> Check {
    for mode in [Mode::Structured, Mode::Extended] {
        if mode == Mode::Extended && !target.extended {
            continue;
        }
        let mut raw = Raw::transmit(&target.socket, mode, contexts)?;
        check(&mut raw).map_err(|error| format!("{mode:?}: {error}"))?;
    }
    Ok(())
}

/// All extents of the disk.
fn map(target: &Target, raw: &mut Raw, flags: u16) -> Answer<Vec<(u64, u64, u64)>> {
    let size = target.image.len() as u64;
    let (mut at, mut map) = (0, Vec::new());
    while at < size {
        let found = extents(raw, flags, at, size - at)?;
        ensure!(flags & REQ_ONE == 0 || found.len() == 1, "{} extents with REQ_ONE", found.len());
        for (len, status) in found {
            ensure!(at + len <= size, "an extent beyond the disk");
            map.push((at, len, status));
            at += len;
        }
    }
    Ok(map)
}

fn t13(target: &Target) -> Check {
    with_contexts(target, &["base:allocation"], |raw| {
        let size = target.image.len() as u64;
        map(target, raw, 0)?;
        map(target, raw, REQ_ONE)?;
        let one = extents(raw, REQ_ONE, 4096, 512)?;
        ensure!(one.len() == 1 && one[0].0 <= 512, "REQ_ONE: {one:?} for 512 bytes");
        raw.refused(BLOCK_STATUS, 0, size, 512, &[EINVAL])?;
        raw.refused(BLOCK_STATUS, 0, 0, size + 1, &[EINVAL])?;
        raw.refused(BLOCK_STATUS, 0, 0, 0, &[EINVAL])?;
        raw.refused(BLOCK_STATUS, DF, 0, 512, &[EINVAL])
    })
}

fn t14(target: &Target) -> Check {
    with_contexts(target, &["base:allocation"], |raw| {
        let mut zeros = 0;
        for (at, len, status) in map(target, raw, 0)? {
            ensure!(status & !3 == 0, "reserved flags {status:#x}");
            if status & 2 != 0 {
                zeros += len;
                let stretch = &target.image[at as usize..(at + len) as usize];
                ensure!(stretch.iter().all(|byte| *byte == 0), "{len} bytes at {at:#x} are no zeros");
            }
        }
        ensure!(zeros > 0, "the image has holes, but none is told");
        Ok(())
    })
}

fn t15(target: &Target) -> Check {
    let contexts = target.contexts;
    with_contexts(target, contexts, |raw| {
        let reply = raw.request(BLOCK_STATUS, 0, 0, 1 << 20)?;
        ensure!(reply.error == 0 && reply.chunks.len() == contexts.len(), "{:?}", reply.chunks);
        let mut ids: Vec<_> = reply.chunks.iter().map(|(_, payload)| &payload[..4]).collect();
        ids.dedup();
        ensure!(ids.len() == contexts.len(), "{ids:?}");
        raw.alive()
    })
}

fn t16(target: &Target) -> Check {
    with_contexts(target, &[], |raw| {
        // The stretch has data and a hole in it.
        let reply = raw.request(READ, DF, target.mixed, 65536)?;
        ensure!(
            reply.error == 0 && reply.chunks.len() == 1,
            "error {}, {} chunks",
            reply.error,
            reply.chunks.len()
        );
        ensure!(reply.data == target.image[target.mixed as usize..][..65536], "other bytes");
        Ok(())
    })?;
    Raw::transmit(&target.socket, Mode::Simple, &[])?.refused(READ, DF, 0, 512, &[EINVAL])
}

fn t17(target: &Target) -> Check {
    in_modes(target, |raw| {
        let mut waiting: Vec<(u64, u64, u64)> = Vec::new();
        for round in 0..64 {
            let (offset, length) = (round * 4099, 100 + round * 37);
            waiting.push((raw.put_request(READ, 0, offset, length)?, offset, length));
        }
        while !waiting.is_empty() {
            let of =
                |cookie| waiting.iter().find(|(known, ..)| *known == cookie).copied().unwrap_or_default();
            let reply = raw.reply(|cookie| of(cookie).2 as usize, |cookie| of(cookie).1)?;
            let (cookie, offset, length) = of(reply.cookie);
            ensure!(length > 0, "an answer to a request that was not made");
            ensure!(reply.data == target.image[offset as usize..][..length as usize], "other bytes");
            waiting.retain(|(known, ..)| *known != cookie);
        }
        raw.alive()
    })
}

fn t18(target: &Target) -> Check {
    let mut other = Raw::transmit(&target.socket, Mode::Simple, &[])?;
    let mut raw = Raw::transmit(&target.socket, Mode::Simple, &[])?;
    raw.send(&[0x77; 28])?;
    raw.closed()?;
    other.alive()
}

fn t20(target: &Target) -> Check {
    in_modes(target, |raw| {
        raw.put_request(DISC, 0, 0, 0)?;
        raw.closed()
    })
}

fn t21(target: &Target) -> Check {
    let mut raw = Raw::transmit(&target.socket, Mode::Simple, &[])?;
    let mut bytes = Vec::new();
    for cookie in 1..=32 {
        bytes.extend(request_bytes(Mode::Simple, READ, 0, cookie, cookie * 8192, 8192));
    }
    bytes.extend(request_bytes(Mode::Simple, DISC, 0, 99, 0, 0));
    raw.send(&bytes)?;
    let rest = raw.rest()?;
    ensure!(rest.len() == 32 * (16 + 8192), "{} bytes instead of 32 replies", rest.len());
    Ok(())
}

fn t22(target: &Target) -> Check {
    let mut raw = Raw::transmit(&target.socket, Mode::Simple, &[])?;
    raw.put_request(WRITE, 0, 0, 0xffff_fe00)?;
    for _ in 0..100 {
        if raw.send(&[0; 4096]).is_err() {
            break;
        }
    }
    drop(raw);
    Raw::transmit(&target.socket, Mode::Simple, &[])?.alive()
}

fn t23(target: &Target) -> Check {
    for round in 0..30 {
        let mut raw = Raw::transmit(&target.socket, Mode::Simple, &[])?;
        for _ in 0..round {
            raw.put_request(READ, 0, 0, 1 << 20)?;
        }
        raw.send(&[0x25, 0x60][..round % 3 % 2 * 2])?;
    }
    Raw::transmit(&target.socket, Mode::Simple, &[])?.alive()
}

fn t24(target: &Target) -> Check {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                scope.spawn(move || {
                    let read = || -> Check {
                        let mut raw = Raw::transmit(&target.socket, MODES[client % 2], &[])?;
                        for round in 0..50_u64 {
                            let offset = (client as u64 * 50 + round) * 5000;
                            let data = raw.read(offset, 5000)?;
                            ensure!(data == target.image[offset as usize..][..5000], "other bytes");
                        }
                        Ok(())
                    };
                    read().map_err(|error| error.to_string())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client").map_err(Into::into))
    })
}

/// `command` with this payload is invalid; the payload is dropped.
fn invalid_with(payload: &[u8], command: u16, contexts: &[&str], target: &Target) -> Check {
    let mut raw = Raw::transmit(&target.socket, Mode::Extended, contexts)?;
    let cookie = raw.put_request(command, PAYLOAD_LEN, 0, payload.len() as u64)?;
    raw.send(payload)?;
    let reply = raw.reply(|_| 0, |_| 0)?;
    ensure!(reply.cookie == cookie && reply.error == EINVAL, "{reply:?}");
    raw.alive()
}

/// READ has no payload.
fn t26(target: &Target) -> Check {
    invalid_with(&[0x21; 512], READ, &[], target)
}

/// With a payload, BLOCK_STATUS asks for some of the contexts. Where that is not announced it is invalid; and where it is,
/// zeros make no sense.
fn t28(target: &Target) -> Check {
    invalid_with(&[0; 64], BLOCK_STATUS, &["base:allocation"], target)
}

fn t29(target: &Target) -> Check {
    let mut raw = Raw::transmit(&target.socket, Mode::Extended, &[])?;
    let cookie = raw.put_request(WRITE, PAYLOAD_LEN, 0, 0)?;
    let reply = raw.reply(|_| 0, |_| 0)?;
    ensure!(reply.cookie == cookie && reply.error != 0, "{reply:?}");
    raw.alive()
}

fn t27(target: &Target) -> Check {
    let mut raw = Raw::transmit(&target.socket, Mode::Extended, &["base:allocation"])?;
    for length in [1 << 32, (1 << 32) + 512, 1 << 63, u64::MAX] {
        raw.refused(BLOCK_STATUS, 0, 0, length, &[EINVAL])?;
        raw.refused(CACHE, 0, 0, length, &[EINVAL])?;
        let cookie = raw.put_request(READ, 0, 0, length)?;
        let reply = raw.reply(|_| 0, |_| 0)?;
        ensure!(reply.cookie == cookie && reply.error != 0, "READ of {length}: {reply:?}");
        raw.alive()?;
    }
    Ok(())
}

fn t25(target: &Target) -> Check {
    let raw = Raw::transmit(&target.socket, Mode::Simple, &[])?;
    let mut socket = raw.socket();
    socket.set_nonblocking(true)?;
    let request = request_bytes(Mode::Simple, READ, 0, 1, 0, 1 << 20);
    let (mut taken, mut idle) = (0, 0);
    // A server without a bound would take requests as fast as they come, each worth 1 MiB.
    while idle < 20 {
        match socket.write(&request) {
            Ok(_) => (taken, idle) = (taken + 1, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
        ensure!(taken < 100_000, "{taken} requests are taken of a client that reads nothing");
    }
    Raw::transmit(&target.socket, Mode::Simple, &[])?.alive()?;
    drop(raw);
    Raw::transmit(&target.socket, Mode::Simple, &[])?.alive()
}
