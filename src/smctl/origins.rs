//! Templates as block devices, by asking the server over its control socket.

use crate::cli::args::Cache;
use crate::cli::{map, settle};
use crate::daemon::{AttachRequest, Attached, Client, changed, spawn};
use crate::error::{Error, Result};
use crate::export::Progress;
use crate::image::{Image, OpenOptions};
use backends::{Credentials, Location};
use sr::{Content, Extent, OriginDevice, OriginError, OriginHealth, Origins, Outcome, Pinned, Probed};
use std::collections::BTreeMap;
use std::ffi::OsString;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// The server at a control socket, started when it is needed and none runs.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Runtime,
    address: String,
    options: Vec<OsString>,
    /// Where blocks of images that are opened here are kept.
    cache: Option<Cache>,
}

/// What a template is called on the control socket.
fn key(template: Uuid) -> String {
    format!("template:{template}")
}

impl Server {
    /// The server at `address`; `options` go to one that is started here.
    pub(crate) fn new(address: String, options: Vec<OsString>) -> Result<Self> {
        Ok(Server { runtime: crate::cli::runtime()?, address, options, cache: None })
    }

    /// The same, opening images with this cache when it reads what they hold.
    pub(crate) fn with_cache(self, cache: Cache) -> Self {
        Server { cache: Some(cache), ..self }
    }

    /// How much of `template` is local. None where it is not attached, or that cannot be said now.
    pub(crate) fn progress(&self, template: Uuid) -> Option<Progress> {
        let attached = self.ask(async |client| client.attached_with_progress().await).ok()??;
        attached.into_iter().find(|attached| attached.key == key(template))?.progress
    }

    /// As [`progress`](Self::progress), of every template that is attached.
    pub(crate) fn progress_of_all(&self) -> BTreeMap<Uuid, Progress> {
        let attached = self.ask(async |client| client.attached_with_progress().await);
        let attached = attached.ok().flatten().unwrap_or_default();
        attached
            .iter()
            .filter_map(|attached| Some((template_of(&attached.key)?, attached.progress?)))
            .collect()
    }

    /// What the server that speaks for what is attached answers, if anything is attached.
    fn ask<T>(&self, ask: impl AsyncFn(Client) -> Result<T>) -> std::result::Result<Option<T>, OriginError> {
        let answer = spawn::ask_existing(&self.address, &self.options, ask);
        self.runtime.block_on(answer).map_err(origin_error)
    }
}

impl Origins for Server {
    fn probe(&mut self, location: &str) -> std::result::Result<Probed, OriginError> {
        let open = async {
            let location: Location = location.parse::<Location>()?.absolute()?;
            let sources = backends::Options::default().with_credentials(Credentials::load(None)?);
            // Nothing is read but headers, so a cache would only be in the way.
            let image = Image::open(&location, &OpenOptions { sources, ..OpenOptions::default() }).await?;
            Ok::<_, Error>(Probed {
                virtual_size: image.virtual_size(),
                format: image.format().to_string(),
                identity: image.pin(),
                location: location.secret_form(),
            })
        };
        self.runtime.block_on(open).map_err(origin_error)
    }

    fn extents(&mut self, location: &str, identity: &str) -> std::result::Result<Vec<Extent>, OriginError> {
        let extents = async {
            let location: Location = location.parse::<Location>()?.absolute()?;
            let sources = backends::Options::default().with_credentials(Credentials::load(None)?);
            let store = match &self.cache {
                Some(cache) => cache.open()?,
                None => None,
            };
            let options = OpenOptions { sources, store: store.clone(), ..OpenOptions::default() };
            let image = Image::open(&location, &options).await?;
            if image.pin() != identity {
                return Err(changed(&location.to_string()));
            }
            let extents = map::extents(&image).await?;
            match store {
                Some(store) => settle(store).await.map(|()| extents),
                None => Ok(extents),
            }
        };
        self.runtime.block_on(extents).map_err(origin_error)
    }

    fn attach(
        &mut self,
        template: Uuid,
        image: Pinned<'_>,
    ) -> std::result::Result<OriginDevice, OriginError> {
        let attach = async {
            let request = AttachRequest {
                location: image.location.to_owned(),
                key: key(template),
                format: None,
                snapshot: None,
                member: None,
                allow_reference: Vec::new(),
                pin: Some(image.identity.to_owned()),
                index: None,
                revalidate: false,
                patience: image.patience,
            };
            spawn::attach(&self.address, &self.options, &request).await
        };
        let attached = self.runtime.block_on(attach).map_err(origin_error)?;
        Ok(OriginDevice { path: attached.device.into(), size: attached.size.next_multiple_of(512) })
    }

    fn detach(&mut self, template: Uuid) -> std::result::Result<Outcome, OriginError> {
        let key = key(template);
        match self.ask(async |client| client.detach(&key).await)?.flatten() {
            Some(_) => Ok(Outcome::Changed),
            None => Ok(Outcome::Unchanged),
        }
    }

    fn content(&mut self, template: Uuid) -> std::result::Result<Content, OriginError> {
        let key = key(template);
        let content = self.ask(async |client| client.content(&key).await)?;
        let content = content.ok_or_else(|| OriginError::new("no server runs"))?;
        let data = content.ranges.into_iter().map(|(start, len)| start..start + len).collect();
        Ok(Content { data, stored: content.stored, local: content.local })
    }

    fn attached(&mut self) -> std::result::Result<Vec<(Uuid, OriginDevice)>, OriginError> {
        let attached = self.ask(async |client| client.attached().await)?.unwrap_or_default();
        let templates = attached.into_iter().filter_map(|attached| {
            let template = template_of(&attached.key)?;
            let size = attached.size.next_multiple_of(512);
            Some((template, OriginDevice { path: attached.device.into(), size }))
        });
        Ok(templates.collect())
    }

    fn health(&mut self) -> std::result::Result<Vec<(Uuid, OriginHealth)>, OriginError> {
        let attached = self.ask(async |client| client.attached_with_progress().await)?.unwrap_or_default();
        let healths =
            attached.iter().filter_map(|attached| Some((template_of(&attached.key)?, health(attached))));
        Ok(healths.collect())
    }

    fn canonical(&mut self, location: &str) -> String {
        let absolute = location.parse::<Location>().and_then(|location| location.absolute());
        absolute.map_or_else(|_| location.to_owned(), |location| location.secret_form())
    }
}

fn health(attached: &Attached) -> OriginHealth {
    let silent_since = attached.silent_since.as_deref().and_then(|at| humantime::parse_rfc3339(at).ok());
    OriginHealth {
        answers: attached.serving && silent_since.is_none(),
        silent_since,
        data: attached.progress.map(|progress| progress.data),
        local: attached.progress.map(|progress| progress.local),
    }
}

/// The template that a key on the control socket names.
fn template_of(key: &str) -> Option<Uuid> {
    key.strip_prefix("template:")?.parse().ok()
}

fn origin_error(error: Error) -> OriginError {
    OriginError::new(error.message)
}
