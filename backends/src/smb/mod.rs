//! SMB 2 and 3, for reading: one connection with many READs under way.
//!
//! The protocol is the `smb2` crate's. A read here is a READ and a QUERY_INFO in one compound, which the server
//! executes in this order ([MS-SMB2] section 3.3.5.2.7.2), so that every answer says which content it is of: size and
//! time of the last write must be those seen at open. The file is opened so that no client of the server may write to
//! it as long as it is open here; one that is replaced by another goes on to be read as it was.
//!
//! Samba does not tell of what is written on the server itself, past Samba, before every client has closed the file.
//! Templates on such a server are replaced, not rewritten.

mod announce;
mod session;

use crate::credentials::Secret;
use crate::parts::{self, InFlight, SILENCE};
use crate::retry::{Failure, Policy};
use crate::tries::{Fault, Tries, error};
use crate::{Error, Identity, Kind, Location, Options, Source};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use session::{Attributes, Opened};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use tokio::sync::Mutex;
use tokio::time::{timeout, timeout_at};

const SMB_PORT: u16 = 445;

/// A file on an SMB server.
#[derive(Debug)]
pub struct SmbSource {
    identity: Identity,
    place: Place,
    attributes: Attributes,
    policy: Policy,
    in_flight: InFlight,
    opened: Mutex<Option<Arc<Opened>>>,
    /// Set for good when another version is seen.
    changed: OnceLock<Error>,
}

/// Where the file is, and who reads it.
#[derive(Debug)]
struct Place {
    host: String,
    port: u16,
    share: String,
    /// Below the share, with slashes.
    path: String,
    user: String,
    password: Secret,
    domain: String,
}

impl SmbSource {
    /// Opens the file at `location` and pins its attributes.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, Error> {
        let place = Place::of(location, options)?;
        let mut tries = Tries::new(options.policy.opening());
        let opened = loop {
            let fault = match timeout_at(tries.deadline(), Opened::open(&place)).await {
                Ok(Ok(opened)) => break opened,
                Ok(Err(fault)) => fault,
                Err(_) => tries.out_of_time(),
            };
            tries.failed(fault).await.map_err(|fault| error(location, &fault))?;
        };
        let attributes = opened.attributes;
        Ok(SmbSource {
            identity: Identity {
                location: location.to_string(),
                size: attributes.size,
                validator: validator(&opened),
            },
            place,
            attributes,
            policy: options.policy,
            in_flight: InFlight::new(),
            opened: Mutex::new(Some(Arc::new(opened))),
            changed: OnceLock::new(),
        })
    }

    /// The error of a change that was seen, if one was. Asks nobody.
    pub fn check(&self) -> Result<(), Error> {
        self.changed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The open file, opened again if its connection is gone.
    async fn opened(&self) -> Result<Arc<Opened>, Fault> {
        let mut slot = self.opened.lock().await;
        if let Some(opened) = slot.as_ref().filter(|opened| !opened.is_dead()) {
            return Ok(opened.clone());
        }
        let opened = timeout(SILENCE, Opened::open(&self.place)).await;
        let opened = opened.unwrap_or_else(|_| Err(parts::silent()))?;
        if self.identity.size != opened.attributes.size || self.identity.validator != validator(&opened) {
            return Err(changed());
        }
        Ok(slot.insert(Arc::new(opened)).clone())
    }

    /// Forgets `opened`, on which something went wrong: whether it is still good is not worth finding out.
    async fn close(&self, opened: &Arc<Opened>) {
        let mut slot = self.opened.lock().await;
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, opened)) {
            *slot = None;
        }
    }

    fn compare(&self, seen: Attributes) -> Result<(), Fault> {
        if seen == self.attributes { Ok(()) } else { Err(changed()) }
    }

    /// The bytes of `range`, in as many READs as the server needs, all under way at once.
    async fn try_read(&self, range: &Range<u64>) -> Result<Bytes, Fault> {
        let opened = self.opened().await?;
        let parts = parts::in_parts(range, opened.read_size, |part| self.read_part(&opened, part));
        let parts = parts::steadily(parts, || opened.received()).await;
        let parts = parts.unwrap_or_else(|| Err(parts::silent()));
        if let Err(fault) = &parts {
            tracing::debug!(location = self.identity.location, fault = fault.what, "a READ failed");
            self.close(&opened).await;
        }
        parts
    }

    /// One READ, and those for the rest if the server sends less than was asked for.
    async fn read_part(&self, opened: &Opened, range: Range<u64>) -> Result<Bytes, Fault> {
        let _permit = self.in_flight.enter(range.end - range.start).await;
        let read = async |rest| {
            let (data, attributes) = opened.read(rest).await?;
            self.compare(attributes)?;
            Ok(data)
        };
        parts::whole(range, read).await
    }
}

impl Source for SmbSource {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        parts::tried(self.policy, &self.identity, &self.changed, &range, || self.try_read(&range)).await
    }
}

impl Place {
    fn of(location: &Location, options: &Options) -> Result<Place, Error> {
        let wrong = |what: &str| Error::new(Kind::Location, format!("{location}: {what}"));
        let url = location.as_url().ok_or_else(|| wrong("not an SMB location"))?;
        let host = url.host_str().ok_or_else(|| wrong("no host"))?.trim_matches(['[', ']']).to_owned();
        let mut parts = Vec::new();
        for part in url.path().split('/').filter(|part| !part.is_empty()) {
            let part = percent_decode_str(part).decode_utf8();
            let part = part.map_err(|_| wrong("a part of its path is not UTF-8"))?.into_owned();
            if part.len() > 255 || matches!(part.as_str(), "." | "..") || part.contains(['/', '\0']) {
                return Err(wrong("a part of its path is not a file name"));
            }
            parts.push(part);
        }
        let [share, path @ ..] = parts.as_slice() else { return Err(wrong("no share after the host")) };
        if path.is_empty() {
            return Err(wrong("no path after the share"));
        }
        let section = options.credentials.section(location);
        let user = section
            .username
            .clone()
            .unwrap_or_else(|| percent_decode_str(url.username()).decode_utf8_lossy().into_owned());
        Ok(Place {
            host,
            port: url.port().unwrap_or(SMB_PORT),
            share: share.clone(),
            path: path.join("/"),
            user,
            password: section.password.clone().unwrap_or_default(),
            domain: section.domain.clone().unwrap_or_default(),
        })
    }
}

/// What tells one content of the file from another.
fn validator(opened: &Opened) -> String {
    format!("written:{},index:{}", opened.attributes.written, opened.index)
}

fn changed() -> Fault {
    Fault::new(Kind::Changed, Failure::Final, "the file changed since it was opened")
}

fn wrong(what: &str) -> Fault {
    Fault::new(Kind::BadAnswer, Failure::Wrong, what)
}

#[cfg(test)]
mod tests;
