//! The negotiation of one connection, driven.

use super::outbox::Outbox;
use super::transport::Stream;
use crate::handshake::{Encryption, Handshake, Negotiated, Step};
use crate::session::Session;
use crate::validate::Terms;
use crate::wire::Sink;
use crate::{Client, Export, Exports, Tls};
use bytes::BytesMut;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

/// Room for bytes to come.
const RECEIVE: usize = 4 << 10;

/// What a client settled on.
pub(crate) struct Settled<E> {
    /// The stream as it is now.
    pub(crate) stream: Stream,
    /// Bytes of the session that have come already.
    pub(crate) input: BytesMut,
    /// The session to begin.
    pub(crate) session: Session,
    pub(crate) export: Arc<E>,
}

/// Negotiates, everything but encryption only once the connection is encrypted if there is `tls`. `None`: the client left
/// or was sent away, which is no error. The caller bounds the time.
pub(crate) async fn negotiate<X: Exports>(
    mut stream: Stream,
    exports: &X,
    tls: Option<&Tls>,
) -> io::Result<Option<Settled<X::Export>>> {
    stream.configure();
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    let encryption = if tls.is_some() { Encryption::Required } else { Encryption::None };
    let mut handshake = Handshake::new(encryption, &mut out);
    let mut step = Step::More;
    let mut export = None;
    let mut client = Client::default();
    loop {
        step = match step {
            Step::More => {
                send(&mut stream, &mut out).await?;
                input.reserve(RECEIVE);
                if poll_fn(|cx| stream.poll_fill(cx, &mut input)).await? == 0 {
                    return Ok(None);
                }
                handshake.step(&mut input, &mut out)
            }
            Step::Lookup(name) => {
                export = exports.lookup(&name, &client).await.map(|export| (export.info(), export));
                handshake.found(export.as_ref().map(|(info, _)| info), &mut input, &mut out)
            }
            Step::List => handshake.listed(&exports.names(&client), &mut input, &mut out),
            Step::StartTls => {
                send(&mut stream, &mut out).await?;
                let Some(tls) = tls.filter(|_| input.is_empty()) else {
                    let text = "the client went on in the clear after it had asked for encryption";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                };
                stream = stream.encrypt(tls).await?;
                client = stream.client();
                handshake.encrypted();
                Step::More
            }
            Step::Begin(Negotiated { headers, contexts }) => {
                send(&mut stream, &mut out).await?;
                return Ok(export.map(|(info, export)| {
                    let session = Session::new(Terms { size: info.size, headers, contexts });
                    Settled { stream, input, session, export }
                }));
            }
            Step::Close => {
                // Who asks to be let go does not have to wait for the answer.
                let _ = send(&mut stream, &mut out).await;
                return Ok(None);
            }
        };
    }
}

async fn send(stream: &mut Stream, out: &mut BytesMut) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let mut outbox = Outbox::default();
    outbox.bytes(&out.split());
    poll_fn(|cx| stream.poll_send(cx, &mut outbox)).await
}
