//! An object on a server that cannot be reached now, as it was when it was opened before.
//!
//! What the cache has of it can be read. For anything else the server is asked again; once it answers, the object must be
//! the one that is remembered.

use crate::source::open;
use crate::{AnySource, Error, Identity, Kind, Location, Options, Source};
use bytes::Bytes;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// For how long an attempt to reach the server speaks for those that come after it.
const FRESH: Duration = Duration::from_secs(2);

/// A source whose server was away when it was opened.
#[derive(Debug)]
pub struct AwaySource {
    identity: Identity,
    location: Location,
    options: Options,
    found: OnceCell<Box<AnySource>>,
    failed: Mutex<Option<(Instant, Error)>>,
}

impl AwaySource {
    /// The object at `location` that was known as `identity`. Asks nobody.
    pub fn new(location: &Location, identity: Identity, options: &Options) -> AwaySource {
        let (found, failed) = (OnceCell::new(), Mutex::default());
        AwaySource { identity, location: location.clone(), options: options.clone(), found, failed }
    }

    /// The error of a change that was seen, if one was. Asks nobody.
    pub fn check(&self) -> Result<(), Error> {
        self.found.get().map_or(Ok(()), |source| source.check())
    }

    /// The object itself, if its server is back and it is the same.
    async fn find(&self) -> Result<Box<AnySource>, Error> {
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, error)) = &*failed()
            && at.elapsed() < FRESH
        {
            return Err(error.clone());
        }
        let found = open(&self.location, &self.options).await.and_then(|source| {
            if *source.identity() == self.identity {
                return Ok(Box::new(source));
            }
            let what = "the object is not the one that is in the cache; it has to be opened again";
            Err(Error::new(Kind::Changed, format!("{}: {what}", self.location)))
        });
        match &found {
            Ok(_) => tracing::info!(location = %self.location, "the server is back"),
            Err(error) => *failed() = Some((Instant::now(), error.clone())),
        }
        found
    }
}

/// A read whose type does not say of what: an object of any kind may be away.
fn erased<S: Source>(
    source: &S,
    range: Range<u64>,
) -> Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send + '_>> {
    Box::pin(source.read(range))
}

impl Source for AwaySource {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        crate::source::checked_len(&self.identity, &range)?;
        let source = self.found.get_or_try_init(|| self.find()).await?;
        erased(&**source, range).await
    }
}
