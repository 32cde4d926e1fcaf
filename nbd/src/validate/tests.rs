use super::*;
use crate::wire::Cookie;

const READ_ONLY_COMMANDS: [Command; 4] =
    [Command::Read, Command::Cache, Command::Flush, Command::BlockStatus];

/// A disk of 1 GiB to a client that negotiated everything.
fn check(command: Command, flags: CommandFlags, offset: u64, length: u64, expected: Result<(), Errno>) {
    let terms = Terms { size: 1 << 30, headers: Headers::Structured, contexts: Contexts::ALLOCATION };
    check_under(&terms, command, flags, offset, length, expected);
}

fn check_under(
    terms: &Terms,
    command: Command,
    flags: CommandFlags,
    offset: u64,
    length: u64,
    expected: Result<(), Errno>,
) {
    let request = Request { flags, command, cookie: Cookie(1), offset, length };
    assert_eq!(validate(terms, &request), expected, "{request:?}");
}

#[test]
fn ranges() {
    let (none, max) = (CommandFlags::empty(), u64::from(MAX_PAYLOAD));
    for command in [Command::Read, Command::Cache] {
        check(command, none, 0, 0, Ok(()));
        check(command, none, 1 << 30, 0, Ok(()));
        check(command, none, (1 << 30) - 1, 1, Ok(()));
        check(command, none, (1 << 30) - 1, 2, Err(Errno::Inval));
        check(command, none, 1 << 30, 1, Err(Errno::Inval));
        check(command, none, u64::MAX, 1, Err(Errno::Inval));
        check(command, none, u64::MAX, u64::MAX, Err(Errno::Inval));
    }
    check(Command::Read, none, 0, max, Ok(()));
    check(Command::Read, none, 0, max + 1, Err(Errno::Inval));
    check(Command::Cache, none, 0, 1 << 30, Ok(()));
    check(Command::BlockStatus, none, 0, 1 << 30, Ok(()));
    check(Command::BlockStatus, none, 0, 0, Err(Errno::Inval));
    check(Command::Flush, none, 0, 0, Ok(()));
    check(Command::Flush, none, 0, 1, Err(Errno::Inval));
    check(Command::Flush, none, 1, 0, Err(Errno::Inval));
}

#[test]
fn writes_are_refused_before_anything_else_is_looked_at() {
    let junk = CommandFlags::from_bits_retain(0xffff);
    for command in [Command::Write, Command::Trim, Command::WriteZeroes, Command::Resize] {
        check(command, junk, u64::MAX, u64::MAX, Err(Errno::Perm));
        check(command, CommandFlags::empty(), 0, 512, Err(Errno::Perm));
    }
    check(Command::Unknown(9), junk, 0, 0, Err(Errno::Inval));
    check(Command::Disconnect, junk, u64::MAX, u64::MAX, Ok(()));
}

#[test]
fn flags() {
    for command in READ_ONLY_COMMANDS {
        let length = if command == Command::Flush { 0 } else { 1 };
        check(command, CommandFlags::FUA, 0, length, Ok(()));
        for bit in 0..16 {
            let flag = CommandFlags::from_bits_retain(1 << bit);
            let known = flag == CommandFlags::FUA
                || (flag == CommandFlags::DF && command == Command::Read)
                || (flag == CommandFlags::REQ_ONE && command == Command::BlockStatus);
            check(command, flag, 0, length, if known { Ok(()) } else { Err(Errno::Inval) });
        }
    }
}

#[test]
fn what_was_not_negotiated_is_invalid() {
    let terms = Terms { size: 1 << 30, headers: Headers::Simple, contexts: Contexts::empty() };
    check_under(&terms, Command::BlockStatus, CommandFlags::empty(), 0, 1, Err(Errno::Inval));
    check_under(&terms, Command::Read, CommandFlags::DF, 0, 1, Err(Errno::Inval));
    check_under(&terms, Command::Read, CommandFlags::empty(), 0, 1, Ok(()));
}
