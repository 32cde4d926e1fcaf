//! The negotiation of one connection, driven.

use super::outbox::Outbox;
use super::transport::Stream;
use crate::handshake::{Encryption, Handshake, Negotiated, Step};
use crate::session::Session;
use crate::validate::Terms;
use crate::wire::Sink;
use crate::{Export, Exports};
use bytes::BytesMut;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

/// Room for bytes to come.
const RECEIVE: usize = 4 << 10;

/// What a client settled on: the session to begin, its export, and bytes of the session that have come already.
pub(crate) type Settled<E> = (Session, Arc<E>, BytesMut);

/// Negotiates. `None`: the client left or was sent away, which is no error. The caller bounds the time.
pub(crate) async fn negotiate<X: Exports>(
    stream: &mut Stream,
    exports: &X,
) -> io::Result<Option<Settled<X::Export>>> {
    stream.configure();
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    let mut handshake = Handshake::new(Encryption::None, &mut out);
    let mut step = Step::More;
    let mut export = None;
    loop {
        step = match step {
            Step::More => {
                send(stream, &mut out).await?;
                input.reserve(RECEIVE);
                if poll_fn(|cx| stream.poll_fill(cx, &mut input)).await? == 0 {
                    return Ok(None);
                }
                handshake.step(&mut input, &mut out)
            }
            Step::Lookup(name) => {
                export = exports.lookup(&name).await.map(|export| (export.info(), export));
                handshake.found(export.as_ref().map(|(info, _)| info), &mut input, &mut out)
            }
            Step::List => handshake.listed(&exports.names(), &mut input, &mut out),
            Step::StartTls => unreachable!("TLS is not offered"),
            Step::Begin(Negotiated { headers, contexts }) => {
                send(stream, &mut out).await?;
                return Ok(export.map(|(info, export)| {
                    (Session::new(Terms { size: info.size, headers, contexts }), export, input)
                }));
            }
            Step::Close => {
                send(stream, &mut out).await?;
                return Ok(None);
            }
        };
    }
}

async fn send(stream: &mut Stream, out: &mut BytesMut) -> io::Result<()> {
    let mut outbox = Outbox::default();
    outbox.bytes(&out.split());
    poll_fn(|cx| stream.poll_send(cx, &mut outbox)).await
}
