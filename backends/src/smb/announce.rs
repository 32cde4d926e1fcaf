//! Says to the server that this client can encrypt.
//!
//! `smb2` offers ciphers in its NEGOTIATE and can use them, but does not set SMB2_GLOBAL_CAP_ENCRYPTION, without which
//! a server refuses shares that require encryption ([MS-SMB2] sections 2.2.3 and 3.3.5.7). The bit is set here on the
//! way out. Dialect 3.1.1 derives its keys from a hash of the negotiation as it was on the wire, so that hash is made
//! again from what was really sent.

use async_trait::async_trait;
use smb2::client::Connection;
use smb2::crypto::kdf::PreauthHasher;
use smb2::transport::{ReceiveProgress, TcpTransport, TransportReceive, TransportSend};
use std::sync::{Arc, Mutex, PoisonError};

/// Where Capabilities are in a NEGOTIATE request: behind the header (64 bytes), the structure's size, the number of
/// dialects, the security mode and two bytes that are reserved ([MS-SMB2] section 2.2.3).
const CAPABILITIES: usize = 64 + 8;

/// The byte of SMB2_GLOBAL_CAP_ENCRYPTION, 0x00000040 in little endian.
const ENCRYPTION: u8 = 0x40;

/// A TCP transport that changes the first message, and remembers it and its answer.
#[derive(Clone)]
pub(super) struct Announcing(Arc<Inner>);

struct Inner {
    tcp: TcpTransport,
    sent: Mutex<Option<Vec<u8>>>,
    received: Mutex<Option<Vec<u8>>>,
}

impl Announcing {
    pub(super) fn new(tcp: TcpTransport) -> Announcing {
        Announcing(Arc::new(Inner { tcp, sent: Mutex::default(), received: Mutex::default() }))
    }

    /// Makes `connection`, which has negotiated over this transport, hash what was negotiated.
    pub(super) fn settle(&self, connection: &Connection) {
        let mut hasher = PreauthHasher::new();
        for message in [&self.0.sent, &self.0.received] {
            let message = message.lock().unwrap_or_else(PoisonError::into_inner);
            hasher.update(message.as_deref().unwrap_or_default());
        }
        connection.with_preauth_hasher_mut(|current| *current = hasher);
    }
}

/// Whether nothing is in `slot` yet.
fn is_first(slot: &Mutex<Option<Vec<u8>>>) -> bool {
    slot.lock().unwrap_or_else(PoisonError::into_inner).is_none()
}

fn remember(slot: &Mutex<Option<Vec<u8>>>, message: &[u8]) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_vec());
}

#[async_trait]
impl TransportSend for Announcing {
    async fn send(&self, data: &[u8]) -> smb2::Result<()> {
        if !is_first(&self.0.sent) {
            return self.0.tcp.send(data).await;
        }
        let mut message = data.to_vec();
        if let Some(byte) = message.get_mut(CAPABILITIES) {
            *byte |= ENCRYPTION;
        }
        remember(&self.0.sent, &message);
        self.0.tcp.send(&message).await
    }
}

#[async_trait]
impl TransportReceive for Announcing {
    async fn receive(&self) -> smb2::Result<Vec<u8>> {
        let message = self.0.tcp.receive().await?;
        if is_first(&self.0.received) {
            remember(&self.0.received, &message);
        }
        Ok(message)
    }

    fn receive_progress(&self) -> Option<Arc<ReceiveProgress>> {
        self.0.tcp.receive_progress()
    }
}
