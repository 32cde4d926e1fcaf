//! Talking to the family `nbd` of generic netlink.

use super::error::Error;
use super::message::{Attributes, Garbled, Message, attribute, messages, request};
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with, sockopt,
};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The family that knows the numbers of the others.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Longer than any answer: a list of all devices takes 20 bytes for each.
const RECEIVE: usize = 64 << 10;
/// The kernel answers at once, except that connecting may have to wait for memory.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Commands of the family (`enum nbd_cmd`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    Connect = 1,
    Disconnect = 2,
    Reconfigure = 3,
    Status = 5,
}

/// Sends one command and answers the attributes of its reply. Needs `CAP_SYS_ADMIN`.
pub(super) fn call(command: Command, attributes: &Attributes) -> Result<Vec<u8>, Error> {
    let socket = open().map_err(|error| Error::system("cannot open a netlink socket", &error))?;
    let name = Attributes::default().string(CTRL_ATTR_FAMILY_NAME, "nbd");
    let family = transact(&socket, &request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name))
        .map_err(|error| Error::family(&error))?;
    let family =
        attribute(&family, CTRL_ATTR_FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(*id.first_chunk()?)));
    let family = family.ok_or_else(|| Error::family(&garbled()))?;
    transact(&socket, &request(family, command as u8, attributes))
        .map_err(|error| Error::command(command, &error))
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(GENERIC))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))?;
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// Sends `message` and collects the attributes of what comes until it is acknowledged.
fn transact(socket: &OwnedFd, message: &[u8]) -> io::Result<Vec<u8>> {
    send(socket, message, SendFlags::empty())?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; RECEIVE];
    loop {
        let (_, len) = recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        let datagram = buffer.get(..len).ok_or_else(garbled)?;
        for message in messages(datagram) {
            match message {
                Ok(Message::Attributes(attributes)) => answer.extend_from_slice(attributes),
                Ok(Message::Done(0)) => return Ok(answer),
                Ok(Message::Done(errno)) => return Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                Err(Garbled) => return Err(garbled()),
            }
        }
    }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer makes no sense")
}
