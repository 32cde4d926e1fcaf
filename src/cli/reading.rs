//! From options to opened images.

use super::args::{Cache, Reading};
use crate::error::{Error, Result};
use crate::image::{Gate, Image, OpenOptions};
use backends::cache::Store;
use backends::{Credentials, Location};
use std::path::PathBuf;
use std::sync::Arc;

impl Reading {
    /// The options as images are opened with. Makes the cache directory.
    pub(crate) fn options(&self) -> Result<OpenOptions> {
        Ok(OpenOptions {
            image: formats::Options { format: self.format.map(Into::into), snapshot: self.snapshot.clone() },
            member: self.member.clone(),
            gate: Gate { allow: self.allow_reference.clone() },
            store: self.cache.open()?,
            revalidate: self.cache.revalidate,
            sources: backends::Options::default()
                .with_credentials(Credentials::load(self.credentials.as_deref())?),
        })
    }

    /// Opens the image at `location` for one command.
    pub(crate) async fn open(&self, location: &str) -> Result<Opened> {
        let options = self.options()?;
        let image = Image::open(&parse(location)?, &options).await?;
        Ok(Opened { image: Arc::new(image), store: options.store, sources: options.sources })
    }
}

/// An image that a command reads, and the cache behind it.
#[derive(Debug)]
pub(crate) struct Opened {
    image: Arc<Image>,
    store: Option<Store>,
    sources: backends::Options,
}

impl Opened {
    /// Fails unless the command can put something into the cache.
    pub(crate) fn writable(&self) -> Result<()> {
        match &self.store {
            None => Err(Error::usage("without a cache there is nothing to warm")),
            Some(store) if store.is_failing() => {
                Err(Error::failed("the cache cannot be written to at the moment; the warning says why"))
            }
            Some(store) if !store.is_owner() => Err(Error::refused(
                "another process owns this cache; only that one can put something into it",
            )),
            Some(_) => Ok(()),
        }
    }

    /// How other files are reached.
    pub(crate) fn sources(&self) -> &backends::Options {
        &self.sources
    }

    /// Makes what the command fetched durable, so that the next one does not fetch it again.
    pub(crate) async fn settle(self) -> Result<()> {
        match self.store {
            Some(store) => settle(store).await,
            None => Ok(()),
        }
    }
}

impl std::ops::Deref for Opened {
    type Target = Arc<Image>;

    fn deref(&self) -> &Arc<Image> {
        &self.image
    }
}

/// Makes everything in `store` durable.
pub(crate) async fn settle(store: Store) -> Result<()> {
    let saved = tokio::task::spawn_blocking(move || store.sync()).await;
    saved.map_err(|_| Error::failed("saving the cache ended before its time"))
}

impl Cache {
    /// The cache; none if nothing is to be kept. Makes its directory.
    pub(crate) fn open(&self) -> Result<Option<Store>> {
        if self.no_cache {
            return Ok(None);
        }
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => default_dir()?,
        };
        Ok(Some(Store::open(&dir, self.size.0)?))
    }
}

/// Parses a location given on the command line.
pub(crate) fn parse(location: &str) -> Result<Location> {
    location.parse().map_err(|error: backends::Error| Error::usage(error.message))
}

/// Where the cache is if nobody says.
pub(super) fn default_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/thinorigin"));
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("thinorigin"))
        .ok_or_else(|| Error::usage("neither XDG_CACHE_HOME nor HOME is set: say --cache DIR or --no-cache"))
}
